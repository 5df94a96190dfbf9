//! Retention on a real cluster: what is promised is restored and started after an expiry, across a promotion, and what
//! users see of it.

use std::fs;
use std::process::Command;

use harness::{Outcome, PostgresServer, ProtectedCluster};
use serde_json::Value;

const FAST: &str = "[compression]\nlevel = 1\n";

fn cluster(retention: &str) -> ProtectedCluster {
    let cluster = ProtectedCluster::builder().settings(&format!("{FAST}[retention]\n{retention}")).start();
    cluster.server().psql("CREATE TABLE story AS SELECT text 'a' AS what");
    cluster
}

fn insert(cluster: &ProtectedCluster, row: &str) {
    cluster.server().psql(&format!("INSERT INTO story VALUES ('{row}')"));
    cluster.archive_all();
}

fn rows(server: &PostgresServer) -> String {
    server.psql("SELECT string_agg(what, ' ' ORDER BY what) FROM story")
}

/// Restores, starts, and returns the rows.
fn restored(cluster: &ProtectedCluster, arguments: &[&str]) -> String {
    let mut server = cluster.restore_and_start("restored", arguments);
    server.wait_until_promoted();
    let rows = rows(&server);
    server.stop_immediate();
    drop(server);
    fs::remove_dir_all(cluster.dir().join("restored")).unwrap();
    rows
}

/// A standby of itself takes over: the next timeline.
fn promote(cluster: &mut ProtectedCluster) {
    cluster.server_mut().stop_fast();
    fs::write(cluster.server().data_dir().join("standby.signal"), "").unwrap();
    cluster.server().own_data_dir();
    cluster.server_mut().start();
    cluster.server_mut().promote();
    cluster.server_mut().wait_until_promoted();
}

/// Makes the WAL of a timeline look as if it had been stored two hours ago.
fn store_earlier(cluster: &ProtectedCluster, timeline: u32) {
    let folder = cluster.cluster_dir().join(format!("wal/{timeline:08X}"));
    let mut touch = Command::new("find");
    touch.arg(folder).args(["-type", "f", "-exec", "touch", "-d", "2 hours ago", "{}", "+"]);
    assert!(touch.status().unwrap().success());
}

fn expire(cluster: &ProtectedCluster, arguments: &[&str]) -> Outcome {
    cluster.agent().arg("expire").args(arguments).succeed()
}

fn json(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn ids(cluster: &ProtectedCluster) -> Vec<String> {
    let list = json(&cluster.restore().args(["list", "--json"]).succeed());
    list["backups"].as_array().unwrap().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

fn files(cluster: &ProtectedCluster) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir(cluster.cluster_dir().join("wal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    found
}

#[test]
fn g02_g04_d11_what_is_kept_is_restored_and_started_across_a_promotion() {
    let mut cluster = cluster("full = 1\n");
    let first = cluster.backup();
    insert(&cluster, "b");
    let unwanted = cluster.backup();
    insert(&cluster, "c");
    let second = cluster.backup();
    insert(&cluster, "d");
    promote(&mut cluster);
    insert(&cluster, "e");

    cluster.agent().args(["hold", &first, "--reason", "audit of 2026"]).succeed();
    // A dry run says what a real one does, and does nothing.
    let dry = json(&expire(&cluster, &["--dry-run", "--json"]));
    assert_eq!(ids(&cluster).len(), 3);
    let segments = cluster.archived_segments(1).len();
    let done = json(&expire(&cluster, &["--json"]));
    for part in ["backups", "wal", "planned_bytes", "since"] {
        assert_eq!(dry["repositories"][0][part], done["repositories"][0][part], "{part}");
    }
    let done = &done["repositories"][0]["done"];
    assert_eq!(done["backups"].as_array().unwrap().len(), 1, "{done}");
    assert_eq!(done["freed_bytes"], dry["repositories"][0]["planned_bytes"]);
    assert_eq!(ids(&cluster), [first.clone(), second.clone()]);
    assert!(!cluster.cluster_dir().join("backups").join(&unwanted).exists());
    assert!(cluster.archived_segments(1).len() < segments);
    assert_eq!(files(&cluster), ["00000001", "00000002", "00000002.history"]);

    // Every moment since the second backup, and the held one as it was.
    let immediate = ["--target-immediate", "--target-action", "promote", "--backup"];
    assert_eq!(restored(&cluster, &[]), "a b c d e");
    assert_eq!(restored(&cluster, &["--target-timeline", "1"]), "a b c d");
    assert_eq!(restored(&cluster, &[&immediate[..], &[first.as_str()]].concat()), "a");
    cluster.restore().arg("verify").succeed();

    // A backup of the new timeline takes over. The old timeline may still be written to by somebody whose clock is off;
    // an hour later nothing of it is left but what the held backup needs.
    let third = cluster.backup();
    insert(&cluster, "f");
    expire(&cluster, &[]);
    assert_eq!(ids(&cluster), [first.clone(), second, third.clone()]);
    store_earlier(&cluster, 1);
    expire(&cluster, &[]);
    assert_eq!(ids(&cluster), [first.clone(), third.clone()]);
    assert_eq!(cluster.archived_segments(1).len(), 1);
    assert_eq!(restored(&cluster, &[]), "a b c d e f");
    assert_eq!(restored(&cluster, &[&immediate[..], &[first.as_str()]].concat()), "a");

    let list = cluster.restore().arg("list").succeed().stdout;
    assert!(list.contains("held: audit of 2026"), "{list}");
    let show = cluster.restore().args(["show", &first]).succeed().stdout;
    assert!(show.contains("held         since 20") && show.contains("audit of 2026"), "{show}");
    cluster.agent().args(["release", &first]).succeed();
    let plan = expire(&cluster, &[]).stdout;
    assert!(plan.contains(&format!("delete  {first}")) && plan.contains("deleted 1 backup, "), "{plan}");
    assert_eq!(ids(&cluster), [third]);
    assert_eq!(cluster.archived_segments(1).len(), 0);
    assert_eq!(restored(&cluster, &[]), "a b c d e f");
}

#[test]
fn g10_expiry_after_a_backup_says_what_it_did_and_never_hides_that_the_backup_is_stored() {
    let cluster = cluster("full = 1\nafter_backup = true\n");
    let first = cluster.backup();
    let summary = json(&cluster.agent().args(["--quiet", "backup", "--json"]).succeed());
    let second = summary["id"].as_str().unwrap().to_owned();
    assert_eq!((&summary["expired"][0]["backups"], &summary["expired"][0]["failure"]), (&1.into(), &Value::Null));
    assert_eq!(ids(&cluster), std::slice::from_ref(&second));
    assert!(!cluster.cluster_dir().join("backups").join(&first).exists());
    // A second expiry finds nothing.
    let again = expire(&cluster, &[]).stdout;
    assert!(again.contains("deleted nothing"), "{again}");

    // A mark that cannot be read keeps everything, but the backup is stored all the same.
    let mark = cluster.cluster_dir().join("backups").join(&second).join("backup.json");
    let damaged = fs::read_to_string(&mark).unwrap().replace("\"format\": 1", "\"format\": 99");
    fs::write(&mark, damaged).unwrap();
    let outcome = cluster.agent().args(["backup"]).succeed();
    assert!(outcome.stderr.contains("the backup is stored, but expiring others failed"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&format!("because backup {second} may need any of it")), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("use a newer pgark"), "{}", outcome.stderr);
    let refused = cluster.agent().arg("expire").fail_with(2);
    assert!(refused.stderr.contains("no backup and no WAL is deleted"), "{}", refused.stderr);
    let damaged = fs::read_to_string(&mark).unwrap().replace("\"format\": 99", "\"format\": 1 ");
    fs::write(&mark, damaged).unwrap();
    let refused = cluster.agent().args(["expire", "--json"]).fail_with(4);
    assert_eq!(json(&refused)["repositories"][0]["planned_bytes"], 0);
}

#[test]
fn holds_and_releases_say_what_is_wrong() {
    let cluster = cluster("");
    let missing = ["hold", "20200101T000000Z-full", "--reason", "x"];
    assert!(cluster.agent().args(missing).fail_with(3).stderr.contains("there is no finished backup"));
    let id = cluster.backup();
    assert!(cluster.agent().args(["hold", &id, "--reason", " "]).fail_with(2).stderr.contains("--reason is empty"));
    assert!(cluster.agent().args(["release", &id]).succeed().stdout.contains("was not held"));
    cluster.agent().args(["hold", &id, "--reason", "first"]).succeed();
    let second = cluster.agent().args(["hold", &id, "--reason", "second"]).succeed().stdout;
    assert!(second.contains("is held in repository `local` already") && second.contains(": first"), "{second}");
    let plan = expire(&cluster, &["--dry-run"]).stdout;
    assert!(plan.contains("nothing expires: [retention] has neither `full` nor `window`"), "{plan}");
}
