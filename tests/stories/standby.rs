//! Standbys that live from the archive, and an archive that goes away in the middle of a recovery.

use std::fs;
use std::time::Duration;

use harness::{PostgresServer, ProtectedCluster, archive_all, wait_until};

#[test]
fn a_standby_follows_the_archive_over_timelines_until_it_is_promoted() {
    let mut cluster = ProtectedCluster::start();
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

    // The primary is lost, and a restore takes its place on a timeline of its own.
    cluster.server_mut().stop_immediate();
    let to = cluster.restore_to("new-primary", &[] as &[&str]);
    let mut primary = PostgresServer::builder().setting("archive_mode", "on").start_restored(&to);
    primary.wait_until_promoted();
    primary.psql("INSERT INTO t SELECT n FROM generate_series(301, 400) n");
    archive_all(&primary);
    standby.wait_for("SELECT count(*) FROM t", "400");
    standby.promote();
    standby.psql("INSERT INTO t VALUES (401); CHECKPOINT");
    assert_eq!(standby.psql("SELECT timeline_id FROM pg_control_checkpoint()"), "3");
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

    // Still away: a start gets nowhere either, and an empty folder, as an unmounted disk leaves it, changes nothing.
    for is_empty_folder in [false, true] {
        if is_empty_folder {
            cluster.dir().create_dir("repository");
        }
        let mut restored = PostgresServer::start_restored(&to, 15);
        assert!(!restored.wait_until_ended().success());
        assert!(!restored.log().contains("selected new timeline ID"), "{}", restored.log());
    }

    fs::remove_dir(&there).unwrap();
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
    wait_for_log(&standby, "create it, or mount it");
    // An unmounted disk leaves an empty folder behind: nothing says that WAL was never archived.
    cluster.dir().create_dir("repository");
    wait_for_log(&standby, "trying again");
    wait_for_log(&standby, "is it mounted");
    assert!(standby.is_running());
    assert_eq!(standby.psql("SELECT count(*) FROM t"), "1");
    fs::remove_dir(&there).unwrap();
    fs::rename(&away, &there).unwrap();
    cluster.server().psql("INSERT INTO t VALUES (2)");
    cluster.archive_all();
    standby.wait_for("SELECT count(*) FROM t", "2");
}

fn wait_for_log(server: &PostgresServer, words: &str) {
    wait_until(&format!("{words:?} in the log"), Duration::from_secs(60), || {
        server.log().contains(words).then_some(())
    });
}
