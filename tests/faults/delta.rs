//! D02, D03, F02: `pgark-restore base --delta` brings a cluster that has moved on, or half a restore, to the backup. What
//! it leaves is compared byte for byte with a restore into an empty directory; nothing outside is touched; and killed
//! anywhere it leaves nothing that starts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use harness::{FaultProxy, Outcome, PostgresServer, S3Server, TestUser, s3_repository};

use crate::site::{Site, encryption};
use crate::strace::{killed_at, was_killed};

/// Every path below a directory with its mode and its content, link or kind.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u32, String)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory".to_owned()
        } else if metadata.is_file() {
            let bytes = fs::read(&path).unwrap();
            format!("{} bytes, {:08x}", bytes.len(), checksum(&bytes))
        } else {
            "special".to_owned()
        };
        found.insert(path.strip_prefix(root).unwrap().to_path_buf(), (metadata.permissions().mode(), content));
    }
    found
}

/// FNV-1a: two files that differ are told apart, and nobody attacks this test.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn assert_same(found: &BTreeMap<PathBuf, (u32, String)>, expected: &BTreeMap<PathBuf, (u32, String)>, what: &str) {
    for (path, entry) in expected {
        assert_eq!(found.get(path), Some(entry), "{what}: {}", path.display());
    }
    let extra: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{what}: {extra:?} do not belong");
}

impl Site {
    fn delta(&self, to: &Path, arguments: &[&str]) -> Outcome {
        let base = self.restore().args(["--quiet", "base", "--delta", "--to"]).arg(to);
        base.args(["--target-immediate", "--target-action=promote"]).args(arguments).run()
    }
}

fn succeeded(outcome: &Outcome) -> &str {
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    &outcome.stdout
}

fn figure(outcome: &Outcome, name: &str) -> u64 {
    let json: serde_json::Value = serde_json::from_str(succeeded(outcome)).unwrap();
    json["delta"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {json}"))
}

#[test]
fn a_cluster_that_moved_on_is_brought_back_byte_for_byte() {
    let mut site = Site::start_with_repository(|dir| {
        format!("{}{}", harness::local_repository(dir, "local", "repository"), encryption(dir))
    });
    let space = site.dir().create_dir("space");
    let later = site.dir().create_dir("later");
    let server = site.server();
    server.psql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    site.fill("kept", 40);
    server.psql(
        "CREATE TABLE changed TABLESPACE space AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) n;
         CREATE TABLE dropped AS SELECT n FROM generate_series(1, 5000) n",
    );
    // Else the first look at a row changes its page.
    server.psql("VACUUM FREEZE kept");
    server.psql("CHECKPOINT");
    site.start_backup().succeed();
    let expected = "SELECT (SELECT count(*) FROM kept), (SELECT md5(string_agg(text, '' ORDER BY n)) FROM changed),
                           (SELECT count(*) FROM dropped)";
    let answer = server.psql(expected);
    let server = site.server();
    server.psql(&format!("CREATE TABLESPACE later LOCATION '{}'", later.display()));
    server.psql(
        "UPDATE changed SET text = 'x' WHERE n % 3 = 0; DROP TABLE dropped; CREATE DATABASE another;
         VACUUM FULL pg_class;
         CREATE TABLE added TABLESPACE later AS SELECT n FROM generate_series(1, 9000) n;
         CREATE TABLE also TABLESPACE space AS SELECT n FROM generate_series(1, 9000) n;
         ALTER SYSTEM SET work_mem = '7MB'",
    );
    let data = server.data_dir().to_path_buf();
    let major = server.major();

    let refused = site.delta(&data, &[]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("has a running server"), "{}", refused.stderr);
    site.server_mut().stop_fast();
    fs::write(data.join("postgresql.conf"), "port = 1\n").unwrap();
    let own = site.restore().args(["base", "--to"]).arg(&data).fail_with(2);
    assert!(own.stderr.contains("--delta"), "{}", own.stderr);

    let before = snapshot(&data);
    let planned = site.delta(&data, &["--dry-run", "--json"]);
    let files: Vec<u64> =
        ["rewritten_files", "rewritten_bytes", "removed_files"].map(|name| figure(&planned, name)).into();
    assert_same(&snapshot(&data), &before, "a dry run");
    let done = site.delta(&data, &["--json"]);
    assert_eq!(
        ["rewritten_files", "rewritten_bytes", "removed_files"].map(|name| figure(&done, name)).as_slice(),
        files
    );
    println!(
        "{}",
        done.stdout.lines().filter(|line| line.contains("_files\"") || line.contains("_bytes\"")).collect::<String>()
    );
    let (kept, rewritten) = (figure(&done, "kept_bytes"), figure(&done, "rewritten_bytes"));
    assert!(rewritten * 4 < kept, "{rewritten} bytes were rewritten of {kept}");
    assert!(figure(&done, "fetched_bytes") * 4 < kept, "too much was fetched: {}", done.stdout);
    assert!(figure(&done, "removed_files") > 0);
    // The tablespace of later is out of use, and what is in it was left alone.
    assert!(fs::read_dir(&later).unwrap().next().is_some());

    let (delta, delta_space) = (snapshot(&data), snapshot(&space));
    let again = site.delta(&data, &["--json"]);
    // Of these the checksum tells nothing.
    let ends_with_its_own = ["pg_filenode.map", "pg_logical/replorigin_checkpoint"];
    let count = delta.keys().filter(|path| ends_with_its_own.iter().any(|name| path.ends_with(name))).count();
    assert_eq!(figure(&again, "rewritten_files"), count as u64, "{}", again.stdout);
    assert_same(&snapshot(&data), &delta, "a second delta");
    fs::rename(&data, site.dir().join("delta")).unwrap();
    fs::remove_dir_all(&space).unwrap();
    let whole = site.restore().args(["base", "--to"]).arg(&data);
    whole.args(["--target-immediate", "--target-action=promote"]).succeed();
    assert_same(&delta, &snapshot(&data), "the data directory");
    assert_same(&delta_space, &snapshot(&space), "the tablespace");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(site.dir().join("delta"), &data).unwrap();
    site.verify(&data);
    let mut restored = PostgresServer::start_restored(&data, major);
    restored.wait_until_promoted();
    assert_eq!(restored.psql(expected), answer);
    assert_eq!(restored.psql("SHOW work_mem"), "4MB");
}

#[test]
fn f02_nothing_outside_is_touched_whatever_lies_in_the_directory() {
    let site = Site::start();
    site.start_backup().succeed();
    let reference = site.dir().join("reference");
    site.base("reference").succeed();
    let to = site.dir().join("hostile");
    site.base("hostile").succeed();
    let outside = site.dir().create_dir("outside");
    let deep = site.dir().create_dir("outside/deep");
    for name in ["file", "1259", "pg_control", "deep/file"] {
        site.dir().write(&format!("outside/{name}"), "not of this cluster");
    }
    let base = fs::read_dir(to.join("base")).unwrap().next().unwrap().unwrap().path();
    let replace_by_link = |path: PathBuf, target: &Path| {
        fs::rename(&path, site.dir().join("aside")).unwrap();
        symlink(target, &path).unwrap();
        let aside = site.dir().join("aside");
        if aside.is_dir() { fs::remove_dir_all(aside) } else { fs::remove_file(aside) }.unwrap();
    };
    replace_by_link(base.clone(), &outside);
    replace_by_link(to.join("pg_wal"), &deep);
    replace_by_link(to.join("PG_VERSION"), &outside.join("file"));
    replace_by_link(to.join("global"), &outside);
    replace_by_link(to.join("backup_manifest"), &outside.join("file"));
    symlink(outside.join("new"), to.join("standby.signal")).unwrap();
    symlink(outside.join("file"), to.join("pgark.restoring")).unwrap();
    symlink(&outside, to.join("pg_tblspc/4711")).unwrap();
    symlink(&outside, to.join("strange")).unwrap();
    fs::create_dir_all(to.join("unknown/below")).unwrap();
    symlink(&outside, to.join("unknown/below/link")).unwrap();
    // Written in place, it would change the file outside.
    fs::remove_file(to.join("postgresql.conf")).unwrap();
    fs::hard_link(outside.join("file"), to.join("postgresql.conf")).unwrap();
    fs::remove_file(to.join("pg_hba.conf")).unwrap();
    fs::create_dir(to.join("pg_hba.conf")).unwrap();
    fs::write(to.join("pg_hba.conf/x"), "x").unwrap();
    fs::remove_file(to.join("pg_ident.conf")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, to.join("pg_ident.conf"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    fs::set_permissions(to.join("pg_xact"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(to.join("postgresql.auto.conf"), fs::Permissions::from_mode(0o666)).unwrap();
    TestUser::get().own_all(&to);
    let before = snapshot(&outside);

    // Neither is a data directory: its PG_VERSION is a link.
    let refused = site.delta(&to, &[]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("is neither a data directory nor an interrupted restore"), "{}", refused.stderr);
    fs::remove_file(to.join("pgark.restoring")).unwrap();
    fs::write(to.join("pgark.restoring"), "").unwrap();
    TestUser::get().own_all(&to);
    let plan = site.delta(&to, &["--dry-run"]);
    assert!(succeeded(&plan).contains("note        pg_wal is a link to "), "{}", plan.stdout);
    succeeded(&site.delta(&to, &[]));
    assert_same(&snapshot(&outside), &before, "outside");
    assert_same(&snapshot(&to), &snapshot(&reference), "the hostile directory");
    site.verify(&to);
}

#[test]
fn d01_a_delta_into_the_wrong_directory_is_refused() {
    let site = Site::start();
    site.start_backup().succeed();
    let to = site.dir().create_dir("mine");
    let refused = |words: &str| {
        let before = snapshot(&to);
        for dry in [&["--dry-run"][..], &[]] {
            let refused = site.delta(&to, dry);
            assert_eq!(refused.code, Some(2), "{}", refused.stderr);
            assert!(refused.stderr.contains(words), "no {words:?} in {}", refused.stderr);
        }
        assert_same(&snapshot(&to), &before, words);
    };
    site.dir().write("mine/thesis.tex", "years of work");
    refused("is neither a data directory nor an interrupted restore");
    site.dir().write("mine/pgark.restoring", "A restore\nSystem identifier: 4711\n");
    refused("is of the cluster with system identifier 4711");
    fs::remove_file(to.join("pgark.restoring")).unwrap();
    site.dir().write("mine/PG_VERSION", "13\n");
    refused("is of PostgreSQL 13");
    site.dir().write("mine/PG_VERSION", "15\n");
    site.dir().write("mine/postmaster.pid", "4711\n");
    refused("remove");
    let stranger = PostgresServer::builder().own_identity().create();
    let refused = site.delta(stranger.data_dir(), &[]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("is of the cluster with system identifier"), "{}", refused.stderr);
    // A directory that is absent is filled as without --delta.
    succeeded(&site.delta(&site.dir().join("absent"), &[]));
    site.verify(&site.dir().join("absent"));
}

#[test]
fn little_is_fetched_from_object_storage_for_little_that_differs() {
    let s3 = S3Server::start();
    let proxy = FaultProxy::to_port(s3.port());
    let site = Site::start_with_repository(|dir| s3_repository(dir, "s3", &proxy.endpoint(), "backups", "", s3.keys()));
    site.fill("kept", 40);
    site.start_backup().succeed();
    let to = site.dir().join("restored");
    let fetched = |work: &dyn Fn()| {
        let before = proxy.bytes_to_client();
        work();
        proxy.bytes_to_client() - before
    };
    let whole = fetched(&|| drop(site.base("restored").succeed()));
    let nothing = fetched(&|| assert_eq!(site.delta(&to, &[]).code, Some(0)));
    let reference = snapshot(&to);
    fs::write(to.join("PG_VERSION"), "99\n").unwrap();
    fs::write(to.join("pg_hba.conf"), "").unwrap();
    let little = fetched(&|| assert_eq!(site.delta(&to, &[]).code, Some(0)));
    assert_same(&snapshot(&to), &reference, "after the delta");
    println!("whole {whole}, nothing {nothing}, little {little} bytes");
    assert!(nothing * 3 < whole && little < nothing + (6 << 20), "whole {whole}, nothing {nothing}, little {little}");
}

#[test]
fn d02_a_delta_that_is_killed_leaves_nothing_that_starts_and_the_next_ends_it() {
    kill_deltas(
        &[
            ("renameat", 1),
            ("renameat", 2),
            ("unlinkat", 3),
            ("openat", 500),
            ("fchmod", 2),
            ("syncfs", 1),
            ("renameat", 3),
        ],
        3,
    );
}

#[test]
#[ignore = "long: make soak"]
fn soak_d02_a_delta_that_is_killed_everywhere() {
    let calls = [
        ("renameat", 4, 1),
        ("unlinkat", 30, 2),
        ("openat", 2600, 60),
        ("write", 60, 5),
        ("fsync", 6, 1),
        ("flock", 1, 1),
    ];
    let all: Vec<(&str, usize)> =
        calls.iter().flat_map(|&(call, most, step)| (1..=most).step_by(step).map(move |n| (call, n))).collect();
    kill_deltas(&all, 40);
}

fn kill_deltas(calls: &[(&str, usize)], least: u32) {
    let site = Site::start();
    site.fill("kept", 24);
    site.start_backup().succeed();
    let reference = site.dir().join("reference");
    site.base("reference").succeed();
    let reference = snapshot(&reference);
    let to = site.dir().join("restored");
    site.base("restored").succeed();
    let mut unfinished = 0;
    for (call, n) in calls {
        spoil(&to);
        let spoilt = snapshot(&to);
        let outcome = killed_at("pgark-restore", call, u32::try_from(*n).unwrap())
            .arg("--config")
            .arg(site.config())
            .args(["base", "--delta", "--target-immediate", "--target-action=promote", "--to"])
            .arg(&to)
            .as_test_user()
            .run();
        assert!(was_killed(&outcome) || outcome.code == Some(0), "{call} {n}: {:?} {}", outcome.code, outcome.stderr);
        let mut now = snapshot(&to);
        if now.contains_key(Path::new("global/pg_control")) {
            // Nothing had been changed yet, or everything was done.
            now.retain(|path, _| !path.to_string_lossy().starts_with("pgark.restoring"));
            assert!(now == spoilt || now == reference, "{call} {n}: a half restore that a server would start");
        } else {
            unfinished += 1;
            let mut server = PostgresServer::start_restored(&to, site.server().major());
            assert!(!server.wait_until_ended().success(), "{call} {n}: the server started on half a restore");
            drop(server);
            let plain = site.base("restored").fail_with(2);
            assert!(plain.stderr.contains("go on with --delta"), "{}", plain.stderr);
        }
        println!("{call} {n}: killed {}", was_killed(&outcome));
        succeeded(&site.delta(&to, &[]));
        assert_same(&snapshot(&to), &reference, &format!("{call} {n}, and again"));
    }
    assert!(unfinished >= least, "only {unfinished} kills met a delta at work");
}

/// Damages files of every kind, as a crash of the machine may leave them: sizes and times look right.
fn spoil(directory: &Path) {
    let mut number = 0;
    for path in snapshot(directory).keys().map(|path| directory.join(path)) {
        if !path.is_file() || path.ends_with("pg_control") {
            continue;
        }
        number += 1;
        match number % 40 {
            0 => fs::remove_file(&path).unwrap(),
            13 => {
                let mut bytes = fs::read(&path).unwrap();
                if let Some(byte) = bytes.last_mut() {
                    *byte ^= 1;
                }
                let mode = fs::metadata(&path).unwrap().modified().unwrap();
                fs::write(&path, bytes).unwrap();
                fs::File::options().write(true).open(&path).unwrap().set_modified(mode).unwrap();
            }
            26 => fs::write(&path, b"short").unwrap(),
            _ => {}
        }
    }
    fs::write(directory.join("base/extra"), "x").unwrap();
    fs::set_permissions(directory.join("base"), fs::Permissions::from_mode(0o755)).unwrap();
    TestUser::get().own_all(directory);
}
