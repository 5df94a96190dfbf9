//! Standbys that live from the archive, and an archive that goes away in the middle of a recovery.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::{PostgresServer, ProtectedCluster, wait_until};

#[test]
fn a_standby_follows_the_archive_until_it_is_promoted() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n");
    cluster.backup();
    let to = cluster.restore_to("standby", &["--standby"]);
    assert!(to.join("standby.signal").exists() && !to.join("recovery.signal").exists());
    let mut standby = PostgresServer::builder().setting("wal_retrieve_retry_interval", "200ms").start_restored(&to);
    standby.wait_until_ready();
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t");
    for rows in [200, 300] {
        cluster.server().psql(&format!("INSERT INTO t SELECT n FROM generate_series({} + 1, {rows}) n", rows - 100));
        cluster.archive_all();
        standby.wait_for("SELECT count(*) FROM t", &rows.to_string());
    }
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t");
    standby.promote();
    standby.psql("INSERT INTO t VALUES (301)");
}

#[test]
fn d08_an_archive_that_goes_away_stops_recovery_instead_of_ending_it() {
    let cluster = ProtectedCluster::builder().server(|server| server.wal_segment_megabytes(1)).start();
    let server = cluster.server();
    server.psql("CREATE TABLE t (n int)");
    cluster.backup();
    for round in 0..100 {
        server.psql(&format!("INSERT INTO t VALUES ({round}); SELECT FROM pg_switch_wal()"));
    }
    cluster.archive_all();
    assert!(cluster.archived_segments(1).len() > 100);
    let to = cluster.restore_to("restored", &[] as &[&str]);
    let mut restored = PostgresServer::start_restored(&to, 15);
    wait_until("some segments of many", Duration::from_secs(60), || {
        (restored.log().matches("restored log file").count() > 5).then_some(())
    });
    let (there, away) = (cluster.repository_dir(), cluster.dir().join("away"));
    fs::rename(&there, &away).unwrap();
    let status = restored.wait_until_ended();
    assert!(!status.success(), "the server ended with {status}");
    let log = restored.log();
    assert!(!log.contains("selected new timeline ID"), "the server was promoted:\n{log}");
    assert!(to.join("recovery.signal").exists());

    // Still away: a start gets nowhere either.
    let mut restored = PostgresServer::start_restored(&to, 15);
    assert!(!restored.wait_until_ended().success());
    assert!(!restored.log().contains("selected new timeline ID"), "{}", restored.log());

    fs::rename(&away, &there).unwrap();
    let mut restored = PostgresServer::start_restored(&to, 15);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*), max(n) FROM t"), "100|99");
}

#[test]
fn d09_a_standby_outlives_an_archive_that_goes_away() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE t AS SELECT 1 AS n");
    cluster.backup();
    let to = cluster.restore_to("standby", &["--standby"]);
    let mut standby = PostgresServer::builder().setting("wal_retrieve_retry_interval", "200ms").start_restored(&to);
    standby.wait_until_ready();
    let (there, away) = (cluster.repository_dir(), cluster.dir().join("away"));
    fs::rename(&there, &away).unwrap();
    let warned = |standby: &PostgresServer| standby.log().contains("trying again");
    wait_until("a warning of the standby", Duration::from_secs(60), || warned(&standby).then_some(()));
    wait_until("the end of a fetch", Duration::from_secs(60), || failed_fetch(&standby, &to).then_some(()));
    assert!(standby.is_running());
    assert_eq!(standby.psql("SELECT count(*) FROM t"), "1");
    fs::rename(&away, &there).unwrap();
    cluster.server().psql("INSERT INTO t VALUES (2)");
    cluster.archive_all();
    standby.wait_for("SELECT count(*) FROM t", "2");
}

/// One fetch has used up its tries and said so.
fn failed_fetch(standby: &PostgresServer, _: &Path) -> bool {
    standby.log().lines().any(|line| line.contains("error:") || line.contains("ERROR"))
}
