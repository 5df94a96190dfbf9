//! What the stories of incremental backups need: clusters that can give them, chains, and what two restored directories
//! have to do with each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use harness::{ProtectedCluster, ProtectedClusterBuilder, bash};
use serde_json::Value;

const BLOCK: usize = 8192;

pub(crate) fn start(major: u32) -> ProtectedCluster {
    builder(major).start()
}

/// A cluster whose agent may take incremental backups.
pub(crate) fn builder(major: u32) -> ProtectedClusterBuilder {
    let server = |builder: harness::PostgresServerBuilder| {
        let builder = builder.major(major).data_checksums(true);
        let builder = builder.setting("autovacuum", "off").setting("shared_buffers", "64MB");
        match major {
            17.. => builder.setting("summarize_wal", "on").setting("allow_in_place_tablespaces", "on"),
            _ => builder,
        }
    };
    // Before 17 what an incremental backup builds on is made only where one may follow.
    let incremental = if major < 17 { "incremental = \"auto\"\n" } else { "" };
    let settings = format!("[compression]\nlevel = 1\n[backup]\narchive_wait = \"1s\"\n{incremental}");
    ProtectedCluster::builder().server(server).settings(&settings)
}

/// Adds a tablespace `ts`, in place where that can be.
pub(crate) fn create_tablespace(cluster: &ProtectedCluster) {
    let location = match cluster.server().major() {
        17.. => String::new(),
        _ => cluster.dir().create_dir("tablespace").display().to_string(),
    };
    cluster.server().psql(&format!("CREATE TABLESPACE ts LOCATION '{location}'"));
}

pub(crate) fn backup(cluster: &ProtectedCluster, kind: &str) -> String {
    let outcome = cluster.agent().args(["--quiet", "backup", "--json", kind]).succeed();
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let id = summary["id"].as_str().unwrap().to_owned();
    assert_eq!(summary["parent"].as_str().map(str::to_owned), parent_of(cluster, &id));
    id
}

/// Makes a full backup of a chain; returns its id.
pub(crate) fn consolidate(cluster: &ProtectedCluster, id: &str) -> String {
    let outcome = cluster.agent().args(["--quiet", "consolidate", "--json", id]).succeed();
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((summary["parent"].as_str(), summary["consolidated_from"].as_str()), (None, Some(id)));
    summary["id"].as_str().unwrap().to_owned()
}

pub(crate) fn parent_of(cluster: &ProtectedCluster, id: &str) -> Option<String> {
    let mark = fs::read(cluster.cluster_dir().join("backups").join(id).join("backup.json")).unwrap();
    let mark: Value = serde_json::from_slice(&mark).unwrap();
    mark["parent"].as_str().map(str::to_owned)
}

/// A backup and those that it builds on, oldest first.
fn chain_of(cluster: &ProtectedCluster, id: &str) -> Vec<String> {
    let mut chain = vec![id.to_owned()];
    while let Some(parent) = parent_of(cluster, &chain[0]) {
        chain.insert(0, parent);
    }
    chain
}

/// What is restored from a chain must be what the server's own tool makes of it, but for what that brings back.
/// Returns what was restored.
pub(crate) fn chain_equals_combined(cluster: &ProtectedCluster, id: &str) -> PathBuf {
    cluster.archive_all();
    let chain = chain_of(cluster, id);
    let unpacked: Vec<PathBuf> = chain.iter().map(|id| unpack(cluster, id)).collect();
    let theirs = combine(cluster, &format!("theirs-{id}"), &unpacked);
    let ours = restore(cluster, &format!("ours-{id}"), id);
    let zeros = compare(&ours, &theirs);
    println!("{id}: a chain of {}, {zeros} blocks are zeros instead of what was cut off", chain.len());
    unpacked.iter().chain([&theirs]).for_each(|directory| fs::remove_dir_all(directory).unwrap());
    ours
}

/// One more incremental backup must be the same as the full one behind it. Returns what was restored of the former.
pub(crate) fn chain_equals_full(cluster: &ProtectedCluster) -> PathBuf {
    // Hint bits that were just set are stored with this one.
    let last = backup(cluster, "--incremental");
    let full = backup(cluster, "--full");
    cluster.archive_all();
    let (ours, theirs) = (restore(cluster, "ours", &last), restore(cluster, "theirs", &full));
    compare_relations(&ours, &theirs);
    println!("{last}: a chain of {}", chain_of(cluster, &last).len());
    fs::remove_dir_all(theirs).unwrap();
    ours
}

/// Unpacks a backup with zstd and tar, as the repository's format promises.
pub(crate) fn unpack(cluster: &ProtectedCluster, id: &str) -> PathBuf {
    let to = cluster.dir().create_dir(&format!("unpacked-{id}"));
    let script = "set -e\nfor part in \"$FROM\"/parts/*.tar.zst; do zstd -dc \"$part\" | tar -x -C \"$TO\"; done\n\
                  zstd -dc \"$FROM/backup_manifest.zst\" > \"$TO/backup_manifest\"\nchmod 700 \"$TO\"";
    let from = cluster.cluster_dir().join("backups").join(id);
    bash(cluster.dir().path(), script).env("FROM", from).env("TO", &to).succeed();
    to
}

/// The files below a directory, with those left out that every restore writes itself.
fn files(root: &Path) -> BTreeMap<String, PathBuf> {
    const OWN: [&str; 4] = ["backup_manifest", "postgresql.auto.conf", "recovery.signal", "tablespace_map"];
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if !OWN.contains(&name.as_str()) {
                files.insert(name, path);
            }
        }
    }
    files
}

/// Compares block by block; returns how many blocks are zeros in ours and not in theirs.
pub(crate) fn compare(ours: &Path, theirs: &Path) -> usize {
    let (ours, theirs) = (files(ours), files(theirs));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    let mut zeros = 0;
    for (name, path) in &ours {
        let (one, other) = (fs::read(path).unwrap(), fs::read(&theirs[name]).unwrap());
        assert_eq!(one.len(), other.len(), "{name}");
        for (number, (one, other)) in one.chunks(BLOCK).zip(other.chunks(BLOCK)).enumerate() {
            if one != other {
                assert!(one.iter().all(|&byte| byte == 0), "{name}: block {number} differs");
                zeros += 1;
            }
        }
    }
    zeros
}

pub(crate) fn combine(cluster: &ProtectedCluster, name: &str, chain: &[PathBuf]) -> PathBuf {
    let to = cluster.dir().join(name);
    let mut arguments: Vec<String> = chain.iter().map(|folder| folder.display().to_string()).collect();
    arguments.extend(["-o".to_owned(), to.display().to_string()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    cluster.server().run("pg_combinebackup", &arguments);
    to
}

/// Restores the files of a backup without any WAL, which must be those of its manifest.
pub(crate) fn restore(cluster: &ProtectedCluster, name: &str, id: &str) -> PathBuf {
    let tablespaces = cluster.dir().join(format!("{name}-tablespaces")).display().to_string();
    let arguments = ["--backup", id, "--target-immediate", "--tablespace-base", &tablespaces];
    let directory = cluster.restore_to(name, &arguments);
    verify(cluster, &directory);
    directory
}

pub(crate) fn verify(cluster: &ProtectedCluster, directory: &Path) {
    cluster.server().run("pg_verifybackup", &["--no-parse-wal", &directory.display().to_string()]);
}

/// The files of all relations must be the same.
fn compare_relations(ours: &Path, theirs: &Path) {
    let relations = |root: &Path| -> BTreeMap<String, PathBuf> {
        let is_relation = |name: &String| {
            ["base/", "global/", "pg_tblspc/"].iter().any(|folder| name.starts_with(folder))
                && name != "global/pg_control"
        };
        files(root).into_iter().filter(|(name, _)| is_relation(name)).collect()
    };
    let (one, other) = (relations(ours), relations(theirs));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (name, path) in &one {
        assert!(fs::read(path).unwrap() == fs::read(&other[name]).unwrap(), "{name} differs");
    }
}
