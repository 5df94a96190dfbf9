//! Tablespaces go back to where they were, to another place, or stay within the data directory.

use std::fs;

use harness::{PostgresServer, ProtectedCluster};

#[test]
fn d05_tablespaces_are_kept_moved_and_in_place() {
    let mut cluster = ProtectedCluster::start();
    let kept = cluster.dir().create_dir("kept tablespace");
    let moved = cluster.dir().create_dir("moved");
    let server = cluster.server();
    server.psql(&format!(
        "CREATE TABLESPACE kept LOCATION '{}';
         CREATE TABLESPACE moved LOCATION '{}';
         SET allow_in_place_tablespaces = on;
         CREATE TABLESPACE inside LOCATION '';",
        kept.display(),
        moved.display()
    ));
    for (space, rows) in [("kept", 1000), ("moved", 2000), ("inside", 3000)] {
        server.psql(&format!(
            "CREATE TABLE in_{space} TABLESPACE {space} AS SELECT n, md5(n::text) FROM generate_series(1, {rows}) n"
        ));
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
    let base = |tablespaces: &[String]| {
        let base = cluster.restore().args(["--quiet", "base", "--to"]).arg(&to);
        tablespaces.iter().fold(base, |base, given| base.arg("--tablespace").arg(given))
    };
    let move_it = format!("{moved_oid}={}", new_place.display());
    // The original is still where the other tablespace would go back to.
    let refused = base(std::slice::from_ref(&move_it)).fail_with(2);
    assert!(refused.stderr.contains("kept tablespace"), "{}", refused.stderr);
    let refused = base(&[move_it.clone(), format!("{inside_oid}={}", new_place.display())]).fail_with(2);
    assert!(refused.stderr.contains("cannot be moved"), "{}", refused.stderr);
    let refused = base(&[move_it.clone(), format!("99={}", new_place.display())]).fail_with(2);
    assert!(refused.stderr.contains("no tablespace 99"), "{}", refused.stderr);
    assert!(!to.exists() && !new_place.exists(), "refused, but something was created");

    cluster.server_mut().stop_fast();
    fs::rename(&kept, cluster.dir().join("original")).unwrap();
    let base = cluster.restore().args(["--quiet", "base", "--to"]).arg(&to);
    base.arg("--tablespace").arg(&move_it).args(["--backup", &backup]).succeed();
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);

    let mut restored = PostgresServer::start_restored(&to, 15);
    restored.wait_until_promoted();
    let counts = "SELECT (SELECT count(*) FROM in_kept), (SELECT count(*) FROM in_moved),
                         (SELECT count(*) FROM in_inside), (SELECT count(*) FROM later)";
    assert_eq!(restored.psql(counts), "1000|2345|3000|77");
    let location = |oid: &str| restored.psql(&format!("SELECT pg_tablespace_location({oid})"));
    assert_eq!(location(&kept_oid), kept.display().to_string());
    assert_eq!(location(&moved_oid), new_place.display().to_string());
    assert_eq!(location(&inside_oid), format!("pg_tblspc/{inside_oid}"));
    // The original of the moved one was not written to: it still has what the stopped server left.
    assert!(fs::read_dir(&moved).unwrap().next().is_some());
    restored.stop_fast();
    restored.start();
    assert_eq!(restored.psql(counts), "1000|2345|3000|77");
}
