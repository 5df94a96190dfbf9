//! B04: `pgark-archive-command` is killed at every kind of system call that it makes. No partial object is ever visible,
//! and the next call stores the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use harness::{PostgresServer, Program, TempDir};

use crate::repository_files::RepositoryFiles;
use crate::site::directory_repository;
use crate::strace::{killed_at, was_killed};

/// Calls on the way of a segment into a repository, and how many of each are tried in the short run: the first ones
/// load the program.
const CALLS: [(&str, u32, u32); 6] =
    [("openat", 2, 60), ("mkdir", 1, 9), ("write", 1, 40), ("fsync", 1, 20), ("linkat", 1, 2), ("exit_group", 1, 1)];

#[test]
fn b04_an_archive_command_that_is_killed_leaves_nothing_or_the_whole_segment() {
    sweep(7);
}

#[test]
#[ignore = "long: make soak"]
fn soak_b04_an_archive_command_that_is_killed_at_every_call() {
    sweep(1);
}

fn sweep(stride: u32) {
    let server = PostgresServer::builder().start();
    server.psql("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 50000) AS i");
    let name = server.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    server.psql("SELECT pg_switch_wal()");
    let segment = Segment { path: server.data_dir().join("pg_wal").join(name) };
    let (mut nothing, mut whole) = (0, 0);
    for (call, first, most) in CALLS {
        // Where a call is rare, every one of them is tried.
        let stride = if most < 10 { 1 } else { stride };
        for n in (first..=most).step_by(stride as usize) {
            match segment.killed(call, n) {
                None => break,
                Some(false) => nothing += 1,
                Some(true) => whole += 1,
            }
        }
    }
    println!("{nothing} killed calls left nothing, {whole} had stored the segment");
    assert!(nothing >= 8, "only {nothing} calls were killed before the end");
    assert!(whole >= 1, "no call was killed between the link and the end");
}

struct Segment {
    path: PathBuf,
}

impl Segment {
    /// Kills one call, and calls again. Nothing when the program makes fewer such calls; else whether the segment was
    /// in the repository after the kill.
    fn killed(&self, call: &str, n: u32) -> Option<bool> {
        let dir = TempDir::new("archive");
        let repository = dir.create_dir("repository");
        let config = dir.write("pgark.toml", directory_repository(&repository));
        let files = RepositoryFiles::new(&repository);
        let outcome = killed_at("pgark-archive-command", call, n).arg("--config").arg(&config).arg(&self.path).run();
        if !was_killed(&outcome) {
            assert_eq!(outcome.code, Some(0), "{call} {n}: {}", outcome.stderr);
            return None;
        }
        let after_kill = files.all();
        assert!(after_kill.len() <= 1, "{call} {n}: {after_kill:?}");
        for name in &after_kill {
            assert!(name.ends_with(".zst"), "{call} {n}: a partial object {name}");
            self.is_stored_in(&files.path(name), &dir);
        }
        Program::archive_command().config(&config).arg(&self.path).succeed();
        let after_next = files.all();
        assert_eq!(after_next.len(), 1, "{call} {n}: {after_next:?}");
        self.is_stored_in(&files.path(&after_next[0]), &dir);
        Some(!after_kill.is_empty())
    }

    fn is_stored_in(&self, object: &Path, dir: &TempDir) {
        let raw = dir.join("raw");
        Program::at(Path::new("/usr/bin/zstd")).args(["-d", "-q", "-f", "-o"]).args([&raw, object]).succeed();
        assert!(fs::read(&raw).unwrap() == fs::read(&self.path).unwrap(), "{} holds other bytes", object.display());
    }
}
