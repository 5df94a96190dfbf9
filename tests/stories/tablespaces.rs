//! Tablespaces go back to where they were, to another place, or stay within the data directory.

use std::fs;

use harness::{PostgresServer, ProtectedCluster, newest_major};

/// A tablespace within the data directory is only in the backups of servers from 16 on.
fn kept_moved_and_in_place(major: u32) {
    let with_inside = major >= 16;
    let builder = ProtectedCluster::builder();
    let mut cluster = builder.server(|server| server.major(major).setting("allow_in_place_tablespaces", "on")).start();
    let kept = cluster.dir().create_dir("kept tablespace");
    let moved = cluster.dir().create_dir("moved");
    let server = cluster.server();
    for (space, place, rows) in [
        ("kept", kept.display().to_string(), 1000),
        ("moved", moved.display().to_string(), 2000),
        ("inside", String::new(), 3000),
    ] {
        server.psql(&format!(
            "CREATE TABLESPACE {space} LOCATION '{place}';
             CREATE TABLE in_{space} TABLESPACE {space} AS SELECT n, md5(n::text) FROM generate_series(1, {rows}) n"
        ));
    }
    if !with_inside {
        let refused = cluster.agent().args(["--quiet", "backup"]).fail_with(1);
        assert!(refused.stderr.contains("and there are some: inside"), "{}", refused.stderr);
        server.psql("ALTER TABLE in_inside SET TABLESPACE pg_default; DROP TABLESPACE inside");
    }
    let oid = |name: &str| server.psql(&format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'"));
    let (kept_oid, moved_oid, inside_oid) = (oid("kept"), oid("moved"), oid("inside"));
    let backup = cluster.backup();
    // What comes after the backup is written into the tablespaces by recovery.
    server.psql("INSERT INTO in_moved SELECT n, '' FROM generate_series(2001, 2345) n");
    server.psql("CREATE TABLE later TABLESPACE kept AS SELECT n FROM generate_series(1, 77) n");
    cluster.archive_all();

    let to = cluster.dir().join("restored");
    let new_place = cluster.dir().join("new/place of it");
    let refused = |tablespaces: &[&str], words: &str| {
        let base = cluster.restore().args(["--quiet", "base", "--to"]).arg(&to);
        let base = tablespaces.iter().fold(base, |base, given| base.arg("--tablespace").arg(given));
        let refused = base.fail_with(2);
        assert!(refused.stderr.contains(words), "no {words:?} in {}", refused.stderr);
        assert!(!to.exists() && !new_place.exists(), "refused, but something was created");
    };
    let move_it = format!("{moved_oid}={}", new_place.display());
    // The original is still where the other tablespace would go back to.
    refused(&[&move_it], "kept tablespace");
    refused(&[&move_it, &format!("99={}", new_place.display())], "no tablespace 99");
    refused(&[&format!("{kept_oid}={}", new_place.display()), &move_it], "is used for two tablespaces");
    refused(&[&move_it, &move_it], "is given twice");
    refused(&[&format!("{moved_oid}=relative")], "is not an absolute path");
    let within = format!("{moved_oid}={}", to.join("within").display());
    refused(&[&format!("{kept_oid}={}", new_place.display()), &within], "lie in each other");
    if with_inside {
        refused(&[&format!("{inside_oid}={}", new_place.display())], "cannot be moved");
    }

    cluster.server_mut().stop_fast();
    fs::rename(&kept, cluster.dir().join("original")).unwrap();
    let base = cluster.restore().args(["--quiet", "base", "--to"]).arg(&to);
    base.arg("--tablespace").arg(&move_it).args(["--backup", &backup]).succeed();
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);

    let mut restored = PostgresServer::start_restored(&to, major);
    restored.wait_until_promoted();
    let counts = "SELECT (SELECT count(*) FROM in_kept), (SELECT count(*) FROM in_moved),
                         (SELECT count(*) FROM in_inside), (SELECT count(*) FROM later)";
    assert_eq!(restored.psql(counts), "1000|2345|3000|77");
    let location = |oid: &str| restored.psql(&format!("SELECT pg_tablespace_location({oid})"));
    assert_eq!(location(&kept_oid), kept.display().to_string());
    assert_eq!(location(&moved_oid), new_place.display().to_string());
    if with_inside {
        assert_eq!(location(&inside_oid), format!("pg_tblspc/{inside_oid}"));
    }
    // The original of the moved one was not written to: it still has what the stopped server left.
    assert!(fs::read_dir(&moved).unwrap().next().is_some());
    restored.stop_fast();
    restored.start();
    assert_eq!(restored.psql(counts), "1000|2345|3000|77");
}

#[test]
fn d05_tablespaces_are_kept_and_moved() {
    kept_moved_and_in_place(15);
}

#[test]
fn d05_tablespaces_are_kept_moved_and_in_place_by_the_newest_postgresql() {
    kept_moved_and_in_place(newest_major());
}
