//! `pgark-agent run` when everything around it fails: the host with the server and the agent, the network, the server's
//! timeline, the slot. The judge is the log of what was acknowledged to clients.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::{FaultProxy, PostgresServer, ProtectedCluster, RunningProgram, S3Server, TempDir};

use crate::receiving;

const LIMIT: Duration = Duration::from_secs(60);
/// `partial_interval` and a second.
const MAY_BE_LOST: Duration = Duration::from_secs(2);

/// Clients that insert as fast as they can, and note when each transaction was acknowledged.
struct Clients {
    pgbench: Child,
    folder: TempDir,
    round: u32,
}

impl Clients {
    fn start(server: &PostgresServer, round: u32) -> Self {
        let folder = TempDir::for_test_user("clients");
        let script = folder.write(
            "insert.sql",
            "INSERT INTO acknowledged VALUES (:round, :client_id, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 10)));\n",
        );
        let pgbench = server
            .command("pgbench")
            .current_dir(folder.join("."))
            .args(["--no-vacuum", "--time=3600", "--client=8", "--jobs=2", "--log", "--log-prefix=log"])
            .arg(format!("--define=round={round}"))
            .arg("--file")
            .arg(script)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { pgbench, folder, round }
    }

    /// How many transactions of each client were acknowledged before a moment. Their server is gone.
    fn acknowledged_before(mut self, moment: SystemTime) -> BTreeMap<u32, u64> {
        self.pgbench.wait().unwrap();
        let moment = moment.duration_since(UNIX_EPOCH).unwrap();
        let mut counts = BTreeMap::new();
        for entry in fs::read_dir(self.folder.join(".")).unwrap().flatten() {
            if !entry.file_name().to_string_lossy().starts_with("log.") {
                continue;
            }
            for line in fs::read_to_string(entry.path()).unwrap().lines() {
                let fields: Vec<u64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
                let [client, _, _, _, seconds, microseconds, ..] = fields[..] else { continue };
                if Duration::from_secs(seconds) + Duration::from_micros(microseconds) <= moment {
                    *counts.entry(client as u32).or_default() += 1;
                }
            }
        }
        counts
    }
}

fn stored_of(server: &PostgresServer, round: u32) -> BTreeMap<u32, u64> {
    let rows = server.psql(&format!("SELECT client, count(*) FROM acknowledged WHERE round = {round} GROUP BY client"));
    rows.lines()
        .map(|row| {
            let (client, count) = row.split_once('|').unwrap();
            (client.parse().unwrap(), count.parse().unwrap())
        })
        .collect()
}

/// The host of the server and the agent dies again and again; each time the repository alone must do.
fn host_dies(rounds: u32, is_synchronous: bool) {
    let s3 = S3Server::start();
    let dir = TempDir::for_test_user("s3-secret");
    let mut cluster = ProtectedCluster::builder()
        .without_archiving()
        .repository(&s3.repository(&dir, "s3"))
        .settings(&format!("[compression]\nlevel = 1\n[stream]\nsynchronous = {is_synchronous}\n"))
        .start();
    cluster.server().psql("CREATE TABLE acknowledged (round int, client int, noise text)");
    let mut run = receiving::start(&cluster);
    if is_synchronous {
        cluster.server_mut().alter_system("synchronous_standby_names", "pgark");
    }
    cluster.backup();
    let mut noise = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    for round in 1..=rounds {
        if round % 10 == 0 {
            cluster.backup();
        }
        let clients = Clients::start(cluster.server(), round);
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(4000 + u64::from(noise >> 8) % 4000));
        let killed = SystemTime::now();
        let messages = run.kill9().stderr;
        cluster.server_mut().kill9();
        let ended = SystemTime::now();
        let certain = if is_synchronous { ended } else { killed - MAY_BE_LOST };
        let number = clients.round;
        let acknowledged = clients.acknowledged_before(certain);

        let name = format!("restored-{round}");
        let mut restored = cluster.restore_and_start(&name, &[] as &[&str]);
        restored.wait_until_promoted();
        let stored = stored_of(&restored, number);
        println!("round {round}: {:?} acknowledged, {:?} restored", total(&acknowledged), total(&stored));
        assert!(total(&acknowledged) > 50, "{acknowledged:?}\n{messages}");
        for (client, count) in &acknowledged {
            let there = stored.get(client).copied().unwrap_or_default();
            assert!(there >= *count, "client {client}: {count} were acknowledged, {there} are there\n{messages}");
        }
        drop(restored);
        fs::remove_dir_all(cluster.dir().join(&name)).unwrap();
        cluster.server_mut().start();
        run = receiving::start(&cluster);
    }
    receiving::stop(run);
}

fn total(counts: &BTreeMap<u32, u64>) -> u64 {
    counts.values().sum()
}

#[test]
fn heavy_what_was_committed_two_seconds_ago_survives_the_host() {
    host_dies(2, false);
}

#[test]
fn heavy_synchronous_commits_survive_the_host() {
    host_dies(2, true);
}

#[test]
#[ignore = "long: make soak"]
fn soak_what_was_committed_two_seconds_ago_survives_the_host() {
    host_dies(50, false);
}

#[test]
#[ignore = "long: make soak"]
fn soak_synchronous_commits_survive_the_host() {
    host_dies(20, true);
}

/// Waits until the agent streams for the n-th time.
fn wait_for_stream(run: &RunningProgram, times: usize) {
    let started = Instant::now();
    while run.stderr().matches("receiving WAL").count() < times {
        assert!(started.elapsed() < LIMIT, "the agent did not come back:\n{}", run.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What is restored from the repository alone.
fn restored_rows(cluster: &ProtectedCluster, name: &str) -> String {
    let mut restored = cluster.restore_and_start(name, &[] as &[&str]);
    restored.wait_until_promoted();
    restored.psql("SELECT string_agg(what, ' ' ORDER BY what) FROM story")
}

#[test]
fn a44_the_server_stops_and_starts_quickly_and_nothing_is_missing() {
    let mut cluster = ProtectedCluster::builder().without_archiving().start();
    cluster.server().psql("CREATE TABLE story AS SELECT text 'a' AS what");
    let run = receiving::start(&cluster);
    cluster.backup();
    cluster.server().psql("INSERT INTO story VALUES ('b')");
    let started = Instant::now();
    cluster.server_mut().stop_fast();
    assert!(started.elapsed() < Duration::from_secs(8), "the shutdown took {:?}", started.elapsed());
    // Everything up to the shutdown is there while the server is down.
    assert_eq!(restored_rows(&cluster, "during"), "a b");
    cluster.server_mut().start();
    cluster.server().psql("INSERT INTO story VALUES ('c')");
    wait_for_stream(&run, 2);
    receiving::wait_until_flushed(LIMIT, cluster.server());
    cluster.server_mut().kill9();
    cluster.server_mut().start();
    cluster
        .server()
        .psql("INSERT INTO story VALUES ('d'); SELECT FROM pg_switch_wal(); INSERT INTO story VALUES ('e')");
    wait_for_stream(&run, 3);
    receiving::wait_until_flushed(LIMIT, cluster.server());
    let list = cluster.restore().arg("list").succeed().stdout;
    assert!(list.contains("pieces of the next one") && !list.contains("(gap)"), "{list}");
    let messages = receiving::stop(run);
    assert!(!messages.contains("new backup"), "{messages}");
    assert_eq!(restored_rows(&cluster, "after"), "a b c d e");
}

#[test]
fn a37_a38_a_lost_slot_is_said_and_gaps_are_named_or_healed() {
    let mut cluster = ProtectedCluster::builder().without_archiving().start();
    cluster.server_mut().alter_system("wal_keep_size", "1GB");
    cluster.server().psql("CREATE TABLE story AS SELECT text 'a' AS what");
    let write = |cluster: &ProtectedCluster, what: &str| {
        cluster.server().psql(&format!(
            "INSERT INTO story VALUES ('{what}'); SELECT FROM pg_switch_wal(); CHECKPOINT; SELECT FROM pg_switch_wal()"
        ));
    };
    let run = receiving::start(&cluster);
    // A second one says why it cannot.
    let second = cluster.agent().arg("run").start();
    second.wait_for_stderr("another pgark-agent run uses the slot");
    receiving::stop(second);
    cluster.backup();
    write(&cluster, "b");
    receiving::wait_until_flushed(LIMIT, cluster.server());
    receiving::stop(run);

    // Without its slot the server still has the WAL: nothing is lost.
    cluster.server().psql("SELECT pg_drop_replication_slot('pgark')");
    write(&cluster, "c");
    let run = receiving::start(&cluster);
    receiving::wait_until_flushed(LIMIT, cluster.server());
    assert_eq!(restored_rows(&cluster, "without-slot"), "a b c");
    // A segment vanishes from the archive; the next start puts it back.
    let messages = receiving::stop(run);
    assert!(!messages.contains("new backup"), "{messages}");
    let victim = cluster.archived_segments(1).into_iter().rev().nth(1).unwrap();
    fs::remove_file(&victim).unwrap();
    cluster.age_archive();
    let list = cluster.restore().arg("list").succeed().stdout;
    assert!(list.contains("(gap"), "{list}");
    let run = receiving::start(&cluster);
    run.wait_for_stderr("filled a gap in the archive");
    assert!(victim.exists());
    assert_eq!(restored_rows(&cluster, "healed"), "a b c");
    receiving::stop(run);

    // Now the server has removed it.
    cluster.server().psql("SELECT pg_drop_replication_slot('pgark')");
    cluster.server_mut().alter_system("wal_keep_size", "0");
    cluster.server_mut().alter_system("min_wal_size", "32MB");
    for _ in 0..5 {
        write(&cluster, "d");
    }
    let run = receiving::start(&cluster);
    run.wait_for_stderr("take a new backup now");
    receiving::wait_until_flushed(LIMIT, cluster.server());
    write(&cluster, "e");
    receiving::wait_until_flushed(LIMIT, cluster.server());
    cluster.age_archive();
    let list = cluster.restore().arg("list").succeed().stdout;
    assert!(list.contains("(gap"), "{list}");
    cluster.restore().args(["base", "--dry-run"]).fail_with(3);
    cluster.backup();
    assert!(restored_rows(&cluster, "after-the-gap").ends_with("d d d d d e"));
    receiving::stop(run);
}

#[test]
fn a40_d46_a_promotion_is_followed_and_both_timelines_are_whole() {
    let mut cluster = ProtectedCluster::builder().server(|server| server.tcp()).without_archiving().start();
    cluster.server().psql("CREATE TABLE story AS SELECT text 'a' AS what");
    let run = receiving::start(&cluster);
    cluster.backup();
    let mut standby = cluster.server().start_standby();
    cluster
        .server()
        .psql("INSERT INTO story VALUES ('b'); SELECT FROM pg_switch_wal(); INSERT INTO story VALUES ('c')");
    standby.wait_for("SELECT count(*) FROM story", "3");
    receiving::wait_until_flushed(LIMIT, cluster.server());
    receiving::stop(run);

    // The agent follows the standby, through its promotion and through a second one.
    let config = fs::read_to_string(cluster.config()).unwrap();
    let config = config.replace(&cluster.server().connection_string(), &standby.connection_string());
    let config = cluster.dir().write("standby.toml", config);
    let run = harness::Program::agent().config(&config).as_test_user().arg("run").limit(LIMIT * 5).start();
    run.wait_for_stderr("receiving WAL");
    cluster.server_mut().stop_fast();
    standby.promote();
    run.wait_for_stderr("the timeline ended");
    standby.psql("INSERT INTO story VALUES ('d')");
    receiving::wait_until_flushed(LIMIT, &standby);
    assert_eq!(restored_rows(&cluster, "pieces"), "a b c d");
    standby.psql("SELECT FROM pg_switch_wal(); INSERT INTO story VALUES ('e')");
    receiving::wait_until_flushed(LIMIT, &standby);
    assert_eq!(restored_rows(&cluster, "timeline-2"), "a b c d e");
    let mut old = cluster.restore_and_start("timeline-1", &["--target-timeline", "1"]);
    old.wait_until_promoted();
    assert_eq!(old.psql("SELECT string_agg(what, ' ' ORDER BY what) FROM story"), "a b c");
    receiving::stop(run);
    standby.stop_fast();
}

#[test]
fn a_network_that_is_cut_costs_nothing_but_time() {
    let cluster = ProtectedCluster::builder().server(|server| server.tcp()).without_archiving().start();
    let proxy = FaultProxy::to_postgres(cluster.server());
    let config = fs::read_to_string(cluster.config()).unwrap();
    let config = config.replace(&cluster.server().connection_string(), &proxy.connection_string());
    let config = cluster.dir().write("proxy.toml", config);
    cluster.server().psql("CREATE TABLE story AS SELECT text 'a' AS what");
    let run = harness::Program::agent().config(&config).as_test_user().arg("run").limit(LIMIT * 5).start();
    run.wait_for_stderr("receiving WAL");
    cluster.backup();
    for (round, what) in ["b", "c", "d"].into_iter().enumerate() {
        proxy.cut_all();
        cluster.server().psql(&format!("INSERT INTO story VALUES ('{what}'); SELECT FROM pg_switch_wal()"));
        wait_for_stream(&run, round + 2);
        receiving::wait_until_flushed(LIMIT, cluster.server());
    }
    receiving::stop(run);
    assert_eq!(restored_rows(&cluster, "after-cuts"), "a b c d");
    // The pieces of whole segments are gone.
    let partials = fs::read_dir(cluster.cluster_dir().join("wal/00000001/00000000")).unwrap().flatten();
    let left: Vec<_> = partials
        .filter(|entry| entry.path().is_dir() && fs::read_dir(entry.path()).unwrap().count() > 0)
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.len() <= 1, "{left:?}");
}
