//! Several histories that grew from one backup, and which of them a restore follows.

use std::fs;

use harness::{PostgresServer, ProtectedCluster, archive_all};

/// A restored server that takes the place of the original: it archives into the same repository.
fn start_archiving(cluster: &ProtectedCluster, name: &str, arguments: &[&str]) -> PostgresServer {
    let to = cluster.restore_to(name, arguments);
    let mut server = PostgresServer::builder().setting("archive_mode", "on").start_restored(to);
    server.wait_until_promoted();
    server
}

fn insert(server: &PostgresServer, row: &str) -> String {
    server.psql(&format!("INSERT INTO story VALUES ('{row}')"));
    server.psql("SELECT pg_current_wal_insert_lsn()")
}

fn rows(server: &PostgresServer) -> String {
    server.psql("SELECT string_agg(what, ' ' ORDER BY what) FROM story")
}

#[test]
fn siblings_of_one_backup_are_told_apart() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE story AS SELECT text 'a0' AS what");
    let backup = cluster.backup();
    let first = insert(cluster.server(), "a1");
    let second = insert(cluster.server(), "a2");
    insert(cluster.server(), "a3");
    cluster.archive_all();

    let at = |lsn: &str, timeline: &str| -> Vec<String> {
        ["--target-lsn", lsn, "--target-exclusive", "--target-timeline", timeline, "--target-action", "promote"]
            .map(str::to_owned)
            .to_vec()
    };
    let start = |name: &str, arguments: Vec<String>| {
        start_archiving(&cluster, name, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let older = start("older", at(&first, "latest"));
    insert(&older, "b1");
    archive_all(&older);
    // The second one leaves timeline 1 later than the first did; 2 is taken, so it becomes 3.
    let mut newer = start("newer", at(&second, "current"));
    insert(&newer, "c1");
    archive_all(&newer);
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    newer.psql("CHECKPOINT");
    assert_eq!((older.psql(timeline), newer.psql(timeline)), ("2".to_owned(), "3".to_owned()));

    // All of this comes from the one backup on timeline 1.
    for (timeline, expected) in
        [("latest", "a0 a1 a2 c1"), ("2", "a0 a1 b1"), ("1", "a0 a1 a2 a3"), ("current", "a0 a1 a2 a3")]
    {
        let arguments = ["--backup", &backup, "--target-timeline", timeline];
        let mut server = cluster.restore_and_start(&format!("to-{timeline}"), &arguments);
        server.wait_until_promoted();
        assert_eq!(rows(&server), expected, "timeline {timeline}");
    }

    // A backup of timeline 3 serves timeline 3 only; for the others the first backup is found by itself.
    let config = fs::read_to_string(cluster.config()).unwrap();
    let config = config.replace(&cluster.server().connection_string(), &newer.connection_string());
    let config = cluster.dir().write("newer.toml", config);
    harness::Program::agent().config(&config).args(["--quiet", "backup"]).as_test_user().succeed();
    insert(&newer, "c2");
    archive_all(&newer);
    newer.stop_fast();
    let mut server = cluster.restore_and_start("newest", &[] as &[&str]);
    server.wait_until_promoted();
    assert_eq!(rows(&server), "a0 a1 a2 c1 c2");
    let plan = cluster.restore().args(["base", "--dry-run", "--target-timeline", "2"]).succeed();
    assert!(plan.stdout.contains(&backup), "{}", plan.stdout);
    let list = cluster.restore().args(["list", "--json"]).succeed().stdout;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let newest = list["backups"][1]["id"].as_str().unwrap();
    let arguments = ["base", "--dry-run", "--target-timeline", "2", "--backup", newest];
    let refused = cluster.restore().args(arguments).fail_with(3);
    assert!(refused.stderr.contains("timeline 2 does not contain"), "{}", refused.stderr);
}
