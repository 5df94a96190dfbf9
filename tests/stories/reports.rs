//! What the programs print: JSON that programs can read on standard output, words for people elsewhere.

use harness::{Program, ProtectedCluster};
use serde_json::Value;

/// One JSON object and nothing else on standard output.
fn json(program: Program, command: &str) -> Value {
    let outcome = program.succeed();
    let value: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&value["version"], &value["command"]), (&Value::from(1), &Value::from(command)));
    value
}

#[test]
fn json_reports_parse_and_agree() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE t AS SELECT 1 AS n");
    let arguments = ["backup", "--json", "--annotate", "ticket=42"];
    let backup = json(cluster.agent().args(arguments), "backup");
    let id = backup["id"].as_str().unwrap();
    cluster.server().psql("INSERT INTO t VALUES (2)");
    cluster.archive_all();

    let list = json(cluster.restore().args(["list", "--json"]), "list");
    assert_eq!(list["backups"][0]["id"], backup["id"]);
    assert_eq!(list["backups"][0]["stop_lsn"], backup["stop_lsn"]);
    assert_eq!(list["unfinished"], Value::Array(Vec::new()));
    assert_eq!(list["timelines"][0]["timeline"], 1);
    assert_eq!(list["timelines"][0]["stretches"].as_array().unwrap().len(), 1, "{list}");
    let identifier = list["system_identifier"].as_str().unwrap();
    assert!(cluster.cluster_dir().ends_with(identifier));

    let show = json(cluster.restore().args(["show", id, "--json"]), "show");
    assert_eq!(show["backup"]["annotations"]["ticket"], "42");
    assert_eq!(show["problem"], Value::Null);
    let dry_run = json(cluster.restore().args(["base", "--dry-run", "--json"]), "base");
    assert_eq!(dry_run["plan"]["backup"]["id"], backup["id"]);
    assert_eq!(dry_run["restored"], false);
    let to = cluster.dir().join("restored");
    let base = json(cluster.restore().args(["base", "--json", "--to"]).arg(&to), "base");
    assert_eq!(base["restored"], true);
    assert_eq!(base["plan"]["reachable_lsn"], show["to_the_end"]["reachable_lsn"]);

    // For people: the same facts as text, and nothing but facts with --quiet.
    let text = cluster.restore().args(["list"]).succeed().stdout;
    assert!(text.contains(id) && text.contains("ticket=42") && text.contains("WAL of timeline 1"), "{text}");
    let text = cluster.restore().args(["show", id]).succeed().stdout;
    assert!(text.contains("restorable"), "{text}");
    let quiet = cluster.agent().args(["--quiet", "backup"]).succeed();
    assert_eq!(quiet.stderr, "");
}

#[test]
fn an_empty_repository_is_said_to_be_empty() {
    let cluster = ProtectedCluster::builder().without_archiving().create();
    for arguments in [&["list"][..], &["base", "--dry-run"]] {
        let refused = cluster.restore().args(arguments).fail_with(3);
        assert!(refused.stderr.contains("mounted"), "{}", refused.stderr);
    }
    let config = cluster.dir().write("wrong.toml", "[cluster]\nconection = \"\"\n");
    let refused = cluster.restore_with(&config).arg("list").fail_with(2);
    assert!(refused.stderr.contains("connection"), "{}", refused.stderr);
    let missing = cluster.dir().join("missing.toml");
    let refused = cluster.restore_with(&missing).arg("list").fail_with(2);
    assert!(refused.stderr.contains("missing.toml"), "{}", refused.stderr);
}
