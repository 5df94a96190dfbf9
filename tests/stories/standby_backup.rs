//! Backups that are taken from a standby, while the primary works, and while the standby stops being one.

use std::time::Duration;

use harness::{PostgresServer, Program, ProtectedCluster, newest_major};
use serde_json::Value;

/// The agent, connected to the standby.
fn agent_of(cluster: &ProtectedCluster, standby: &PostgresServer) -> Program {
    agent_at(cluster, &standby.connection_string())
}

/// The agent, which may choose between the two and must take the standby for each of its connections.
fn agent_of_either(cluster: &ProtectedCluster, standby: &PostgresServer) -> Program {
    let primary = cluster.server();
    let connection = format!(
        "host={},{} port={},{} user=postgres target_session_attrs=standby",
        primary.socket_dir().display(),
        standby.socket_dir().display(),
        primary.port(),
        standby.port()
    );
    agent_at(cluster, &connection)
}

fn agent_at(cluster: &ProtectedCluster, connection: &str) -> Program {
    let config = std::fs::read_to_string(cluster.config()).unwrap();
    let config = config.replace(&cluster.server().connection_string(), connection);
    let config = cluster.dir().write("standby.toml", config);
    Program::agent().config(&config).as_test_user()
}

/// pgbench runs on the primary; the WAL that the backup needs is in the primary's archive.
fn from_a_busy_primarys_standby(major: u32) {
    let cluster = ProtectedCluster::builder().server(|server| server.major(major)).start();
    let primary = cluster.server();
    primary.init_pgbench(4);
    let standby = primary.start_standby();
    let load = primary.start_pgbench(2);
    // The end of the backup lies in the segment that is being written; a busy primary goes on to the next one.
    let backup = agent_of_either(&cluster, &standby).args(["--quiet", "backup", "--json"]).start();
    std::thread::sleep(Duration::from_secs(3));
    primary.psql("SELECT pg_switch_wal()");
    let outcome = backup.wait();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    load.stop();
    let total = primary.check_pgbench_balances();
    cluster.archive_all();
    let id = serde_json::from_str::<Value>(&outcome.stdout).unwrap()["id"].as_str().unwrap().to_owned();
    let show = cluster.restore().args(["show", &id]).succeed().stdout;
    assert!(show.contains("a standby"), "{show}");

    let to = cluster.restore_to("at-the-end", &[] as &[&str]);
    assert!(!to.join("standby.signal").exists(), "the standby's own signal is not restored");
    let mut restored = PostgresServer::start_restored(&to, major);
    restored.wait_until_promoted();
    assert_eq!(restored.check_pgbench_balances(), total);
    drop(restored);
    let mut restored =
        cluster.restore_and_start("immediate", &["--backup", &id, "--target-immediate", "--target-action", "promote"]);
    restored.wait_until_promoted();
    restored.check_pgbench_balances();
}

#[test]
fn a_standby_of_a_busy_primary_is_backed_up() {
    from_a_busy_primarys_standby(15);
}

#[test]
fn a_standby_of_a_busy_primary_is_backed_up_with_postgresql_13() {
    from_a_busy_primarys_standby(13);
}

#[test]
fn a_standby_of_a_busy_primary_is_backed_up_with_the_newest_postgresql() {
    from_a_busy_primarys_standby(newest_major());
}

/// Nobody archives: the standby itself sends the WAL.
#[test]
fn the_wal_comes_from_the_standby_where_nobody_archives() {
    let cluster = ProtectedCluster::builder().without_archiving().start();
    let primary = cluster.server();
    primary.init_pgbench(2);
    let standby = primary.start_standby();
    let load = primary.start_pgbench(2);
    let backup = agent_of(&cluster, &standby).args(["--quiet", "backup"]).start();
    std::thread::sleep(Duration::from_secs(3));
    primary.psql("SELECT pg_switch_wal()");
    let outcome = backup.wait();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    load.stop();
    let mut restored = cluster.restore_and_start("restored", &["--target-immediate", "--target-action", "promote"]);
    restored.wait_until_promoted();
    restored.check_pgbench_balances();
}

/// Its pages could come from two histories: the server ends the backup, and nothing claims otherwise.
#[test]
fn a_standby_that_is_promoted_meanwhile_fails_the_backup() {
    let cluster = ProtectedCluster::start();
    cluster.server().init_pgbench(4);
    let mut standby = cluster.server().start_standby();
    // About 60 MB at 4 MB a second.
    let backup = agent_of(&cluster, &standby).args(["backup", "--max-rate", "4MB"]).start();
    std::thread::sleep(Duration::from_secs(3));
    standby.promote();
    let outcome = backup.wait();
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("promoted"), "{}", outcome.stderr);
    let list = cluster.restore().args(["list"]).succeed().stdout;
    assert!(list.contains("no finished backup"), "{list}");
    // The next one is a backup of the new primary, on its new timeline.
    let outcome = agent_of(&cluster, &standby).args(["backup"]).succeed();
    assert!(outcome.stderr.contains("timeline=2"), "{}", outcome.stderr);
}
