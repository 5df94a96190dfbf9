//! What `base` refuses before it touches anything, with the exit code and a sentence that says what to do.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::{Outcome, ProtectedCluster};

/// A refusal that takes longer has waited for a segment that might be late.
const PROMPT: Duration = Duration::from_secs(8);

struct Story {
    cluster: ProtectedCluster,
    before_backup: String,
    after_backup: String,
}

fn story() -> Story {
    let cluster = ProtectedCluster::start();
    let now = || cluster.server().psql("SELECT clock_timestamp()");
    cluster.server().psql("CREATE TABLE t AS SELECT 1 AS n");
    let before_backup = now();
    cluster.backup();
    let after_backup = now();
    cluster.server().psql("INSERT INTO t VALUES (2)");
    cluster.archive_all();
    Story { before_backup, after_backup, cluster }
}

/// Everything below a folder, with what a write would change.
fn snapshot(folder: &Path) -> BTreeSet<(PathBuf, u64)> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                open.push(entry.path());
            }
            found.insert((entry.path(), if metadata.is_file() { metadata.len() } else { 0 }));
        }
    }
    found
}

impl Story {
    /// Runs `base` into `to`, which must fail with `code`, say `words` and change nothing anywhere near.
    fn refused(&self, to: &Path, arguments: &[&str], code: i32, words: &[&str]) -> Outcome {
        let before = snapshot(self.cluster.dir().path());
        let outcome = self.cluster.restore().args(["base", "--to"]).arg(to).args(arguments).fail_with(code);
        for word in words {
            assert!(outcome.stderr.contains(word), "{arguments:?}: no {word:?} in {}", outcome.stderr);
        }
        assert_eq!(snapshot(self.cluster.dir().path()), before, "{arguments:?} changed something");
        outcome
    }
}

#[test]
fn d01_places_that_are_not_empty_or_have_a_server() {
    let story = story();
    let occupied = story.cluster.dir().create_dir("occupied");
    story.cluster.dir().write("occupied/somebody's file", "precious");
    story.refused(&occupied, &[], 2, &["is not empty", "restore into another directory"]);
    let data_dir = story.cluster.server().data_dir().to_owned();
    story.refused(&data_dir, &[], 2, &["has a running server", "stop that server"]);
    story.refused(&data_dir.join("base/new"), &[], 2, &["lies in another data directory"]);
    let in_repository = story.cluster.repository_dir().join("restored");
    story.refused(&in_repository, &[], 2, &["lie in each other"]);
    let file = story.cluster.dir().write("a-file", "");
    story.refused(&file, &[], 2, &["is not a directory"]);
    // An empty folder is as good as none.
    story.cluster.dir().create_dir("empty");
    story.cluster.restore_to("empty", &["--target-immediate"]);
}

#[test]
fn d18_targets_that_cannot_be_reached() {
    let story = story();
    let to = story.cluster.dir().join("new");
    story.refused(
        &to,
        &["--target-time", &story.before_backup],
        3,
        &["lies before the end of", "choose a target after"],
    );
    story.refused(&to, &["--target-time", "2001-02-03 04:05:06+00"], 3, &["lies before the end of"]);
    story.refused(
        &to,
        &["--target-time", "2099-01-01 00:00:00+00"],
        3,
        &["no transaction ended after", "leave the target out"],
    );
    story.refused(&to, &["--target-lsn", "0/1000000"], 3, &["lies before the end of"]);
    story.refused(&to, &["--target-lsn", "FF/1000000"], 3, &["not in the archive", "latest reachable position"]);
    story.refused(&to, &["--target-xid", "999999"], 3, &["transaction 999999 did not end"]);
    story.refused(&to, &["--target-name", "nowhere"], 3, &["no restore point \"nowhere\"", "check how it is spelled"]);
    story.refused(&to, &["--target-timeline", "9"], 3, &["timeline 9 is unknown", "pgark-restore list"]);
    story.refused(&to, &["--backup", "20010203T040506Z-full"], 3, &["there is no backup 20010203T040506Z-full"]);
    story.refused(&to, &["--system-identifier", "42"], 3, &["42"]);
    // The same target, but reachable.
    let reachable = ["base", "--dry-run", "--target-time", &story.after_backup];
    story.cluster.restore().args(reachable).succeed();
}

#[test]
fn d22_targets_that_make_no_sense() {
    let story = story();
    let to = story.cluster.dir().join("new");
    story.refused(&to, &["--target-xid", "800", "--target-immediate"], 2, &["--target-xid and --target-immediate"]);
    story.refused(&to, &["--target-time", "yesterday"], 2, &["--target-time"]);
    story.refused(&to, &["--target-lsn", "12345"], 2, &["--target-lsn", "16/B374D848"]);
    story.refused(&to, &["--target-timeline", "010"], 2, &["without leading zeros"]);
    story.refused(&to, &["--target-exclusive"], 2, &["--target-exclusive needs"]);
    story.refused(&to, &["--target-action", "pause"], 2, &["needs a target"]);
    story.refused(&to, &["--target-immediat"], 2, &["--target-immediate"]);
    story.refused(&to, &["--repository", "elsewhere"], 2, &["elsewhere", "local"]);
}

#[test]
fn d10_a_gap_in_the_archive_is_found_before_anything_is_restored() {
    let story = story();
    story.cluster.server().psql("INSERT INTO t VALUES (3)");
    story.cluster.archive_all();
    story.cluster.server().psql("INSERT INTO t VALUES (4)");
    story.cluster.archive_all();
    let segments = story.cluster.archived_segments(1);
    let gone = &segments[segments.len() - 2];
    let name = gone.file_name().unwrap().to_str().unwrap().trim_end_matches(".zst").to_owned();
    fs::remove_file(gone).unwrap();
    let to = story.cluster.dir().join("new");
    let words = ["the archive has a gap", &name, "latest reachable position"];
    let began = Instant::now();
    story.refused(&to, &[], 3, &words);
    assert!(began.elapsed() > PROMPT, "the segment could still have been on its way");
    story.cluster.age_archive();
    let began = Instant::now();
    story.refused(&to, &[], 3, &words);
    assert!(began.elapsed() < PROMPT, "an old gap is waited for");
    // What lies before the gap can be had.
    story.cluster.restore_to("before-the-gap", &["--target-time", &story.after_backup]);
}

#[test]
fn a_dry_run_shows_the_plan_and_touches_nothing() {
    let story = story();
    let to = story.cluster.dir().join("new");
    let before = snapshot(story.cluster.dir().path());
    let base = story.cluster.restore().args(["base", "--dry-run", "--to"]).arg(&to);
    let plan = base.args(["--target-time", &story.after_backup]).succeed();
    for word in ["backup", "target", "stops at", "reachable   up to", "archiving   off", to.to_str().unwrap()] {
        assert!(plan.stdout.contains(word), "no {word:?} in the plan:\n{}", plan.stdout);
    }
    assert_eq!(snapshot(story.cluster.dir().path()), before);
    // It refuses what the real run would refuse.
    let occupied = story.cluster.dir().create_dir("occupied");
    story.cluster.dir().write("occupied/file", "");
    story.cluster.restore().args(["base", "--dry-run", "--to"]).arg(occupied).fail_with(2);
}
