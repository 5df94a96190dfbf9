//! Files that no tidy cluster has: names that are not UTF-8, and one that is larger than eight gigabytes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use harness::{PostgresServer, ProtectedCluster, TestUser, newest_major};

/// "café" in Latin 1, a line break, a quote and a backslash.
const NAME: &[u8] = b"caf\xe9 \n\"\\";

#[test]
fn a06_a07_names_that_are_not_utf_8_come_back() {
    for major in [15, newest_major()] {
        names_that_are_not_utf_8(major);
    }
}

fn names_that_are_not_utf_8(major: u32) {
    let mut cluster = ProtectedCluster::builder().server(|server| server.major(major)).start();
    // No line break here: before 16, servers write a map that they cannot read then.
    let place = cluster.dir().path().join(OsStr::from_bytes(b"caf\xe9 space"));
    fs::create_dir(&place).unwrap();
    TestUser::get().own(&place);
    let server = cluster.server();
    // Only such a database takes bytes that are no text.
    server.psql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    let location = place.to_str().map_or_else(
        || String::from_utf8_lossy(place.as_os_str().as_bytes()).replace('\u{fffd}', "\\351"),
        str::to_owned,
    );
    server.psql_in("bytes", &format!("CREATE TABLESPACE odd LOCATION E'{location}'"));
    server.psql("CREATE TABLE in_odd TABLESPACE odd AS SELECT n FROM generate_series(1, 1000) n");
    for folder in ["base/1", "."] {
        let file = server.data_dir().join(folder).join(OsStr::from_bytes(NAME));
        fs::write(&file, "odd").unwrap();
        TestUser::get().own(&file);
    }
    let id = cluster.backup();
    server.psql("INSERT INTO in_odd SELECT 0");
    cluster.archive_all();
    let shown = cluster.restore().args(["show", &id]).succeed().stdout;
    assert!(shown.contains("caf\u{fffd} space"), "{shown}");

    cluster.server_mut().stop_fast();
    fs::rename(&place, cluster.dir().join("original")).unwrap();
    let to = cluster.restore_to("restored", &[] as &[&str]);
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);
    for folder in ["base/1", "."] {
        assert_eq!(fs::read(to.join(folder).join(OsStr::from_bytes(NAME))).unwrap(), b"odd", "{major} {folder}");
    }
    let link = fs::read_dir(to.join("pg_tblspc")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_link(link).unwrap(), place);
    let mut restored = PostgresServer::start_restored(&to, major);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*) FROM in_odd"), "1001");
    restored.stop_fast();
    drop(restored);
    fs::remove_dir_all(&to).unwrap();

    // Elsewhere, the map is written anew.
    let base = cluster.dir().join("spaces");
    let to = cluster.restore_to("moved", &["--tablespace-base".as_ref(), base.as_os_str()]);
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);
    let mut restored = PostgresServer::start_restored(&to, major);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*) FROM in_odd"), "1001");
}

/// Nine gigabytes of nothing: what counts is the size in the headers, the index and the manifest.
#[test]
#[ignore = "long: make soak"]
fn soak_a19_a_file_of_more_than_8_gib_comes_back() {
    const SIZE: u64 = (9 << 30) + 4711;
    let cluster = ProtectedCluster::builder().settings("[compression]\nlevel = 1\n").start();
    let large = Path::new("base/1/large");
    let file = cluster.server().data_dir().join(large);
    fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
    TestUser::get().own(&file);
    cluster.server().psql("CREATE TABLE beside AS SELECT 1");
    cluster.agent().args(["--quiet", "backup"]).limit(Duration::from_secs(1200)).succeed();
    fs::remove_file(&file).unwrap();
    let to = cluster.dir().join("restored");
    let base = cluster.restore().args(["--quiet", "base", "--to"]).arg(&to);
    base.limit(Duration::from_secs(1200)).succeed();
    assert_eq!(fs::metadata(to.join(large)).unwrap().size(), SIZE);
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);
    let mut restored = PostgresServer::start_restored(&to, 15);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*) FROM beside"), "1");
    drop(restored);
    fs::remove_dir_all(&to).unwrap();
}
