//! `[notify] command`: told once how each command ended, and never in the way of it.

use std::fs;
use std::path::{Path, PathBuf};

use harness::{ProtectedCluster, wait_until};
use serde_json::Value;
use std::time::Duration;

fn events(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn config(cluster: &ProtectedCluster, name: &str, notify: &str) -> PathBuf {
    let own = fs::read_to_string(cluster.config()).unwrap();
    cluster.dir().write(name, format!("{own}\n[notify]\n{notify}\n"))
}

#[test]
fn each_end_is_told_once_as_json_on_standard_input() {
    let cluster = ProtectedCluster::start();
    let record = cluster.dir().create_dir("told").join("events");
    let script = cluster.dir().write("tell.sh", format!("#!/bin/sh\nexec cat >>'{}'\n", record.display()));
    let told = config(&cluster, "told.toml", &format!("command = \"sh '{}'\"", script.display()));
    let agent = || harness::Program::agent().config(&told).as_test_user();
    let backup = agent().args(["--quiet", "backup", "--json"]).succeed();
    assert_eq!(backup.stdout.lines().count(), 1, "{}", backup.stdout);
    cluster.restore_with(&told).args(["verify", "--quick"]).succeed();
    agent().args(["expire", "--dry-run"]).succeed();
    agent().arg("expire").succeed();
    // What the message holds is never part of a command.
    agent().args(["backup", "--include", "/nonexistent/$(touch injected)`touch injected`"]).fail_with(2);
    let found = events(&record);
    let shown: Vec<_> = found
        .iter()
        .map(|event| (event["event"].as_str().unwrap(), event["result"].as_str().unwrap(), event["exit_code"].as_u64()))
        .collect();
    assert_eq!(
        shown,
        [
            ("backup", "success", Some(0)),
            ("verify", "success", Some(0)),
            ("expire", "success", Some(0)),
            ("backup", "failure", Some(2))
        ],
        "{found:#?}"
    );
    assert!(found[0]["message"].as_str().unwrap().ends_with("-full is stored"), "{found:#?}");
    assert!(found[3]["message"].as_str().unwrap().contains("$(touch injected)"), "{found:#?}");
    assert_eq!((found[0]["version"].as_u64(), found[0]["cluster"].as_str()), (Some(1), Some("main")));

    let failures =
        config(&cluster, "failures.toml", &format!("command = \"sh '{}'\"\non = [\"failure\"]", script.display()));
    harness::Program::agent().config(&failures).as_test_user().args(["--quiet", "backup"]).succeed();
    assert_eq!(events(&record).len(), 4, "a success was told though only failures are wanted");
    // A backup that met trouble is told as a warning.
    cluster.server().psql("ALTER SYSTEM SET archive_command = 'false'");
    cluster.server().psql("SELECT pg_reload_conf()");
    agent().env("PGARK_BACKUP_ARCHIVE_WAIT", "1s").args(["backup"]).succeed();
    let last = events(&record).pop().unwrap();
    assert_eq!((last["event"].as_str(), last["result"].as_str()), (Some("backup"), Some("warning")), "{last}");
    assert!(last["warnings"][0].as_str().unwrap().contains("archive command"), "{last}");
}

#[test]
fn a_notify_command_that_fails_or_hangs_changes_nothing() {
    let cluster = ProtectedCluster::start();
    for (notify, words) in [
        ("command = \"exit 7\"", "notify.command ended with exit status: 7"),
        ("command = \"sleep 1000 & sleep 1000\"\ndeadline = \"1s\"", "notify.command was killed after 1 s"),
        ("command = \"/nonexistent/tell\"", "notify.command ended with exit status: 127"),
    ] {
        let config = config(&cluster, "notify.toml", notify);
        let outcome = cluster.restore_with(&config).args(["verify", "--quick"]).run();
        assert!(outcome.stderr.contains(words), "no {words:?} in {}", outcome.stderr);
        assert!(outcome.duration < Duration::from_secs(20));
        assert_ne!(outcome.code, Some(7));
    }
}

#[test]
fn run_tells_what_it_warns_of_while_it_goes_on() {
    let mut cluster = ProtectedCluster::builder().without_archiving().start();
    let record = cluster.dir().create_dir("told").join("events");
    let told = config(&cluster, "told.toml", &format!("command = \"cat >>'{}'\"", record.display()));
    let run = harness::Program::agent().config(&told).as_test_user().arg("run").start();
    cluster.server_mut().wait_for("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", "1");
    cluster.server_mut().kill9();
    wait_until("the outage to be told", Duration::from_secs(30), || {
        events(&record).iter().any(|event| event["result"] == "warning").then_some(())
    });
    run.signal(rustix::process::Signal::TERM);
    assert_eq!(run.wait().code, Some(0));
    let found = events(&record);
    let last = found.last().unwrap();
    assert_eq!((last["event"].as_str(), last["exit_code"].as_u64()), (Some("run"), Some(0)), "{found:#?}");
    assert!(found.len() < 6, "the same was told again and again: {found:#?}");
}
