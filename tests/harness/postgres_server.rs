use harness::{PostgresServer, newest_major};

fn survives_a_crash_under_load(major: u32) {
    let mut server = PostgresServer::builder().major(major).start();
    assert!(server.psql("SHOW server_version").starts_with(&major.to_string()));
    assert_eq!(server.psql("SHOW data_checksums"), "on");
    server.init_pgbench(1);
    let load = server.start_pgbench(2);
    server.psql("CHECKPOINT");
    server.kill9();
    load.stop_anyhow();
    server.start();
    assert!(server.check_pgbench_balances() > 0);
    let load = server.start_pgbench(2);
    load.stop();
    server.restart();
    assert!(server.check_pgbench_balances() > 0);
    server.stop_fast();
    assert!(!server.is_running());
}

#[test]
fn postgres_15_survives_a_crash_under_load() {
    survives_a_crash_under_load(15);
}

#[test]
fn the_newest_postgres_survives_a_crash_under_load() {
    survives_a_crash_under_load(newest_major());
}

#[test]
fn initdb_options_and_settings_reach_the_server() {
    let server = PostgresServer::builder()
        .own_identity()
        .data_checksums(false)
        .wal_segment_megabytes(1)
        .setting("work_mem", "5MB")
        .hba("host all nobody 127.0.0.1/32 reject")
        .tcp()
        .start();
    assert_eq!(server.psql("SHOW wal_segment_size; SHOW data_checksums; SHOW work_mem"), "1MB\noff\n5MB");
    let tcp = server.tcp_connection_string();
    let rows = server.run("psql", &["-XAtc", "SELECT 1", "-d", &tcp]);
    assert_eq!(rows, "1\n");
    let message = server.try_psql("SELECT nothing").unwrap_err();
    assert!(message.contains("column \"nothing\" does not exist"), "{message}");
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let server = PostgresServer::start_default();
    server.psql("CREATE TABLE t AS SELECT 42 AS answer");
    let mut standby = server.start_standby();
    standby.wait_for("SELECT answer FROM t", "42");
    standby.promote();
    standby.psql("INSERT INTO t VALUES (43)");
    assert_eq!(server.psql("SELECT count(*) FROM t"), "1");
}

#[test]
fn a_restored_directory_starts_without_archiving() {
    let dir = harness::TempDir::for_test_user("restored-test");
    let server = PostgresServer::builder().archive_command("exit 1").start();
    server.psql("CREATE TABLE t AS SELECT 42 AS answer");
    let mut backup = server.command("pg_basebackup");
    let output = backup.arg("--checkpoint=fast").arg("--pgdata").arg(dir.join("data")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut restored = PostgresServer::start_restored(dir.join("data"), 15);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT answer FROM t; SHOW archive_mode"), "42\noff");
    // What pg_basebackup brought is owned by root until the harness hands it over.
    drop(restored);
    assert!(dir.join("data/PG_VERSION").exists());
}
