//! The whole way on every major version that pgark knows: pgbench runs throughout the backup, tables and indexes lie in
//! three tablespaces, the agent logs in over TLS with SCRAM and `sslmode=verify-full`, and the cluster is brought back
//! twice: to a time, and from there, on the timeline that began with the first restore, to a later time.

use std::path::Path;
use std::time::Duration;

use harness::{PostgresServer, ProtectedCluster, archive_all};

/// Tablespaces, and the last component of their places: 13 writes a backslash into its `tablespace_map` as it is.
const SPACES: [(&str, &str); 3] =
    [("accounts_space", "accounts"), ("index_space", r"in\dex"), ("history_space", "his tory")];

/// A time at which nothing was under way, and what had been done by then.
struct Moment {
    time: String,
    transactions: u64,
}

fn goes_the_whole_way(major: u32) {
    let mut cluster = ProtectedCluster::builder()
        .server(|server| server.major(major).setting("max_wal_size", "64MB"))
        .settings("[backup]\npart_size = \"16MiB\"\n")
        .over_tls()
        .start();
    assert_eq!(cluster.server().psql("SHOW server_version_num").len(), 6);
    assert!(cluster.server().psql("SHOW server_version_num").starts_with(&major.to_string()));
    let oids = fill(&cluster);

    let load = cluster.server().start_pgbench(2);
    let id = cluster.backup();
    load.stop();
    let first = moment(cluster.server_mut());
    cluster.server().psql("DROP TABLE pgbench_history");
    cluster.archive_all();
    cluster.server_mut().stop_fast();
    let shown = cluster.restore().args(["show", &id]).succeed().stdout;
    assert!(shown.contains(&format!("PostgreSQL {major}")), "{shown}");

    let mut second_life = restore(&cluster, &oids, "second-life", &first, ["latest", "promote"]);
    second_life.wait_until_promoted();
    assert_eq!(timeline(&second_life), "2");
    check(&second_life, &first);
    let load = second_life.start_pgbench(2);
    load.stop();
    let second = moment(&mut second_life);
    assert!(second.transactions > first.transactions);
    // Not a DROP: recovery that pauses before its commit holds the lock on the table.
    second_life.psql("DELETE FROM pgbench_accounts");
    archive_all(&second_life);
    second_life.stop_fast();

    let mut third_life = restore(&cluster, &oids, "third-life", &second, ["2", "pause"]);
    third_life.wait_until_paused();
    assert_eq!(third_life.check_pgbench_balances(), second.transactions);
    third_life.psql("SELECT pg_wal_replay_resume()");
    third_life.wait_until_promoted();
    assert_eq!(timeline(&third_life), "3");
    check(&third_life, &second);
}

/// Fills the cluster and returns the numbers of its tablespaces.
fn fill(cluster: &ProtectedCluster) -> Vec<String> {
    let server = cluster.server();
    for (space, name) in SPACES {
        let place = cluster.dir().create_dir(&format!("original/{name}"));
        server.psql(&format!("CREATE TABLESPACE {space} LOCATION '{}'", place.display()));
    }
    server.init_pgbench(2);
    server.psql(
        "ALTER TABLE pgbench_accounts SET TABLESPACE accounts_space;
         ALTER INDEX pgbench_accounts_pkey SET TABLESPACE index_space;
         ALTER TABLE pgbench_history SET TABLESPACE history_space;
         CREATE EXTENSION amcheck",
    );
    let number = |(space, _)| server.psql(&format!("SELECT oid FROM pg_tablespace WHERE spcname = '{space}'"));
    SPACES.map(number).to_vec()
}

fn moment(server: &mut PostgresServer) -> Moment {
    // pgbench is gone, but its last transactions may still be at work.
    server.wait_for("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'", "0");
    let transactions = server.check_pgbench_balances();
    let time = server.psql("SELECT clock_timestamp() + '10 ms'");
    std::thread::sleep(Duration::from_millis(50));
    Moment { time, transactions }
}

/// Restores to a moment, with the tablespaces in places of their own, and starts a server that archives.
fn restore(
    cluster: &ProtectedCluster,
    oids: &[String],
    name: &str,
    moment: &Moment,
    [timeline, action]: [&str; 2],
) -> PostgresServer {
    let mut arguments = vec!["--target-time".to_owned(), moment.time.clone()];
    arguments.extend(["--target-action", action, "--target-timeline", timeline].map(str::to_owned));
    for (oid, (_, place)) in oids.iter().zip(SPACES) {
        let place = cluster.dir().join(format!("{name}-spaces")).join(place);
        arguments.extend(["--tablespace".to_owned(), format!("{oid}={}", place.display())]);
    }
    let to = cluster.restore_to(name, &arguments);
    verify(cluster.server(), &to);
    let major = cluster.server().major();
    PostgresServer::builder().major(major).setting("archive_mode", "on").start_restored(to)
}

/// What was restored is what the server had put into its manifest.
fn verify(server: &PostgresServer, data_dir: &Path) {
    let said = server.run("pg_verifybackup", &["--no-parse-wal", &data_dir.display().to_string()]);
    assert!(said.contains("backup successfully verified"), "{said}");
}

fn timeline(server: &PostgresServer) -> String {
    server.psql("CHECKPOINT; SELECT timeline_id FROM pg_control_checkpoint()")
}

/// The books balance, no transaction is missing or too many, and every index agrees with its table.
fn check(server: &PostgresServer, moment: &Moment) {
    assert_eq!(server.check_pgbench_balances(), moment.transactions);
    for (space, name) in SPACES {
        let place =
            server.psql(&format!("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = '{space}'"));
        assert!(place.ends_with(&format!("-life-spaces/{name}")), "{place}");
    }
    if server.major() >= 14 {
        let said = server.run("pg_amcheck", &["--database", "postgres", "--heapallindexed"]);
        assert_eq!(said, "", "pg_amcheck complains");
    } else {
        // Each index is read whole, and for each of its tables every row is looked up in it.
        server.psql(
            "SELECT bt_index_check(index.oid, true) FROM pg_class index JOIN pg_am ON pg_am.oid = relam
             WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p'",
        );
        // And each table, with the long values that lie outside of it.
        server.run("pg_dump", &["--data-only", "--file", "/dev/null"]);
    }
}

#[test]
fn a09_postgresql_13_goes_the_whole_way() {
    goes_the_whole_way(13);
}

#[test]
fn a09_postgresql_14_goes_the_whole_way() {
    goes_the_whole_way(14);
}

#[test]
fn a12_postgresql_15_goes_the_whole_way() {
    goes_the_whole_way(15);
}

#[test]
fn a12_postgresql_16_goes_the_whole_way() {
    goes_the_whole_way(16);
}

#[test]
fn a12_postgresql_17_goes_the_whole_way() {
    goes_the_whole_way(17);
}

#[test]
fn a12_postgresql_18_goes_the_whole_way() {
    goes_the_whole_way(18);
}
