//! Where recovery ends: every kind of target, inclusive and exclusive, with every action, proven by the rows of a
//! server that really started.

use std::path::Path;

use harness::{PostgresServer, ProtectedCluster};

/// A cluster with a backup and, after it, a history of small transactions whose every position is known.
struct History {
    cluster: ProtectedCluster,
    /// The rows of `story` when the backup ended.
    steps: Vec<Step>,
}

/// One transaction that inserted its number into `story`.
struct Step {
    xid: String,
    /// Where its commit record begins.
    commit_lsn: String,
    commit_time: String,
}

impl History {
    /// Row 0 is in the backup, 1 to `steps` came later. `special` runs after the row of that number.
    fn of(steps: usize, special: &[(usize, &str)]) -> Self {
        let cluster =
            ProtectedCluster::builder().server(|server| server.setting("track_commit_timestamp", "on")).start();
        cluster.server().psql("CREATE TABLE story AS SELECT 0 AS n");
        cluster.backup();
        let mut history = Self { cluster, steps: Vec::new() };
        for number in 1..=steps {
            history.step(number);
            for (_, sql) in special.iter().filter(|(after, _)| *after == number) {
                history.cluster.server().psql(sql);
            }
        }
        history.cluster.archive_all();
        history
    }

    fn step(&mut self, number: usize) {
        let server = self.cluster.server();
        // On a quiet server the next record after the row is the commit.
        let answer = server.psql(&format!(
            "BEGIN; INSERT INTO story VALUES ({number}); SELECT pg_current_xact_id(), pg_current_wal_insert_lsn(); COMMIT"
        ));
        let (xid, commit_lsn) = answer.split_once('|').unwrap();
        let commit_time = server.psql(&format!("SELECT pg_xact_commit_timestamp('{xid}'::xid)"));
        self.steps.push(Step { xid: xid.to_owned(), commit_lsn: commit_lsn.to_owned(), commit_time });
    }

    /// Restores to a target and promotes there; returns the highest row, of rows that must be without a gap.
    fn last_row(&self, target: &[&str]) -> usize {
        let mut server = self.promoted(target);
        let row = last_row(&server);
        server.stop_fast();
        row
    }

    fn promoted(&self, target: &[&str]) -> PostgresServer {
        let mut arguments = target.to_vec();
        arguments.extend(["--target-action", "promote"]);
        let mut server = self.cluster.restore_and_start(&folder(target), &arguments);
        server.wait_until_promoted();
        server
    }
}

fn folder(target: &[&str]) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    target.join("_").chars().map(plain).collect()
}

fn last_row(server: &PostgresServer) -> usize {
    let answer = server.psql("SET lock_timeout = '10s'; SELECT max(n), count(*) FROM story");
    let (last, count) = answer.split_once('|').unwrap();
    let (last, count): (usize, usize) = (last.parse().unwrap(), count.parse().unwrap());
    assert_eq!(count, last + 1, "rows are missing or there twice");
    last
}

fn setting(data_dir: &Path, name: &str) -> Option<String> {
    let conf = std::fs::read_to_string(data_dir.join("postgresql.auto.conf")).unwrap();
    let last = conf.lines().rfind(|line| line.split('=').next().is_some_and(|key| key.trim() == name))?;
    Some(last.split_once('=')?.1.trim().to_owned())
}

#[test]
fn a_dropped_table_comes_back_with_every_row() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE orders AS SELECT n, md5(n::text) AS item FROM generate_series(1, 20000) n");
    cluster.backup();
    cluster.server().psql("INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(20001, 23456) n");
    let fingerprint = "SELECT count(*), sum(hashtext(orders::text)::bigint) FROM orders";
    let (before, moment) =
        (cluster.server().psql(fingerprint), cluster.server().psql("SELECT clock_timestamp() + '10 ms'"));
    // The moment lies between the last row and the mistake.
    std::thread::sleep(std::time::Duration::from_millis(50));
    cluster.server().psql("DROP TABLE orders");
    cluster.archive_all();
    let target = ["--target-time", &moment, "--target-action", "promote"];
    let mut restored = cluster.restore_and_start("restored", &target);
    restored.wait_until_promoted();
    assert_eq!(restored.psql(fingerprint), before);
    assert!(before.starts_with("23456|"));
    // The copy writes, and does not write into the archive of the original.
    restored.psql("INSERT INTO orders VALUES (0, 'new')");
    assert_eq!(setting(restored.data_dir(), "archive_mode").as_deref(), Some("'off'"));
    assert!(restored.psql("SHOW restore_command").contains("pgark-restore wal --config"));
    assert!(!restored.data_dir().join("recovery.signal").exists());
    restored.stop_fast();
    // And it starts again as an ordinary server.
    restored.start();
    assert_eq!(restored.psql("SELECT count(*) FROM orders; SELECT pg_is_in_recovery()"), "23457\nf");
}

#[test]
fn times_and_transactions_stop_after_or_before_their_commit() {
    let history = History::of(4, &[]);
    let Step { xid, commit_time, .. } = &history.steps[2 - 1];
    assert_eq!(history.last_row(&["--target-time", commit_time]), 2);
    assert_eq!(history.last_row(&["--target-time", commit_time, "--target-exclusive"]), 1);
    assert_eq!(history.last_row(&["--target-xid", xid]), 2);
    assert_eq!(history.last_row(&["--target-xid", xid, "--target-exclusive"]), 1);
}

#[test]
fn positions_stop_after_or_before_their_record() {
    let history = History::of(3, &[]);
    let lsn = &history.steps[2 - 1].commit_lsn;
    assert_eq!(history.last_row(&["--target-lsn", lsn]), 2);
    assert_eq!(history.last_row(&["--target-lsn", lsn, "--target-exclusive"]), 1);
}

#[test]
fn names_immediate_and_the_end_of_the_archive() {
    let point = "SELECT pg_create_restore_point('before the ''big'' change, 100 %')";
    let history = History::of(4, &[(2, point)]);
    assert_eq!(history.last_row(&["--target-name", "before the 'big' change, 100 %"]), 2);
    assert_eq!(history.last_row(&["--target-immediate"]), 0);
    // Without a target nothing but the end of the WAL ends recovery, and the server is promoted.
    let mut end = history.cluster.restore_and_start("end", &[] as &[&str]);
    end.wait_until_promoted();
    assert_eq!(last_row(&end), 4);
    assert_eq!(end.psql("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
}

#[test]
fn pause_is_the_usual_action_and_opens_when_told() {
    let history = History::of(3, &[]);
    let xid = &history.steps[2 - 1].xid;
    let mut server = history.cluster.restore_and_start("paused", &["--target-xid", xid]);
    server.wait_until_paused();
    assert_eq!(last_row(&server), 2);
    let refused = server.try_psql("INSERT INTO story VALUES (3)").unwrap_err();
    assert!(refused.contains("read-only transaction"), "{refused}");
    server.psql("SELECT pg_wal_replay_resume()");
    server.wait_until_promoted();
    server.psql("INSERT INTO story VALUES (3)");
    assert_eq!(last_row(&server), 3);
}

#[test]
fn shutdown_leaves_a_server_at_its_target() {
    let history = History::of(3, &[]);
    let xid = &history.steps[2 - 1].xid;
    let target = ["--target-xid", xid, "--target-action", "shutdown"];
    let mut server = history.cluster.restore_and_start("shut-down", &target);
    let status = server.wait_until_ended();
    assert!(server.log().contains("shutdown at recovery target"), "{}", server.log());
    // The startup process says 3; the postmaster takes that for an orderly end.
    assert!(status.success(), "the server ended with {status}");
    let data_dir = server.data_dir().to_owned();
    let state = server.run("pg_controldata", &["-D", &data_dir.display().to_string()]);
    assert!(state.contains("shut down in recovery"), "{state}");
    assert!(data_dir.join("recovery.signal").exists());
    // Told to promote instead, it goes on from there.
    let again = PostgresServer::builder().major(15).setting("recovery_target_action", "promote");
    let mut again = again.start_restored(&data_dir);
    again.wait_until_promoted();
    assert_eq!(last_row(&again), 2);
}
