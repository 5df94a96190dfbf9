//! Writing: a repository that is not required goes away under load. Nothing waits for it, nothing is lost, and it is
//! complete afterwards, so that each of the two restores alone.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use harness::{Action, Fault, PostgresServer, ProtectedClusterBuilder, Trigger};

use super::{Lines, Two};
use crate::receiving;

const OPTIONAL: &str = "required = false\n";
const LIMIT: Duration = Duration::from_secs(120);

/// How a repository goes away.
#[derive(Clone, Copy, Debug)]
enum Outage {
    /// Nobody listens.
    Refused,
    /// Nothing comes back.
    Silent,
}

impl Two {
    fn begin(&mut self, outage: Outage) {
        match outage {
            Outage::Refused => self.far.stop(),
            Outage::Silent => {
                self.proxy.add(Fault::always(Trigger::Connect, Action::Stall));
                self.proxy.cut_all();
            }
        }
    }

    fn end(&mut self, outage: Outage) {
        match outage {
            Outage::Refused => self.far.start_again(),
            Outage::Silent => {
                self.proxy.clear();
                self.proxy.cut_all();
            }
        }
    }

    /// Objects, but for the pieces of segments, with their content where that is not encrypted.
    fn objects(&self) -> [BTreeMap<String, Vec<u8>>; 2] {
        [self.near_files(), self.far_files()].map(|files| {
            let own = files.with(&["main/"]).into_iter().filter(|name| !name.contains(".partial/"));
            let content = |name: &str| match name.contains(".age") || name.ends_with("backup.json") {
                true => Vec::new(),
                false => fs::read(files.path(name)).unwrap_or_default(),
            };
            own.map(|name| (name.clone(), content(&name))).collect()
        })
    }

    fn wait_until_equal(&self, mut push: impl FnMut(&Self)) {
        let started = Instant::now();
        loop {
            let [near, far] = self.objects();
            if near == far {
                println!("equal, {} objects, after {:?}", near.len(), started.elapsed());
                return;
            }
            let lacks: Vec<_> = near.keys().filter(|name| !far.contains_key(*name)).collect();
            let more: Vec<_> = far.keys().filter(|name| !near.contains_key(*name)).collect();
            assert!(started.elapsed() < LIMIT, "far lacks {lacks:?}, and has {more:?} alone");
            push(self);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// What each of them restores alone.
    fn restored_alone(&self) -> [u64; 2] {
        ["near", "far"].map(|repository| {
            let arguments = ["--repository", repository];
            let mut restored = self.cluster.restore_and_start(&format!("restored-{repository}"), &arguments);
            restored.wait_until_promoted();
            let rows = restored.check_pgbench_balances();
            drop(restored);
            fs::remove_dir_all(self.cluster.dir().join(format!("restored-{repository}"))).unwrap();
            rows
        })
    }
}

/// After the load nobody writes any more: what is archived side by side has no gap then.
fn one_writer(builder: ProtectedClusterBuilder) -> ProtectedClusterBuilder {
    builder.server(|server| server.wal_segment_megabytes(1).setting("autovacuum", "off"))
}

/// Looks every now and then how much waits for the archiver, and returns the most that was seen.
fn most_ready(server: &PostgresServer, time: Duration) -> usize {
    let started = Instant::now();
    let mut most = 0;
    while started.elapsed() < time {
        let status = fs::read_dir(server.data_dir().join("pg_wal/archive_status")).unwrap();
        let ready = status.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "ready")).count();
        most = most.max(ready);
        std::thread::sleep(Duration::from_millis(100));
    }
    most
}

fn archiver(server: &PostgresServer) -> (u64, u64) {
    let counts = server.psql("SELECT archived_count, failed_count FROM pg_stat_archiver");
    let (archived, failed) = counts.split_once('|').unwrap();
    (archived.parse().unwrap(), failed.parse().unwrap())
}

/// One of two repositories goes away while the archiver ships; a backup is taken meanwhile.
fn archiving_goes_on(outage: Outage, time: Duration) {
    let lines = Lines { far: OPTIONAL, is_encrypted: true, ..Lines::default() };
    let mut two = Two::start_with(&lines, one_writer);
    let server = two.cluster.server();
    server.init_pgbench(5);
    two.cluster.backup();
    let load = two.cluster.server().start_pgbench(2);
    let usual = most_ready(two.cluster.server(), Duration::from_secs(4));
    two.begin(outage);
    let before = archiver(two.cluster.server());
    let started = Instant::now();
    let most = most_ready(two.cluster.server(), time / 2);
    let backup = two.cluster.agent().args(["backup"]).succeed();
    let most = most.max(most_ready(two.cluster.server(), time.saturating_sub(started.elapsed())));
    let after = archiver(two.cluster.server());
    let rate = (after.0 - before.0) as f64 / started.elapsed().as_secs_f64();
    println!(
        "{outage:?} for {:?}: {} segments archived ({rate:.1} a second), {} failures; at most {most} waiting, {usual} before; \
         the backup took {:?}",
        started.elapsed(),
        after.0 - before.0,
        after.1 - before.1,
        backup.duration
    );
    assert_eq!(after.1, before.1, "calls have failed:\n{}", two.cluster.server().log());
    assert!(after.0 > before.0 + 5, "archiving stood still");
    assert!(backup.stdout.contains("not in `far`"), "{}", backup.stdout);
    assert!(two.cluster.server().log().contains("archiving goes on without it"), "nothing was said");
    two.end(outage);
    std::thread::sleep(Duration::from_secs(2));
    load.stop();
    // What waits now is soon archived: there was no stall.
    let waiting = Instant::now();
    two.cluster.archive_all();
    println!("the rest was archived after {:?}; most waiting {most}", waiting.elapsed());
    assert!(waiting.elapsed() < Duration::from_secs(20));

    let list = two.cluster.restore().arg("list").succeed().stdout;
    println!("{list}");
    // Each later call copies some of what was missed; the next backup copies the one before.
    two.wait_until_equal_wal(LIMIT + time);
    two.cluster.backup();
    two.wait_until_equal(|two| two.cluster.archive_all());
    let list = two.cluster.restore().arg("list").succeed().stdout;
    assert_eq!(list.lines().filter(|line| line.trim_end().ends_with("  no")).count(), 2, "{list}");
    two.cluster.archive_all();
    two.wait_until_equal(|two| two.cluster.archive_all());
    let rows = two.cluster.server().check_pgbench_balances();
    assert_eq!(two.restored_alone(), [rows, rows]);
    two.cluster.restore().args(["verify", "--repository", "far"]).succeed();
}

impl Two {
    fn wait_until_equal_wal(&self, limit: Duration) {
        let started = Instant::now();
        loop {
            let [near, far] = self
                .objects()
                .map(|objects| objects.into_keys().filter(|name| name.contains("/wal/")).collect::<Vec<_>>());
            if near == far {
                println!("the WAL is equal after {:?}", started.elapsed());
                return;
            }
            assert!(started.elapsed() < limit, "{} and {} files", near.len(), far.len());
            self.cluster.archive_all();
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

#[test]
fn b24_archiving_goes_on_while_a_repository_that_is_not_required_refuses() {
    archiving_goes_on(Outage::Refused, Duration::from_secs(20));
}

#[test]
fn b24_archiving_goes_on_while_a_repository_that_is_not_required_is_silent() {
    archiving_goes_on(Outage::Silent, Duration::from_secs(20));
}

#[test]
#[ignore = "long: make soak"]
fn soak_b24_archiving_goes_on_without_a_repository_that_is_not_required() {
    archiving_goes_on(Outage::Silent, Duration::from_secs(600));
}

/// The call for one segment costs seconds once, and nothing while it is known that the repository is away.
#[test]
fn b24_a_repository_that_is_away_costs_one_call_a_few_seconds() {
    let mut two = Two::start_with(&Lines { far: OPTIONAL, ..Lines::default() }, |builder| builder.without_archiving());
    let segment = |two: &Two| {
        let name = two.cluster.server().psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        two.cluster
            .server()
            .psql("SELECT FROM pg_logical_emit_message(false, 'tests', 'x'); SELECT FROM pg_switch_wal()");
        format!("pg_wal/{name}")
    };
    two.cluster.archive_command().arg(segment(&two)).succeed();
    two.begin(Outage::Silent);
    let [first, second] = [segment(&two), segment(&two)];
    let ship = |two: &Two, name: &str| two.cluster.archive_command().arg(name).succeed();
    let slow = ship(&two, &first);
    assert!(slow.stderr.contains("far") && slow.stderr.contains("goes on without it"), "{}", slow.stderr);
    let quick = ship(&two, &second);
    println!("the first call took {:?}, the next one {:?}", slow.duration, quick.duration);
    assert!(slow.duration < Duration::from_secs(9) && quick.duration < Duration::from_secs(2));
    assert!(!quick.stderr.contains("warning"), "{}", quick.stderr);
    two.end(Outage::Silent);
    // Until the note is old, it is left alone; the note is safe to lose.
    fs::remove_file(two.cluster.dir().join("state/absent/main+far+away")).unwrap();
    ship(&two, &segment(&two));
    let [near, far] = two.objects();
    assert_eq!(near, far);
    let notes = fs::read_dir(two.cluster.dir().join("state/absent")).unwrap().count();
    assert_eq!(notes, 0);

    // One that is required fails the call, and one that was chosen alone is required.
    two.begin(Outage::Refused);
    let name = segment(&two);
    two.cluster.archive_command().args(["--repository", "far"]).arg(&name).fail_with(1);
    ship(&two, &name);
}

fn transactions(server: &PostgresServer) -> u64 {
    server.psql("SELECT count(*) FROM pgbench_history").parse().unwrap()
}

/// Commits wait for the repository that is required, and not for the other.
fn streaming_goes_on(outage: Outage, time: Duration) {
    let settings = "[stream]\nsynchronous = true\n";
    let lines = Lines { far: OPTIONAL, settings, ..Lines::default() };
    let mut two = Two::start_with(&lines, |builder| one_writer(builder.without_archiving()));
    two.cluster.server().init_pgbench(5);
    let run = receiving::start(&two.cluster);
    two.cluster.server_mut().alter_system("synchronous_standby_names", "pgark");
    two.cluster.backup();
    let load = two.cluster.server().start_pgbench(4);
    std::thread::sleep(Duration::from_secs(3));
    two.begin(outage);
    let (started, begin) = (Instant::now(), transactions(two.cluster.server()));
    let mut before = begin;
    let mut fewest = u64::MAX;
    while started.elapsed() < time {
        std::thread::sleep(Duration::from_secs(2));
        let now = transactions(two.cluster.server());
        fewest = fewest.min(now - before);
        before = now;
    }
    let committed = before - begin;
    println!(
        "{outage:?}: {committed} commits in {:?}; in any two seconds at least {fewest}; {} MiB in memory",
        started.elapsed(),
        memory_of(run.pid()) >> 20
    );
    assert!(fewest > 0, "commits stood still:\n{}", run.stderr());
    receiving::wait_for_message(&run, "is away; going on without it");
    two.cluster.backup();
    two.end(outage);
    receiving::wait_for_message(&run, "is back");
    std::thread::sleep(Duration::from_secs(2));
    load.stop();
    receiving::wait_until_flushed(LIMIT, two.cluster.server());
    two.cluster.server().psql("SELECT FROM pg_switch_wal()");
    receiving::wait_until_flushed(LIMIT, two.cluster.server());
    two.wait_until_equal(|_| {});
    let rows = two.cluster.server().check_pgbench_balances();
    assert_eq!(two.restored_alone(), [rows, rows]);
    let messages = receiving::stop(run);
    assert!(messages.contains("filled up from the other repositories"), "{messages}");
    assert!(!messages.contains("new backup"), "{messages}");
}

fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

#[test]
fn a48_commits_go_on_while_a_repository_that_is_not_required_refuses() {
    streaming_goes_on(Outage::Refused, Duration::from_secs(20));
}

#[test]
fn a48_commits_go_on_while_a_repository_that_is_not_required_is_silent() {
    streaming_goes_on(Outage::Silent, Duration::from_secs(20));
}

#[test]
#[ignore = "long: make soak"]
fn soak_a48_commits_go_on_without_a_repository_that_is_not_required() {
    streaming_goes_on(Outage::Silent, Duration::from_secs(600));
}

/// The only repository that counts goes away: the slot holds the WAL, and all of it comes later.
fn the_only_one_goes_away(time: Duration) {
    let mut two = Two::start_with(&Lines { near: OPTIONAL, ..Lines::default() }, |builder| {
        one_writer(builder.without_archiving())
    });
    two.cluster.server().init_pgbench(5);
    let run = receiving::start(&two.cluster);
    two.cluster.backup();
    let load = two.cluster.server().start_pgbench(4);
    std::thread::sleep(Duration::from_secs(2));
    two.begin(Outage::Refused);
    std::thread::sleep(time);
    let flushed = two.cluster.server().psql("SELECT flush_lsn FROM pg_stat_replication");
    let held = two
        .cluster
        .server()
        .psql("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) FROM pg_replication_slots");
    println!(
        "{time:?} without it: flushed up to {flushed}, {held} bytes held by the slot, {} MiB in memory",
        memory_of(run.pid()) >> 20
    );
    assert!(held.parse::<u64>().unwrap() > 1 << 20, "{held}");
    receiving::wait_for_message(&run, "WAL is not stored yet");
    two.end(Outage::Refused);
    std::thread::sleep(Duration::from_secs(2));
    load.stop();
    receiving::wait_until_flushed(LIMIT + time, two.cluster.server());
    two.cluster.server().psql("SELECT FROM pg_switch_wal()");
    receiving::wait_until_flushed(LIMIT + time, two.cluster.server());
    two.wait_until_equal(|_| {});
    let rows = two.cluster.server().check_pgbench_balances();
    assert_eq!(two.restored_alone(), [rows, rows]);
    assert!(!receiving::stop(run).contains("new backup"));
}

#[test]
fn a55_nothing_is_lost_while_the_repository_that_counts_is_away() {
    the_only_one_goes_away(Duration::from_secs(15));
}

#[test]
#[ignore = "long: make soak"]
fn soak_a55_nothing_is_lost_while_the_repository_that_counts_is_away() {
    the_only_one_goes_away(Duration::from_secs(600));
}
