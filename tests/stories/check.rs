//! `pgark-agent check` against real servers and stores: what is in order is said, what is wrong has its own line with
//! what mends it, and nothing wrong keeps the rest from being looked at.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use harness::{Action, Fault, FaultProxy, Program, ProtectedCluster, S3Server, Trigger, s3_repository};
use serde_json::Value;

/// What one check found.
struct Checked {
    code: Option<i32>,
    findings: Vec<Value>,
}

fn check(cluster: &ProtectedCluster, config: &Path, arguments: &[&str]) -> Checked {
    let agent = Program::agent().config(config).as_test_user().current_dir(cluster.dir().path());
    let outcome = agent.args(["check", "--json"]).args(arguments).run();
    let json: Value =
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{}{}", outcome.stdout, outcome.stderr));
    assert_eq!((json["version"].as_u64(), json["command"].as_str()), (Some(1), Some("check")), "{json}");
    let findings = json["findings"].as_array().unwrap().clone();
    let failures = findings.iter().filter(|finding| finding["result"] == "failure").count() as u64;
    assert_eq!(json["failures"].as_u64(), Some(failures), "{json}");
    assert_eq!(outcome.code, Some(i32::from(failures > 0)), "{json}");
    Checked { code: outcome.code, findings }
}

impl Checked {
    /// Some finding of this kind says so, and what mends it.
    fn has(&self, check: &str, result: &str, message: &str, mend: &str) {
        let found = self.findings.iter().any(|finding| {
            let says = |key: &str, words: &str| finding[key].as_str().unwrap_or_default().contains(words);
            finding["check"] == check && finding["result"] == result && says("message", message) && says("mend", mend)
        });
        assert!(found, "no {result} of {check} with {message:?} and {mend:?} in {:#?}", self.findings);
    }
}

#[test]
fn a_set_up_that_works_is_proven_by_a_segment_in_every_repository() {
    let s3 = S3Server::start();
    let builder = ProtectedCluster::builder();
    let local = harness::local_repository(builder.dir(), "local", "repository");
    let far = s3.repository(builder.dir(), "s3");
    let cluster = builder.repository(&local).repository(&far).start();
    let checked = check(&cluster, cluster.config(), &[]);
    assert_eq!(checked.code, Some(0), "{:#?}", checked.findings);
    for (subject, message) in [
        ("connection", "PostgreSQL 15"),
        ("replication", "may stream"),
        ("wal_level", "wal_level is replica"),
        ("archive_mode", "archive_mode is on"),
        ("archive_command", "config.toml"),
        ("repository", "`local`: may create, list and delete"),
        ("repository", "`s3`: may create, list and delete"),
        ("conditional_create", "`local` refuses to replace an object"),
        ("conditional_create", "`s3` refuses to replace an object"),
        ("clock", "the server"),
        ("clock", "the repository `s3`"),
        ("state_dir", "free"),
        ("space", "`local`"),
        ("space", "pg_wal"),
        ("segment", "is in every repository"),
    ] {
        checked.has(subject, "ok", message, "");
    }
    checked.has("backup", "warning", "`local` has no backup", "pgark-agent backup");
    checked.has("encryption", "warning", "`s3`: what is stored is not encrypted", "recipients");
    assert!(!cluster.repository_dir().join("main/check/probe").exists(), "the probe stayed");

    let text = cluster.agent().arg("check").succeed().stdout;
    assert!(text.contains("ok       wal_level") && text.contains("to mend it: pgark-agent backup"), "{text}");
    cluster.backup();
    check(&cluster, cluster.config(), &["--no-switch"]).has("backup", "ok", "`s3`: the newest backup", "");
    cluster.agent().args(["check", "--config", "/nonexistent/x.toml"]).fail_with(2);
}

#[test]
fn b01_what_the_server_really_runs_is_looked_at() {
    let mut cluster = ProtectedCluster::start();
    let own = cluster.config().to_path_buf();
    let command = cluster.server().psql("SHOW archive_command");
    let other = fs::read_to_string(&own).unwrap();
    let elsewhere = cluster.dir().create_dir("elsewhere");
    let other_name = cluster.dir().write("name.toml", other.replace("name = \"main\"", "name = \"other\""));
    let other_place = other.replace(&cluster.repository_dir().display().to_string(), &elsewhere.display().to_string());
    let other_place = cluster.dir().write("place.toml", other_place);
    let closed = cluster.dir().write("closed.toml", &other);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let with = |config: &Path| command.replace(&own.display().to_string(), &config.display().to_string());
    for (command, message, mend) in [
        ("cp %p /tmp/%f".to_owned(), "runs `cp`, not pgark-archive-command", "ALTER SYSTEM SET archive_command"),
        (String::new(), "archive_command is empty", "ALTER SYSTEM SET archive_command"),
        (command.replace("%p", ""), "does not pass %p", "ALTER SYSTEM SET archive_command"),
        ("/nonexistent/pgark-archive-command %p".to_owned(), "is not a program on this host", "install"),
        (with(Path::new("/nonexistent.toml")), "/nonexistent.toml, which cannot be looked at", "--config"),
        (with(&closed), "closed.toml, which the server's user", "chmod 0640"),
        (with(&other_name), "ships for the cluster `other`, not `main`", "agree"),
        (with(&other_place), "does not ship to `local`", "agree"),
    ] {
        cluster.server_mut().alter_system("archive_command", &command);
        cluster.server_mut().reload();
        cluster.server_mut().wait_for("SHOW archive_command", &command);
        let checked = check(&cluster, &own, &["--no-switch"]);
        checked.has("archive_command", "failure", message, mend);
        checked.has("repository", "ok", "`local`: may create", "");
    }
    cluster.server_mut().alter_system("archive_command", "false pgark-archive-command %p");
    cluster.server_mut().reload();
    cluster.server_mut().psql("SELECT pg_switch_wal()");
    cluster.server_mut().wait_for("SELECT failed_count > 0 FROM pg_stat_archiver", "t");
    check(&cluster, &own, &["--no-switch"]).has("archiving", "failure", "archiving fails", "the server's log");
}

#[test]
fn a01_a_role_without_rights_ends_nothing_early() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE ROLE weak LOGIN; CREATE ROLE plain LOGIN REPLICATION");
    let own = fs::read_to_string(cluster.config()).unwrap();
    let weak = cluster.dir().write("weak.toml", own.replace("user=postgres", "user=weak"));
    let checked = check(&cluster, &weak, &[]);
    checked.has("replication", "failure", "", "ALTER ROLE \"weak\" REPLICATION");
    checked.has("role", "warning", "weak may not read", "GRANT pg_read_all_settings TO weak");
    checked.has("wal_level", "ok", "replica", "");
    checked.has("repository", "ok", "`local`: may create", "");
    let plain = cluster.dir().write("plain.toml", own.replace("user=postgres", "user=plain"));
    cluster.archive_all();
    let checked = check(&cluster, &plain, &[]);
    assert_eq!(checked.code, Some(0), "{:#?}", checked.findings);
    checked.has("segment", "warning", "may not end a segment", "GRANT EXECUTE ON FUNCTION pg_switch_wal()");
    checked.has("segment", "ok", "is in every repository", "");
    let nobody = cluster.dir().write("nobody.toml", own.replace("user=postgres", "user=nobody_at_all"));
    let checked = check(&cluster, &nobody, &[]);
    checked.has("connection", "failure", "nobody_at_all", "");
    checked.has("repository", "ok", "`local`: may create", "");
}

#[test]
fn d32_a_server_without_enough_wal_is_a_failure() {
    let builder = ProtectedCluster::builder().without_archiving();
    let cluster =
        builder.server(|server| server.setting("wal_level", "minimal").setting("max_wal_senders", "0")).start();
    let checked = check(&cluster, cluster.config(), &[]);
    checked.has("wal_level", "failure", "wal_level is minimal", "ALTER SYSTEM SET wal_level = 'replica'");
    checked.has("archive_mode", "failure", "archive_mode is off and nobody streams", "archive_mode = 'on'");
    checked.has("replication", "failure", "", "max_wal_senders");
}

#[test]
fn c10_a_store_that_ignores_the_condition_or_refuses_is_found() {
    let s3 = S3Server::start();
    let proxy = FaultProxy::to_port(s3.port());
    let builder = ProtectedCluster::builder();
    let local = harness::local_repository(builder.dir(), "local", "repository");
    let far = s3_repository(builder.dir(), "s3", &proxy.endpoint(), "backups", "", s3.keys());
    let cluster = builder.repository(&local).repository(&far).start();
    let probe = Trigger::RequestWith("PUT /backups/main/check/probe".to_owned());
    let accepted = "HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 0\r\n\r\n";
    proxy.add(Fault::always(probe, Action::Answer(accepted.as_bytes().to_vec())));
    fs::set_permissions(cluster.repository_dir(), fs::Permissions::from_mode(0o555)).unwrap();
    let checked = check(&cluster, cluster.config(), &["--no-switch"]);
    fs::set_permissions(cluster.repository_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    checked.has("conditional_create", "failure", "it ignores If-None-Match", "conditional writes");
    checked.has("repository", "failure", "`local`: cannot create objects", "chown");
    proxy.clear();
    // Deleting is not needed to write.
    proxy.add(Fault::always(
        Trigger::RequestWith("POST /backups?delete".to_owned()),
        Fault::http_answer("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>"),
    ));
    for _ in 0..2 {
        let checked = check(&cluster, cluster.config(), &["--no-switch"]);
        checked.has("repository", "ok", "`s3`: may not delete", "");
        checked.has("conditional_create", "ok", "`s3` refuses to replace", "");
        assert_eq!(checked.code, Some(0), "{:#?}", checked.findings);
    }
}

#[test]
fn a05_slots_that_are_lost_or_forgotten_are_named() {
    let builder = ProtectedCluster::builder();
    let mut cluster = builder.server(|server| server.wal_segment_megabytes(1)).start();
    cluster.server().psql("SELECT pg_create_physical_replication_slot('pgark', true)");
    check(&cluster, cluster.config(), &["--no-switch"]).has(
        "slots",
        "warning",
        "max_slot_wal_keep_size is unlimited",
        "max_slot_wal_keep_size",
    );
    check(&cluster, cluster.config(), &["--no-switch"]).has(
        "slots",
        "warning",
        "nobody streams",
        "pg_drop_replication_slot",
    );
    cluster.server_mut().alter_system("max_slot_wal_keep_size", "1MB");
    cluster.server_mut().reload();
    for _ in 0..6 {
        cluster.server().psql("CREATE TABLE x AS SELECT n FROM generate_series(1, 20000) n; DROP TABLE x");
        cluster.server().psql("SELECT pg_switch_wal()");
    }
    cluster.server().psql("CHECKPOINT");
    cluster.server_mut().wait_for("SELECT wal_status FROM pg_replication_slots", "lost");
    let checked = check(&cluster, cluster.config(), &[]);
    checked.has("slots", "failure", "has given up the slot pgark", "pgark-agent backup");
    checked.has("segment", "ok", "is in every repository", "");
}
