//! `list` says from which moment to which the cluster can be restored, and restores keep that promise.

use std::fs;
use std::thread;
use std::time::Duration;

use harness::ProtectedCluster;
use serde_json::Value;

/// How much later than its successors a segment comes.
const LATE: Duration = Duration::from_millis(1500);

fn list(cluster: &ProtectedCluster, arguments: &[&str]) -> Value {
    let outcome = cluster.restore().args(["list", "--json"]).args(arguments).succeed();
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// A time some microseconds before another one in a list.
fn microseconds_before(time: &Value, microseconds: i64) -> String {
    let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
    time.checked_sub(jiff::SignedDuration::from_micros(microseconds)).unwrap().to_string()
}

#[test]
fn windows_and_restore_points_are_listed_and_can_be_restored() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE t (n int)");
    let first = cluster.backup();
    cluster.server().psql("INSERT INTO t VALUES (1)");
    cluster.server().psql("SELECT pg_create_restore_point('before the upgrade')");
    cluster.server().psql("INSERT INTO t VALUES (2)");
    cluster.archive_all();
    let second = cluster.backup();
    cluster.server().psql("INSERT INTO t VALUES (3)");
    cluster.server().psql("INSERT INTO t VALUES (4)");
    cluster.archive_all();

    let listed = list(&cluster, &[]);
    assert!(listed.get("restore_points").is_none());
    let [window] = listed["windows"].as_array().unwrap().as_slice() else { panic!("{listed}") };
    assert_eq!((&window["timeline"], &window["gap_at"]), (&1.into(), &Value::Null));
    assert_eq!(window["backups"], Value::from(vec![first.as_str(), second.as_str()]));
    assert_eq!(window["from"], listed["backups"][0]["stop_time"]);

    // Just before the last transaction: everything but that. At it, there is nothing to stop before.
    let moment = microseconds_before(&window["last_transaction"], 1);
    let mut server = cluster.restore_and_start("last", &["--target-time", &moment, "--target-action", "promote"]);
    server.wait_until_promoted();
    assert_eq!(server.psql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM t"), "1 2 3");
    server.stop_fast();
    let later = window["last_transaction"].as_str().unwrap();
    let refused = cluster.restore().args(["base", "--dry-run", "--target-time", later]).fail_with(3);
    assert!(refused.stderr.contains("the last one ended at"), "{}", refused.stderr);
    // The earliest moment is the end of the first backup.
    let from = window["from"].as_str().unwrap();
    let plan = cluster.restore().args(["base", "--dry-run", "--target-time", from]).succeed();
    assert!(plan.stdout.contains(&first), "{}", plan.stdout);
    let refused =
        cluster.restore().args(["base", "--dry-run", "--target-time", &microseconds_before(&window["from"], 1)]);
    refused.fail_with(3);

    let listed = list(&cluster, &["--restore-points"]);
    let [point] = listed["restore_points"].as_array().unwrap().as_slice() else { panic!("{listed}") };
    assert_eq!((&point["name"], &point["timeline"]), (&"before the upgrade".into(), &1.into()));
    let named = ["--target-name", "before the upgrade", "--backup", &first, "--target-action", "promote"];
    let mut server = cluster.restore_and_start("named", &named);
    server.wait_until_promoted();
    assert_eq!(server.psql("SELECT string_agg(n::text, ' ' ORDER BY n) FROM t"), "1");

    let text = cluster.restore().args(["list", "--restore-points"]).succeed().stdout;
    for words in ["can be restored from", "the archive ends", "before the upgrade"] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
}

#[test]
fn d10_a_gap_ends_a_window_and_the_next_backup_begins_another() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE t (n int)");
    let first = cluster.backup();
    for number in 1..=3 {
        cluster.server().psql(&format!("INSERT INTO t VALUES ({number}); SELECT pg_switch_wal()"));
    }
    cluster.archive_all();
    let lost = cluster.archived_segments(1).into_iter().rev().nth(1).unwrap();
    let second = cluster.backup();
    cluster.server().psql("INSERT INTO t VALUES (4)");
    cluster.archive_all();
    fs::remove_file(&lost).unwrap();
    cluster.age_archive();
    let lost = lost.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned();

    let listed = list(&cluster, &[]);
    let [before, after] = listed["windows"].as_array().unwrap().as_slice() else { panic!("{listed}") };
    assert_eq!((&before["backups"][0], &before["gap_at"]), (&first.as_str().into(), &lost.as_str().into()));
    assert_eq!((&after["backups"][0], &after["gap_at"]), (&second.as_str().into(), &Value::Null));
    for (window, name) in [(before, "before"), (after, "after")] {
        let moment = microseconds_before(&window["last_transaction"], 1);
        let plan = cluster.restore().args(["base", "--dry-run", "--target-time", &moment]).succeed();
        assert!(plan.stdout.contains(window["backups"][0].as_str().unwrap()), "{name}: {}", plan.stdout);
    }
    let text = cluster.restore().arg("list").succeed().stdout;
    assert!(text.contains(&format!("{lost} is missing")), "{text}");
    let verified = cluster.restore().arg("verify").fail_with(4);
    assert!(verified.stdout.contains(&format!("{lost}: it is missing")), "{}", verified.stdout);
}

#[test]
fn d10_a_segment_that_comes_after_its_successors_is_no_gap() {
    let cluster = ProtectedCluster::start();
    cluster.backup();
    for _ in 0..3 {
        cluster.archive_all();
    }
    let late = cluster.archived_segments(1).into_iter().rev().nth(1).unwrap();
    let aside = cluster.dir().join("aside");
    for arguments in [&["list"][..], &["base", "--dry-run"]] {
        fs::rename(&late, &aside).unwrap();
        let outcome = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(LATE);
                fs::rename(&aside, &late).unwrap();
            });
            cluster.restore().args(arguments).succeed()
        });
        for words in ["gap", "is missing"] {
            assert!(!outcome.stdout.contains(words), "{}", outcome.stdout);
        }
    }
}
