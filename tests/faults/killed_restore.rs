//! D02: `pgark-restore` is killed. A data directory that is not whole cannot be started, and a second restore into it is
//! refused with a sentence; a fetched WAL file is whole or not there.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{PostgresServer, Program};

use crate::site::{Site, assert_one_clear_line};
use crate::strace::{killed_at, was_killed};

const COUNT: &str = "SELECT count(*), sum(length(noise)) FROM kept";

#[test]
fn d02_a_restore_that_is_killed_leaves_nothing_that_starts() {
    let mut restores = KilledRestores::start(24);
    let whole = restores.whole();
    for tenths in [3, 6, 9] {
        restores.kill_after(whole * tenths / 10);
    }
    for (call, n) in [("openat", 400), ("mkdirat", 9), ("syncfs", 1), ("unlinkat", 1), ("renameat", 1)] {
        restores.kill_at(call, n);
    }
    restores.end(5);
}

#[test]
#[ignore = "long: make soak"]
fn soak_d02_a_restore_that_is_killed_a_hundred_times() {
    let mut restores = KilledRestores::start(48);
    let whole = restores.whole();
    for hundredths in (2..120).step_by(2) {
        restores.kill_after(whole * hundredths / 100);
    }
    for (call, times, step) in [("openat", 1200, 60), ("mkdirat", 30, 3), ("fsync", 5, 1), ("unlinkat", 1, 1)] {
        (1..=times).step_by(step).for_each(|n| restores.kill_at(call, n));
    }
    for call in ["syncfs", "renameat", "symlinkat", "exit_group"] {
        restores.kill_at(call, 1);
    }
    restores.end(40);
}

struct KilledRestores {
    site: Site,
    expected: String,
    number: u32,
    unfinished: u32,
}

impl KilledRestores {
    fn start(megabytes: u32) -> Self {
        let site = Site::start();
        site.fill("kept", megabytes);
        site.start_backup().succeed();
        let expected = site.server().psql(COUNT);
        Self { site, expected, number: 0, unfinished: 0 }
    }

    fn whole(&self) -> Duration {
        let started = Instant::now();
        self.site.base("whole").succeed();
        started.elapsed()
    }

    fn kill_after(&mut self, delay: Duration) {
        let name = self.next();
        let restore = self.site.base(&name).start();
        std::thread::sleep(delay);
        let outcome = restore.kill9();
        self.check(&name, outcome.code == Some(0), &format!("killed after {delay:?}"));
    }

    fn kill_at(&mut self, call: &str, n: usize) {
        let name = self.next();
        let n = u32::try_from(n).unwrap();
        let outcome = killed_at("pgark-restore", call, n)
            .arg("--config")
            .arg(self.site.config())
            .args(["base", "--target-immediate", "--target-action=promote", "--to"])
            .arg(self.site.dir().join(&name))
            .as_test_user()
            .run();
        assert!(was_killed(&outcome) || outcome.code == Some(0), "{call} {n}: {:?} {}", outcome.code, outcome.stderr);
        self.check(&name, outcome.code == Some(0), &format!("killed at {call} {n}"));
    }

    fn next(&mut self) -> String {
        self.number += 1;
        format!("restored-{}", self.number)
    }

    fn check(&mut self, name: &str, ended: bool, what: &str) {
        let directory = self.site.dir().join(name);
        // The last steps of a restore are its success; a kill behind them changes nothing.
        if ended || directory.join("global/pg_control").exists() {
            println!("{what}: it was whole");
            self.site.verify(&directory);
            self.starts_and_has_all(&directory);
        } else if directory.exists() && fs::read_dir(&directory).unwrap().next().is_some() {
            self.unfinished += 1;
            let size = size_of(&directory);
            println!("{what}: {} KiB of it were there", size / 1024);
            let mut restored = PostgresServer::start_restored(&directory, self.site.server().major());
            assert!(!restored.wait_until_ended().success(), "{what}: the server started on half a restore");
            let again = self.site.base(name).fail_with(2);
            let line = assert_one_clear_line(&again);
            assert!(line.contains(name) && again.stderr.contains("go on with --delta"), "{}", again.stderr);
        } else {
            println!("{what}: nothing was there");
        }
        drop(fs::remove_dir_all(&directory));
    }

    fn starts_and_has_all(&self, directory: &Path) {
        let mut restored = PostgresServer::start_restored(directory, self.site.server().major());
        restored.wait_until_promoted();
        assert_eq!(restored.psql(COUNT), self.expected);
    }

    fn end(&self, least: u32) {
        assert!(self.unfinished >= least, "only {} kills met a restore at work", self.unfinished);
        assert_eq!(self.site.restored_answer("fresh", None, COUNT), self.expected);
    }
}

fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(
            |entry| {
                if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().map_or(0, |m| m.len()) }
            },
        )
        .sum()
}

#[test]
fn d12_a_fetch_of_wal_that_is_killed_leaves_no_file_or_the_whole_one() {
    let site = Site::start();
    let segment = site.archive_segment();
    let source = site.dir().join("source");
    // What the archive holds is what the server had, and the server still has it.
    fs::copy(site.server().data_dir().join("pg_wal").join(&segment), &source).unwrap();
    let identifier = site.server().psql("SELECT system_identifier FROM pg_control_system()");
    let folder = site.dir().create_dir("pg_wal");
    let destination = folder.join("RECOVERYXLOG");
    let mut killed = 0;
    for (call, first, most, step) in
        [("openat", 1, 60, 6), ("write", 1, 70, 9), ("fsync", 1, 1, 1), ("rename", 1, 1, 1), ("exit_group", 1, 1, 1)]
    {
        for n in (first..=most).step_by(step) {
            drop(fs::remove_file(&destination));
            let outcome = killed_at("pgark-restore", call, n)
                .arg("--config")
                .arg(site.config())
                .args(["wal", "--system-identifier", &identifier, &segment])
                .arg(&destination)
                .as_test_user()
                .run();
            if !was_killed(&outcome) {
                assert_eq!(outcome.code, Some(0), "{call} {n}: {}", outcome.stderr);
                break;
            }
            killed += 1;
            if destination.exists() {
                assert!(fs::read(&destination).unwrap() == fs::read(&source).unwrap(), "{call} {n}: a partial file");
            }
            let fetch = Program::restore().config(site.config()).as_test_user();
            fetch.args(["wal", "--system-identifier", &identifier, &segment]).arg(&destination).succeed();
            assert!(fs::read(&destination).unwrap() == fs::read(&source).unwrap(), "{call} {n}: the next call");
        }
    }
    println!("{killed} fetches were killed");
    assert!(killed >= 10, "only {killed} fetches were killed");
}
