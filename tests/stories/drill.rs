//! Drills: a backup is restored, started, asked and removed. A sound one passes with figures that a stopwatch agrees
//! with; a spoiled one fails with the right reason; and nothing is ever left behind.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::{Outcome, Program, ProtectedCluster, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// Where drills are made: a socket needs a short path.
fn drills(cluster: &ProtectedCluster) -> PathBuf {
    cluster.dir().join("drills")
}

fn drill(cluster: &ProtectedCluster, config: &Path) -> Program {
    let bin = cluster.server().bin("postgres");
    let program = cluster.restore_with(config).args(["--quiet", "drill", "--directory"]).arg(drills(cluster));
    program.arg("--bin-dir").arg(bin.parent().unwrap()).limit(Duration::from_secs(300))
}

fn without_amcheck(drill: Program) -> Program {
    drill.env("PGARK_DRILL_AMCHECK", "false")
}

fn report(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

/// Nothing but the lock at the door, and no server.
fn assert_nothing_left(cluster: &ProtectedCluster) {
    let left: Vec<_> = fs::read_dir(drills(cluster)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["pgark-drill.lock"]);
    assert_eq!(servers(cluster), Vec::<u32>::new());
}

/// The servers on directories of drills.
fn servers(cluster: &ProtectedCluster) -> Vec<u32> {
    let place = drills(cluster);
    let runs_there = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|&byte| byte == 0).map(String::from_utf8_lossy);
        words.next().is_some_and(|program| program.ends_with("postgres"))
            && words.any(|word| Path::new(&*word).starts_with(&place))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(runs_there).collect()
}

fn check<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

/// A configuration with a question.
fn with_query(cluster: &ProtectedCluster, name: &str, sql: &str, expect: &str) -> PathBuf {
    let query = format!("[[drill.query]]\nsql = \"{sql}\"\nexpect = \"{expect}\"\n");
    cluster.write_config(name, &format!("{}{query}", cluster.repositories()))
}

#[test]
fn a_drill_proves_a_sound_backup_and_leaves_nothing() {
    let cluster = ProtectedCluster::builder().server(|server| server.data_checksums(true)).start();
    let server = cluster.server();
    server.psql("CREATE TABLE t AS SELECT i, repeat(md5(i::text), 200) AS long FROM generate_series(1, 2000) i");
    server.psql("CREATE INDEX ON t (i); CREATE INDEX ON t USING gin (to_tsvector('simple', left(long, 32)))");
    server.psql(
        "CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t; CREATE SEQUENCE s; CREATE UNLOGGED TABLE u (i int)",
    );
    server.psql("CREATE DATABASE shop");
    // What must not act in a drill: it would not start, or reach out.
    for setting in ["shared_preload_libraries = 'nonexistent'", "ssl_cert_file = '/nonexistent'", "lc_messages = 'C'"] {
        server.psql(&format!("ALTER SYSTEM SET {setting}"));
    }
    let id = cluster.backup();
    server.psql("INSERT INTO t SELECT 0, 'after the backup'");
    cluster.archive_all();
    let listed = cluster.restore().args(["list"]).succeed().stdout;
    assert!(listed.contains("last proof") && listed.contains("never"), "{listed}");
    let archived = cluster.archived_segments(1);

    let config = with_query(&cluster, "query.toml", "SELECT count(*), max(i) FROM t", "2001|2000");
    let page = cluster.dir().join("report.html");
    let began = Instant::now();
    let outcome = drill(&cluster, &config).arg("--json").arg("--html").arg(&page).succeed();
    let stopwatch = began.elapsed().as_secs_f64();
    let found = report(&outcome);
    println!("{found}");
    assert_eq!((&found["version"], &found["command"], &found["passed"]), (&1.into(), &"drill".into(), &true.into()));
    assert_eq!((&found["backup"], &found["failure"]), (&id.as_str().into(), &Value::Null));
    let seconds = |name: &str| found["seconds"][name].as_f64().unwrap();
    let stages = ["plan", "restore", "replay", "check", "clean_up"].map(seconds);
    assert!(stages.iter().all(|seconds| *seconds > 0.0), "{found}");
    // The figures are the stopwatch's, but for the start of the program.
    assert!((stopwatch - seconds("total")).abs() < 1.0, "{stopwatch} {found}");
    assert!((stages.iter().sum::<f64>() - seconds("total")).abs() < 0.2, "{found}");
    for name in ["read", "amcheck", "query"] {
        assert_eq!(check(&found, name)["result"], "passed", "{found}");
    }
    let detail = check(&found, "read")["detail"].as_str().unwrap();
    assert!(detail.contains("of 4 databases"), "{detail}");
    assert_eq!(found["notes"], Value::Array(Vec::new()), "{found}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains(&id) && page.contains("Passed") && !page.contains("http"), "{page}");
    assert_nothing_left(&cluster);
    // A new timeline was begun there, and the archive knows nothing of it.
    assert_eq!(cluster.archived_segments(1), archived);
    assert!(!cluster.cluster_dir().join("wal/00000002.history").exists());

    let listed: Value = serde_json::from_str(&cluster.restore().args(["list", "--json"]).succeed().stdout).unwrap();
    let proof = &listed["backups"][0]["proof"];
    assert_eq!((&proof["by"], &proof["passed"]), (&"drill".into(), &true.into()), "{listed}");
    let shown = cluster.restore().args(["show", &id]).succeed().stdout;
    assert!(shown.contains(" drill passed on ") && shown.contains("restored to the end of the archive"), "{shown}");

    // A moment: the row is not there yet. Any other one, too.
    let end = listed["backups"][0]["stop_time"].as_str().unwrap();
    let config = with_query(&cluster, "then.toml", "SELECT count(*) FROM t", "2000");
    let outcome = without_amcheck(drill(&cluster, &config)).args(["--target-time", end]).succeed();
    assert!(outcome.stdout.contains("stopped before commit of transaction"), "{}", outcome.stdout);
    let found = report(&without_amcheck(drill(&cluster, cluster.config())).args(["--random", "--json"]).succeed());
    assert_eq!((&found["is_random"], &found["passed"]), (&true.into(), &true.into()));
    assert!(found["recovery"]["stopped"].as_str().unwrap().contains("commit of transaction"), "{found}");
    drill(&cluster, cluster.config()).args(["--random", "--target-immediate"]).fail_with(2);

    // What is kept can be started.
    let outcome = without_amcheck(drill(&cluster, cluster.config())).args(["--keep", "--json"]).succeed();
    let kept = PathBuf::from(report(&outcome)["kept"].as_str().unwrap());
    assert!(kept.join("data/PG_VERSION").is_file() && kept.join("server.log").is_file());
    assert_eq!(servers(&cluster), Vec::<u32>::new());
    without_amcheck(drill(&cluster, cluster.config())).succeed();
    assert!(kept.is_dir(), "the next drill removes only what a killed one left");
}

/// 3 GB: what the report says is what a stopwatch says, and it is where the time is spent.
#[test]
#[ignore = "long: make soak"]
fn soak_a_drill_of_3_gb_agrees_with_a_stopwatch() {
    let cluster = ProtectedCluster::builder().server(|server| server.setting("max_wal_size", "4GB")).start();
    cluster.server().init_pgbench(200);
    cluster.backup();
    cluster.server().psql("INSERT INTO pgbench_history SELECT 1, 1, 1, 1, now(), 'x' FROM generate_series(1, 200000)");
    cluster.archive_all();
    let began = Instant::now();
    let outcome = drill(&cluster, cluster.config()).arg("--json").limit(Duration::from_secs(1800)).succeed();
    let stopwatch = began.elapsed().as_secs_f64();
    let found = report(&outcome);
    println!("stopwatch {stopwatch:.1} s, report {}", found["seconds"]);
    assert!(found["restored_bytes"].as_u64().unwrap() > 3_000_000_000, "{found}");
    let seconds = |name: &str| found["seconds"][name].as_f64().unwrap();
    let stages = ["plan", "restore", "replay", "check", "clean_up"].map(seconds);
    assert!((stopwatch - seconds("total")).abs() < 1.0 + stopwatch * 0.01, "{stopwatch} {found}");
    assert!((stages.iter().sum::<f64>() - seconds("total")).abs() < 0.5, "{found}");
    assert_nothing_left(&cluster);
}

#[test]
fn a_drill_of_a_spoiled_backup_fails_with_the_right_reason() {
    let mut cluster = ProtectedCluster::builder().server(|server| server.data_checksums(false)).start();
    cluster.server().psql("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i; CREATE INDEX broken ON t (i)");
    // Two rows of a leaf change places; without page checksums only the order of the index tells.
    let path = cluster.server().psql("SELECT pg_relation_filepath('broken')");
    let path = cluster.server().data_dir().join(path);
    let healthy = cluster.backup();
    cluster.server_mut().stop_fast();
    swap_line_pointers(&path, 1);
    cluster.server_mut().start();
    let crooked = cluster.backup();
    for _ in 0..3 {
        cluster.server().psql("INSERT INTO t VALUES (0)");
        cluster.archive_all();
    }

    let failed = |outcome: &Outcome, stage: &str, reason: &str| {
        let found = report(outcome);
        assert_eq!((&found["passed"], &found["failure"]["stage"]), (&false.into(), &stage.into()), "{found}");
        assert_eq!(found["failure"]["exit_code"], outcome.code.unwrap(), "{found}");
        let said = found["failure"]["reason"].as_str().unwrap();
        assert!(said.contains(reason), "{said}");
        assert!(outcome.stderr.contains(reason), "{}", outcome.stderr);
        assert_nothing_left(&cluster);
        found
    };
    let run = |arguments: &[&str]| drill(&cluster, cluster.config()).arg("--json").args(arguments);

    let outcome = run(&["--backup", &crooked]).fail_with(1);
    let found = failed(&outcome, "check", "item order invariant violated");
    assert_eq!(check(&found, "read")["result"], "passed", "{found}");
    assert!(check(&found, "amcheck")["faults"][0].as_str().unwrap().contains("broken"), "{found}");

    let config = with_query(&cluster, "query.toml", "SELECT count(*) FROM t", "7");
    let outcome = drill(&cluster, &config).args(["--json", "--target-immediate", "--backup", &healthy]).fail_with(1);
    failed(&outcome, "check", "answers `1000`, expected `7`");

    // Stored bytes: one of a part, and one of a segment in the middle of the way.
    let part = cluster.cluster_dir().join(format!("backups/{healthy}/parts/000001.tar.zst"));
    with_flipped_byte(&part, || {
        let outcome = run(&["--backup", &healthy]).fail_with(4);
        failed(&outcome, "restore", "is damaged");
    });
    let segments = cluster.archived_segments(1);
    let last = &segments[segments.len() - 2];
    with_flipped_byte(last, || {
        let outcome = without_amcheck(run(&["--target-immediate", "--backup", &healthy])).succeed();
        assert_eq!(report(&outcome)["passed"], true);
        run(&["--backup", &healthy]).fail_with(4);
    });
    let hidden = cluster.dir().join("hidden");
    fs::rename(last, &hidden).unwrap();
    cluster.age_archive();
    let outcome = run(&["--backup", &healthy]).fail_with(3);
    failed(&outcome, "plan", "is missing");
    fs::rename(&hidden, last).unwrap();

    let shown = cluster.restore().args(["list"]).succeed().stdout;
    assert!(shown.contains("drill, FAILED"), "{shown}");
    // What is no fault of the backup is no proof against it.
    let proofs = fs::read_dir(cluster.dir().join("state/proofs/main")).unwrap().count();
    assert_eq!(proofs, 1);
    let refused = drill(&cluster, cluster.config()).args(["--bin-dir", "/nonexistent"]).run();
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let refused = cluster.restore().args(["drill", "--bin-dir", "/nonexistent", "--directory"]).arg(drills(&cluster));
    let refused = refused.fail_with(2);
    assert!(refused.stderr.contains("PostgreSQL 15 is not installed here"), "{}", refused.stderr);
    let refused = cluster.restore().args(["drill", "--directory", "/proc/drill"]).fail_with(2);
    assert!(refused.stderr.contains("make it for the user at work"), "{}", refused.stderr);
    let refused = Program::restore().config(cluster.config()).arg("drill").fail_with(2);
    assert!(refused.stderr.contains("a drill must not run as root"), "{}", refused.stderr);
}

/// Exchanges the second and the third entry of a page of an index.
fn swap_line_pointers(path: &Path, block: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut pointers = [0; 8];
    let at = block * 8192 + 24 + 4;
    file.read_exact_at(&mut pointers, at).unwrap();
    pointers.rotate_left(4);
    file.write_all_at(&pointers, at).unwrap();
}

/// Does something while a byte in the middle of a file is another.
fn with_flipped_byte(path: &Path, work: impl FnOnce()) {
    let right = fs::read(path).unwrap();
    let mut wrong = right.clone();
    wrong[right.len() / 2] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, wrong).unwrap();
    work();
    fs::write(path, right).unwrap();
}

#[test]
fn a_drill_that_is_ended_or_killed_leaves_no_server_and_no_directory() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE t AS SELECT i FROM generate_series(1, 100000) i");
    cluster.backup();
    cluster.archive_all();
    // The question lasts until the drill is ended.
    let config = with_query(&cluster, "slow.toml", "SELECT pg_sleep(600)", "");
    let drill = |config: &Path| without_amcheck(drill(&cluster, config));
    let asked = || {
        let running = drill(&config).start();
        wait_until("the server of the drill is asked", Duration::from_secs(60), || {
            let connections = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok();
            let busy = |child: &str| {
                fs::read(format!("/proc/{child}/cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains("SELECT"))
            };
            servers(&cluster).iter().filter_map(connections).any(|list| list.split_whitespace().any(busy)).then_some(())
        });
        running
    };
    for signal in [Signal::TERM, Signal::INT] {
        let running = asked();
        running.signal(signal);
        let outcome = running.wait();
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("the drill was ended by SIG"), "{}", outcome.stderr);
        assert_nothing_left(&cluster);
    }
    asked().kill9();
    assert_eq!(servers(&cluster).len(), 1);
    drill(cluster.config()).succeed();
    assert_nothing_left(&cluster);
    // While it restores, and against the clock.
    let running = drill(cluster.config()).start();
    wait_until("the restore has begun", Duration::from_secs(60), || {
        let made = fs::read_dir(drills(&cluster)).unwrap().flatten();
        made.into_iter().any(|entry| entry.path().join("data/base").is_dir()).then_some(())
    });
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code, Some(1));
    assert_nothing_left(&cluster);
    let outcome = drill(&config).env("PGARK_DRILL_TIMEOUT", "3s").fail_with(1);
    assert!(outcome.stderr.contains("the drill has not ended within 3.0 s"), "{}", outcome.stderr);
    assert_nothing_left(&cluster);
}
