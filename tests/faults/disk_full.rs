//! D02, B07, A35: the disk is full, under the repository and under the place of a restore.

use std::fs;

use harness::{PostgresServer, Program};

use crate::repository_files::RepositoryFiles;
use crate::site::{Site, assert_one_clear_line, directory_repository};
use crate::tmpfs::Tmpfs;

#[test]
fn a35_a_full_repository_fails_the_backup_and_holds_no_slot() {
    let mut site = Site::start_with_broken_archiving();
    site.fill("kept", 24);
    let disk = Tmpfs::mount(site.dir(), "disk", "size=12m,mode=755");
    let repository = disk.path().to_owned();
    let config = site.other_config("full.toml", None, Some(&directory_repository(&repository)));
    let backup = || Program::agent().config(&config).as_test_user().arg("backup");

    let line = assert_one_clear_line(&backup().fail_with(1));
    assert!(line.contains("No space left on device") && line.contains(disk.path().to_str().unwrap()), "{line}");
    let files = RepositoryFiles::new(disk.path());
    assert!(files.committed().is_empty(), "{:?}", files.all());
    site.wait_until_left_alone();

    disk.resize("size=200m");
    backup().succeed();
    assert_eq!(files.committed().len(), 1);
    let restored = site.dir().join("restored");
    let base = Program::restore().config(&config).as_test_user().args(["base", "--target-immediate", "--to"]);
    base.arg(&restored).succeed();
    site.verify(&restored);
}

/// At every size of the disk, so that each kind of object is once the one that does not fit any more.
#[test]
fn a35_a_repository_that_fills_up_at_any_object_never_commits() {
    let mut site = Site::start_with_broken_archiving();
    let mut failed = 0;
    for kibibytes in [0, 64, 2_800, 3_400, 3_500, 3_600, 3_700, 3_800, 3_900, 4_000, 4_200] {
        let disk = Tmpfs::mount(site.dir(), "disk", &format!("size={}k,mode=755", kibibytes.max(4)));
        let config = site.other_config("full.toml", None, Some(&directory_repository(disk.path())));
        let outcome = Program::agent().config(&config).as_test_user().arg("backup").run();
        let files = RepositoryFiles::new(disk.path());
        println!("{kibibytes} KiB: exit {:?}, {:?}", outcome.code, files.all().len());
        if outcome.code == Some(0) {
            assert_eq!(files.committed().len(), 1);
            let restore = Program::restore().config(&config).as_test_user();
            restore.args(["base", "--target-immediate", "--dry-run"]).succeed();
        } else {
            failed += 1;
            assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
            assert_one_clear_line(&outcome);
            assert!(files.committed().is_empty(), "{:?}", files.all());
        }
        site.wait_until_left_alone();
    }
    assert!(failed >= 3, "only {failed} sizes were too small");
}

#[test]
fn b07_a_full_repository_fails_the_archive_command() {
    let server = PostgresServer::builder().start();
    server.psql("CREATE TABLE t AS SELECT i, sha512(i::text::bytea) FROM generate_series(1, 200000) AS i");
    let name = server.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    server.psql("SELECT pg_switch_wal()");
    let dir = harness::TempDir::for_test_user("archive");
    let disk = Tmpfs::mount(&dir, "disk", "size=1m,mode=755");
    let config = dir.write("pgark.toml", directory_repository(disk.path()));
    let archive = || {
        let segment = server.data_dir().join("pg_wal").join(&name);
        Program::archive_command().config(&config).as_test_user().arg(segment)
    };
    let line = assert_one_clear_line(&archive().fail_with(1));
    assert!(line.contains("No space left on device") && line.contains(&name), "{line}");
    assert!(RepositoryFiles::new(disk.path()).all().is_empty());
    disk.resize("size=64m");
    archive().succeed();
    assert_eq!(RepositoryFiles::new(disk.path()).all().len(), 1);
    archive().succeed();
}

#[test]
fn d02_a_full_disk_under_a_restore() {
    let site = Site::start();
    site.fill("kept", 24);
    site.start_backup().succeed();
    let disk = Tmpfs::mount(site.dir(), "disk", "size=20m,mode=755");

    // What can be known before is said before, and nothing is touched.
    let early = site.base("disk/data").fail_with(1);
    let line = assert_one_clear_line(&early);
    assert!(line.contains("20.0 MiB free"), "{line}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0, "something was touched");

    // Room for all bytes, but not for all files.
    disk.resize("size=400m,nr_inodes=300");
    let late = site.base("disk/data").fail_with(1);
    let line = assert_one_clear_line(&late);
    assert!(line.contains("No space left on device") && line.contains("disk/data"), "{line}");
    let mut half = PostgresServer::start_restored(disk.path().join("data"), site.server().major());
    assert!(!half.wait_until_ended().success(), "the server started on half a restore");
    site.base("disk/data").fail_with(2);

    disk.resize("size=400m,nr_inodes=20000");
    fs::remove_dir_all(disk.path().join("data")).unwrap();
    assert_eq!(site.restored_answer("disk/data", None, "SELECT count(*) > 0 FROM kept"), "t");
}

/// B07 for a fetch: the disk of the server in recovery is full.
#[test]
fn d08_a_full_disk_under_a_fetched_segment_stops_recovery() {
    let site = Site::start();
    let segment = site.archive_segment();
    let identifier = site.server().psql("SELECT system_identifier FROM pg_control_system()");
    let disk = Tmpfs::mount(site.dir(), "disk", "size=4m,mode=755");
    let fetch = || {
        site.restore().args(["wal", "--system-identifier", &identifier, &segment]).arg(disk.path().join("RECOVERYXLOG"))
    };
    let outcome = fetch().run();
    assert!(outcome.code.is_some_and(|code| code > 125), "{:?} {}", outcome.code, outcome.stderr);
    let line = assert_one_clear_line(&outcome);
    assert!(line.contains("No space left on device"), "{line}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0, "a part of the segment was left");
    disk.resize("size=64m");
    fetch().succeed();
}
