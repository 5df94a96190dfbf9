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

/// Writes a row; returns a moment after it and before whatever comes next.
fn insert_and_look_at_the_clock(server: &PostgresServer, row: &str) -> String {
    insert(server, row);
    server.psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00'")
}

struct Moment {
    timeline: String,
    time: String,
    /// What is there at this time.
    rows: String,
}

/// Timeline 1 → 2 → 3 → 4, and 5 as a sibling of 3 that left 2 earlier. Each writes three rows, and after the first and
/// the second there is a moment to come back to.
#[test]
fn d20_each_branch_of_three_promotions_and_a_sibling_is_restored_to_a_chosen_moment() {
    let mut cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE story (what text)");
    let first_backup = cluster.backup();
    let mut moments: Vec<Moment> = Vec::new();
    let write = |moments: &mut Vec<Moment>, server: &PostgresServer, era: char, before: &str| {
        let mut rows = before.to_owned();
        for number in 1..=3 {
            let row = format!("{era}{number}");
            let moment = insert_and_look_at_the_clock(server, &row);
            rows = format!("{rows} {row}").trim().to_owned();
            if number < 3 {
                let timeline = server.psql("SELECT timeline_id FROM pg_control_checkpoint()");
                moments.push(Moment { timeline, time: moment, rows: rows.clone() });
            }
        }
        archive_all(server);
        rows
    };
    let rows_of_one = write(&mut moments, cluster.server(), 'a', "");
    cluster.server_mut().stop_fast();
    let end = ["--target-action", "promote"];
    let promoted = |name: &str, arguments: &[&str], timeline: &str| {
        let server = start_archiving(&cluster, name, &[&end, arguments].concat());
        server.psql("CHECKPOINT");
        assert_eq!(server.psql("SELECT timeline_id FROM pg_control_checkpoint()"), timeline);
        server
    };
    let mut server = promoted("two", &[], "2");
    let rows_of_two = write(&mut moments, &server, 'b', &rows_of_one);
    server.stop_fast();
    let mut server = promoted("three", &[], "3");
    let rows_of_three = write(&mut moments, &server, 'c', &rows_of_two);
    // A backup in the middle of the history: what lies behind it is restored from here, all else from the first one.
    let config = fs::read_to_string(cluster.config()).unwrap();
    let config = config.replace(&cluster.server().connection_string(), &server.connection_string());
    let config = cluster.dir().write("three.toml", config);
    harness::Program::agent().config(&config).args(["--quiet", "backup"]).as_test_user().succeed();
    server.stop_fast();
    let mut server = promoted("four", &[], "4");
    write(&mut moments, &server, 'd', &rows_of_three);
    server.stop_fast();
    let after_b1 = format!("{rows_of_one} b1");
    let moment = moments.iter().find(|moment| moment.rows == after_b1).unwrap();
    let mut server = promoted("five", &["--target-timeline", "2", "--target-time", &moment.time], "5");
    write(&mut moments, &server, 'e', &after_b1);
    server.stop_fast();

    for (place, Moment { timeline, time, rows: expected }) in moments.iter().enumerate() {
        // The moments of timelines 1 to 3 lie on the way to 4 as well.
        let paths: &[&str] = if ["4", "5"].contains(&timeline.as_str()) { &[timeline] } else { &[timeline, "4"] };
        for path in paths {
            let arguments = ["--target-time", time, "--target-timeline", path, "--target-action", "promote"];
            let mut server = cluster.restore_and_start(&format!("moment-{place}-{path}"), &arguments);
            server.wait_until_promoted();
            assert_eq!(rows(&server), *expected, "{time} on timeline {timeline}, by way of {path}");
        }
    }
    let plan = cluster.restore().args(["base", "--dry-run", "--target-timeline", "5"]).succeed();
    assert!(plan.stdout.contains(&first_backup), "{}", plan.stdout);
    assert!(plan.stdout.contains("--target-timeline 4"), "the other branch is not hidden: {}", plan.stdout);
}
