//! Incremental backups of PostgreSQL 17 and 18: chains of them equal what the server's own `pg_combinebackup` makes,
//! except where that brings deleted rows back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{PostgresServer, Program, ProtectedCluster, standard_tool, wait_until};
use serde_json::Value;

use crate::chains::{
    backup, builder, chain_equals_full, combine, compare, create_tablespace, parent_of, restore, start, unpack, verify,
};

/// Everything that changes a relation's files in a way of its own; a step for each backup.
pub(crate) const STEPS: [&str; 7] = [
    "UPDATE a SET v = 'x' || v WHERE id % 1000 = 3; DELETE FROM b WHERE id > 5000; VACUUM b; \
     INSERT INTO e SELECT g, md5(g::text) FROM generate_series(1, 3000) g",
    "INSERT INTO b SELECT g, repeat(md5(g::text), 2) FROM generate_series(1, 9000) g; TRUNCATE d; \
     UPDATE c SET v = 'y' WHERE id % 700 = 1; DROP TABLE u; DELETE FROM e WHERE id > 1000; VACUUM e",
    "INSERT INTO d SELECT generate_series(1, 500); INSERT INTO a SELECT g, 'n' FROM generate_series(1, 3000) g; \
     ALTER TABLE c SET TABLESPACE pg_default; VACUUM a; INSERT INTO e SELECT g, 'z' FROM generate_series(1, 900) g",
    "UPDATE a SET v = 'q' WHERE id BETWEEN 100 AND 300; DELETE FROM a WHERE id > 40000; VACUUM a",
    "CREATE TABLE f AS SELECT generate_series(1, 1000) g; UPDATE b SET v = 'short' WHERE id % 50 = 1; \
     VACUUM FULL pg_class; CHECKPOINT",
    "DROP TABLE f; CREATE UNLOGGED TABLE u2 AS SELECT generate_series(1, 1000) g; CREATE TABLE f AS SELECT 1 AS g; \
     REINDEX TABLE a",
    "UPDATE a SET v = 'last' WHERE id = 7",
];

pub(crate) fn fill(cluster: &ProtectedCluster) {
    create_tablespace(cluster);
    for statement in [
        "CREATE TABLE a AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 60000) g",
        "CREATE INDEX ON a (id)",
        "CREATE TABLE b AS SELECT g AS id, repeat(md5(g::text), 3) AS v FROM generate_series(1, 20000) g",
        "CREATE TABLE c TABLESPACE ts AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 20000) g",
        "CREATE INDEX ON c (v) TABLESPACE ts",
        "CREATE TABLE d AS SELECT g AS id FROM generate_series(1, 20000) g",
        "CREATE UNLOGGED TABLE u AS SELECT g AS id FROM generate_series(1, 20000) g",
        "CREATE TABLE e (id int, v text)",
        "VACUUM",
    ] {
        cluster.server().psql(statement);
    }
}

pub(crate) fn statements(server: &PostgresServer, step: &str) {
    step.split("; ").for_each(|statement| drop(server.psql(statement)));
}

pub(crate) fn content(server: &PostgresServer) -> String {
    ["a", "b", "c", "d", "e", "f"]
        .map(|table| {
            server.psql(&format!(
                "SELECT '{table}', count(*), md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table} t"
            ))
        })
        .join("\n")
}

fn chains_equal_those_of_the_server(major: u32) {
    let cluster = start(major);
    fill(&cluster);
    let mut ids = vec![backup(&cluster, "--full")];
    for step in STEPS {
        statements(cluster.server(), step);
        ids.push(backup(&cluster, "--incremental"));
    }
    for pair in ids.windows(2) {
        assert_eq!(parent_of(&cluster, &pair[1]).as_ref(), Some(&pair[0]));
    }
    let expected = content(cluster.server());
    cluster.archive_all();
    let unpacked: Vec<PathBuf> = ids.iter().map(|id| unpack(&cluster, id)).collect();
    for last in [1, 4, ids.len() - 1] {
        let theirs = combine(&cluster, &format!("theirs-{last}"), &unpacked[..=last]);
        let ours = restore(&cluster, &format!("ours-{last}"), &ids[last]);
        assert_eq!(compare(&ours, &theirs), 0, "chain of {}", last + 1);
    }
    // Over what an older backup of the chain made, and over what a chain made.
    let ours = cluster.dir().join("ours-1");
    let newest = ids.last().unwrap();
    for _ in 0..2 {
        cluster.restore().args(["--quiet", "base", "--delta", "--backup", newest, "--to"]).arg(&ours).succeed();
        assert_eq!(compare(&ours, &cluster.dir().join(format!("theirs-{}", ids.len() - 1))), 0);
        verify(&cluster, &ours);
    }
    let mut server = PostgresServer::start_restored(ours, major);
    server.wait_until_promoted();
    assert_eq!(content(&server), expected);
    cluster.restore().args(["verify"]).succeed();
}

/// These servers send everything: the last incremental backup must come back as the full one that is taken right behind it.
fn chains_equal_a_full_backup(major: u32) {
    let cluster = start(major);
    fill(&cluster);
    let mut ids = vec![backup(&cluster, "--full")];
    for step in STEPS {
        statements(cluster.server(), step);
        ids.push(backup(&cluster, "--incremental"));
    }
    let expected = content(cluster.server());
    for pair in ids.windows(2) {
        assert_eq!(parent_of(&cluster, &pair[1]).as_ref(), Some(&pair[0]));
    }
    let ours = chain_equals_full(&cluster);
    let sizes: Vec<u64> = ids.iter().map(|id| fs::metadata(part(&cluster, id)).unwrap().len()).collect();
    assert!(sizes[STEPS.len()] * 3 < sizes[0], "{sizes:?}");
    let mut server = PostgresServer::start_restored(ours, major);
    server.wait_until_paused();
    assert_eq!(content(&server), expected);
    cluster.restore().args(["verify"]).succeed();
}

#[test]
fn e10_e17_chains_of_13_equal_a_full_backup() {
    chains_equal_a_full_backup(13);
}

#[test]
fn e10_e17_chains_of_14_equal_a_full_backup() {
    chains_equal_a_full_backup(14);
}

#[test]
fn e10_e17_chains_of_15_equal_a_full_backup() {
    chains_equal_a_full_backup(15);
}

#[test]
fn e10_e17_chains_of_16_equal_a_full_backup() {
    chains_equal_a_full_backup(16);
}

#[test]
fn e10_e17_chains_of_17_equal_those_of_pg_combinebackup() {
    chains_equal_those_of_the_server(17);
}

#[test]
fn e10_e17_chains_of_18_equal_those_of_pg_combinebackup() {
    chains_equal_those_of_the_server(18);
}

/// Rows are deleted, the table is cut, and grows again by pages that no WAL describes: `pg_combinebackup` takes the old
/// pages, with the deleted rows, from the full backup.
#[test]
fn e01_deleted_rows_do_not_come_back() {
    let cluster = start(18);
    let rows = |server: &PostgresServer| server.psql("SELECT count(*), sum(id) FROM t");
    let server = cluster.server();
    server.psql("CREATE TABLE t AS SELECT g AS id, repeat('x', 400) AS v FROM generate_series(1, 8000) g");
    server.psql("CHECKPOINT");
    server.psql("VACUUM t");
    let mut ids = vec![backup(&cluster, "--full")];
    server.psql("DELETE FROM t WHERE ctid >= '(20,0)'");
    server.psql("VACUUM t");
    let file = cluster.dir().join("rows");
    let lines: String = (1..=200).map(|number| format!("{number}\t{}\n", "y".repeat(400))).collect();
    fs::write(&file, lines).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| server.psql(&format!("COPY t FROM '{}'", file.display())));
        }
    });
    ids.push(backup(&cluster, "--incremental"));
    ids.push(backup(&cluster, "--incremental"));
    let expected = rows(server);
    cluster.archive_all();
    let mut restored = cluster.restore_and_start("restored", &["--backup", &ids[2]]);
    restored.wait_until_promoted();
    assert_eq!(rows(&restored), expected);

    let unpacked: Vec<PathBuf> = ids.iter().map(|id| unpack(&cluster, id)).collect();
    let theirs = combine(&cluster, "theirs", &unpacked);
    let ours = restore(&cluster, "ours", &ids[2]);
    println!("{} blocks are zeros instead of deleted rows", compare(&ours, &theirs));
}

pub(crate) fn folder(cluster: &ProtectedCluster, id: &str) -> PathBuf {
    cluster.cluster_dir().join("backups").join(id)
}

pub(crate) fn part(cluster: &ProtectedCluster, id: &str) -> PathBuf {
    folder(cluster, id).join("parts/000001.tar.zst")
}

/// Three backups that build on one another.
fn chain(cluster: &ProtectedCluster) -> Vec<String> {
    let server = cluster.server();
    server.psql("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 50000) g");
    let mut ids = vec![backup(cluster, "--full")];
    for number in 1..=2 {
        server.psql(&format!("UPDATE t SET v = 'changed' WHERE id % 500 = {number}"));
        ids.push(backup(cluster, "--incremental"));
    }
    cluster.archive_all();
    ids
}

#[test]
fn e04_e20_a_broken_chain_is_refused_before_anything_is_written() {
    let cluster = start(18);
    let ids = chain(&cluster);
    let [full, first, second] = ids.as_slice() else { panic!("{ids:?}") };
    let to = cluster.dir().join("refused");
    let base = |code: i32, reason: &str| {
        let arguments = ["--quiet", "base", "--backup", second, "--to"];
        let outcome = cluster.restore().args(arguments).arg(&to).fail_with(code);
        assert!(outcome.stderr.contains(reason), "{reason}: {}", outcome.stderr);
        assert!(!to.exists(), "{reason}");
    };
    let whole = |path: &Path| fs::read(path).unwrap();

    // Missing members, and one that claims to be another.
    for missing in [full, first] {
        let (mark, aside) = (folder(&cluster, missing).join("backup.json"), cluster.dir().join("aside"));
        fs::rename(&mark, &aside).unwrap();
        base(3, &format!("builds on {missing}, which is not there"));
        let listed = cluster.restore().arg("list").succeed();
        assert!(listed.stdout.contains(&format!("CANNOT BE USED: {missing} is missing")), "{}", listed.stdout);
        cluster.restore().args(["verify", "--quick"]).fail_with(4);
        fs::rename(&aside, &mark).unwrap();
    }
    // A changed byte, a lost object, and the part of another member, all along the chain.
    for member in [full, first, second] {
        let path = part(&cluster, member);
        let before = whole(&path);
        let mut flipped = before.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let other = whole(&part(&cluster, if member == first { second } else { first }));
        for content in [Some(flipped), Some(before[..middle].to_vec()), Some(other), None] {
            let code = if content.is_some() { 4 } else { 3 };
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            base(code, "part");
            let verified = cluster.restore().args(["verify", second]).fail_with(4);
            let told = format!("backup {second} cannot be restored");
            let is_full_well = verified.stdout.contains(&format!("{full}  ok"));
            assert!(verified.stdout.contains(&told) && is_full_well == (member != full), "{}", verified.stdout);
        }
        fs::write(&path, before).unwrap();
    }
    // Without the last one there is the one before.
    fs::rename(folder(&cluster, second), cluster.dir().join("gone")).unwrap();
    cluster.restore().args(["--quiet", "base", "--to"]).arg(&to).succeed();
}

#[test]
fn e07_e08_where_only_changes_cannot_be_sent_a_full_backup_is_taken_or_none() {
    let cluster = builder(18).settings("incremental = \"auto\"\nchain_max = 1\n").start();
    let demanded = |reason: &str| {
        let outcome = cluster.agent().args(["backup", "--incremental"]).fail_with(1);
        assert!(outcome.stderr.contains(reason) && outcome.stderr.contains("--full"), "{reason}: {}", outcome.stderr);
    };
    let automatic = |parent: Option<&String>, reason: &str| {
        let outcome = cluster.agent().args(["-v", "backup", "--json"]).succeed();
        let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let id = summary["id"].as_str().unwrap().to_owned();
        assert_eq!(parent_of(&cluster, &id).as_ref(), parent, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(reason), "{reason}: {}", outcome.stderr);
        id
    };
    demanded("there is no backup yet");
    let first = automatic(None, "there is no backup yet");
    let second = automatic(Some(&first), "");
    let third = automatic(None, "backup.chain_max backups build on");
    // The command is heeded all the same.
    let fourth = backup(&cluster, "--incremental");
    assert_eq!(parent_of(&cluster, &fourth), Some(third.clone()));
    let fifth = backup(&cluster, "--incremental");
    let sixth = backup(&cluster, "--differential");
    assert_eq!((parent_of(&cluster, &fifth), parent_of(&cluster, &sixth)), (Some(fourth), Some(third.clone())));
    let listed = cluster.restore().arg("list").succeed().stdout;
    assert!(listed.contains(&format!("└ {second}")) && listed.contains(&format!("on {third}")), "{listed}");

    // A manifest that is not the one that was stored is never given to the server.
    let manifests = cluster.dir().join("state/manifests");
    assert_eq!(fs::read_dir(&manifests).unwrap().count(), 2);
    let other = fs::read(manifests.join(format!("main-{sixth}.zst"))).unwrap();
    let full = backup(&cluster, "--full");
    fs::write(manifests.join(format!("main-{full}.zst")), other).unwrap();
    demanded("is not the one that was stored");
    automatic(None, "is not the one that was stored");

    // The summaries are gone, and then there are none any more.
    let parent = backup(&cluster, "--full");
    cluster.server().psql("CHECKPOINT");
    let redo = cluster.server().psql("SELECT redo_lsn FROM pg_control_checkpoint()");
    let summarized = format!("SELECT count(*) > 0 FROM pg_available_wal_summaries() WHERE end_lsn >= '{redo}'");
    wait_until("the WAL is summarized", Duration::from_secs(60), || {
        (cluster.server().psql(&summarized) == "t").then_some(())
    });
    for entry in fs::read_dir(cluster.server().data_dir().join("pg_wal/summaries")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let outcome = cluster.agent().args(["backup", "--incremental"]).fail_with(1);
    assert!(outcome.stderr.contains("the server cannot send only what changed"), "{}", outcome.stderr);
    let begun = fs::read_dir(cluster.cluster_dir().join("backups")).unwrap().count();
    automatic(None, "the server cannot send only what changed");
    // What did not begin leaves nothing behind.
    let entries = fs::read_dir(cluster.cluster_dir().join("backups")).unwrap();
    let unfinished = entries.filter(|entry| !entry.as_ref().unwrap().path().join("backup.json").exists()).count();
    assert_eq!((unfinished, fs::read_dir(cluster.cluster_dir().join("backups")).unwrap().count()), (0, begun + 1));
    assert!(parent_of(&cluster, &parent).is_none());
    cluster.server().psql("ALTER SYSTEM SET summarize_wal = off");
    cluster.server().psql("SELECT pg_reload_conf()");
    wait_until("summarize_wal is off", Duration::from_secs(20), || {
        (cluster.server().psql("SHOW summarize_wal") == "off").then_some(())
    });
    demanded("summarize_wal is off");
    automatic(None, "summarize_wal is off");
}

/// What the host of the agent keeps can be lost, and must not be another one.
#[test]
fn e13_before_17_only_the_right_block_map_is_compared_with() {
    let cluster = start(15);
    let server = cluster.server();
    server.psql("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 50000) g");
    let map = |id: &str| cluster.dir().join(format!("state/maps/main-{id}.map"));
    let first = backup(&cluster, "--full");
    server.psql("UPDATE t SET v = 'changed' WHERE id % 500 = 1");
    let second = backup(&cluster, "--incremental");
    let whole = fs::read(map(&second)).unwrap();
    for content in [Some(fs::read(map(&first)).unwrap()), Some(whole[..whole.len() / 2].to_vec()), None] {
        match content {
            Some(content) => fs::write(map(&second), content).unwrap(),
            None => fs::remove_file(map(&second)).unwrap(),
        }
        let outcome = cluster.agent().args(["backup", "--incremental"]).fail_with(1);
        assert!(outcome.stderr.contains("its block map"), "{}", outcome.stderr);
    }
    let outcome = cluster.agent().args(["-v", "backup"]).succeed();
    assert!(outcome.stderr.contains("its block map") && outcome.stdout.contains("-full"), "{}", outcome.stderr);
}

/// The host of the agent cannot decrypt, and still builds on what it stored.
#[test]
fn e06_an_encrypted_chain_goes_on_after_a_promotion() {
    let builder = builder(18);
    let identity = builder.dir().join("owner.identity");
    Program::at(&standard_tool("age-keygen")).arg("-o").arg(&identity).as_test_user().succeed();
    let text = fs::read_to_string(&identity).unwrap();
    let public = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    let url = format!("file://{}", builder.dir().create_dir("repository").display());
    let section = format!("[[repository]]\nname = \"local\"\nurl = \"{url}\"\n");
    let mut cluster = builder.repository(&format!("{section}recipients = [\"{public}\"]\n")).start();
    let primary = cluster.server();
    primary.psql("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 50000) g");
    let mut standby = primary.start_standby();
    let full = backup(&cluster, "--full");
    primary.psql("UPDATE t SET v = 'before' WHERE id % 500 = 1");
    primary.psql("DELETE FROM t WHERE id > 30000");
    primary.psql("VACUUM t");
    let position = primary.psql("SELECT pg_current_wal_lsn()");
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{position}'"), "t");
    let connection = primary.connection_string();
    cluster.server_mut().stop_fast();
    standby.promote();
    standby.wait_until_promoted();
    standby.psql("UPDATE t SET v = 'after' WHERE id % 500 = 2");
    standby.psql("CHECKPOINT");

    let config = fs::read_to_string(cluster.config()).unwrap();
    let config = config.replace(&connection, &standby.connection_string());
    let config = cluster.dir().write("promoted.toml", config);
    let agent = || Program::agent().config(&config).as_test_user();
    let outcome = agent().args(["--quiet", "backup", "--incremental", "--json"]).succeed();
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(summary["timeline"], 2);
    assert_eq!(parent_of(&cluster, summary["id"].as_str().unwrap()), Some(full));
    let rows = "SELECT count(*), md5(string_agg(t::text, '' ORDER BY id)) FROM t";
    let expected = standby.psql(rows);

    let reading =
        cluster.write_config("reading.toml", &format!("{section}identity_file = \"{}\"\n", identity.display()));
    let to = cluster.dir().join("restored");
    cluster.restore().args(["--quiet", "base", "--to"]).arg(&to).fail_with(2);
    assert!(!to.exists());
    cluster.restore_with(&reading).args(["--quiet", "base", "--to"]).arg(&to).succeed();
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);
    let mut server = PostgresServer::start_restored(to, 18);
    server.wait_until_promoted();
    assert_eq!(server.psql(rows), expected);
}
