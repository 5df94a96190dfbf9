//! While a server in recovery replays one segment, the next ones are fetched; what it gets is what was archived.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{Program, ProtectedCluster, TestUser, wait_until};

const SEGMENTS: usize = 14;

/// A backup, segments behind it, and a restored directory that asks for them as a server would.
struct Asking {
    cluster: ProtectedCluster,
    directory: PathBuf,
    /// Names of the segments behind the backup, in order.
    segments: Vec<String>,
}

impl Asking {
    fn new(settings: &str) -> Self {
        let cluster = ProtectedCluster::builder().settings(settings).start();
        let backup = cluster.backup();
        let before = cluster.archived_segments(1).len();
        for number in 0..SEGMENTS {
            cluster.server().psql(&format!(
                "CREATE TABLE t{number} AS SELECT n, md5(n::text) FROM generate_series(1, 2000) n; SELECT pg_switch_wal()"
            ));
        }
        cluster.archive_all();
        let segments = cluster.archived_segments(1).split_off(before);
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned();
        let segments: Vec<String> = segments.iter().map(name).collect();
        assert!(segments.len() >= SEGMENTS);
        let directory = cluster.restore_to("asking", &["--backup", &backup]);
        Self { cluster, directory, segments }
    }

    fn ask(&self, name: &str, as_file: &str) -> Program {
        let program = self.cluster.restore().args(["wal", name]);
        program.arg(Path::new("pg_wal").join(as_file)).current_dir(&self.directory)
    }

    fn ask_segment(&self, number: usize) -> Program {
        self.ask(&self.segments[number], "RECOVERYXLOG")
    }

    fn prefetched(&self) -> PathBuf {
        self.directory.join("pg_wal/pgark-prefetch")
    }

    fn ready(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.prefetched()) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "lock")
            .collect();
        names.sort();
        names
    }

    fn wait_for_ready(&self, expected: &[String]) {
        wait_until(&format!("{expected:?}, and no other"), Duration::from_secs(30), || {
            let ready = self.ready();
            let is_equal = ready.len() == expected.len()
                && ready
                    .iter()
                    .zip(expected)
                    .all(|(ready, name)| ready.starts_with(name) && !ready.ends_with("fetching"));
            is_equal.then_some(())
        });
    }

    fn given(&self) -> Vec<u8> {
        fs::read(self.directory.join("pg_wal/RECOVERYXLOG")).unwrap()
    }

    fn expected(&self, number: usize) -> Vec<u8> {
        self.ask(&self.segments[number], "expected").succeed();
        let path = self.directory.join("pg_wal/expected");
        let content = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        content
    }
}

#[test]
fn segments_are_there_before_they_are_asked_for_and_are_checked_again() {
    let asking = Asking::new("");
    let expected: Vec<Vec<u8>> = (0..SEGMENTS).map(|number| asking.expected(number)).collect();
    assert!(!asking.prefetched().exists(), "a person asked, and no server");
    asking.ask_segment(0).succeed();
    asking.wait_for_ready(&asking.segments[1..9]);

    // Without the repository only what was fetched ahead can answer.
    let repository = asking.cluster.repository_dir();
    let away = repository.with_extension("away");
    fs::rename(&repository, &away).unwrap();
    for (number, expected) in expected.iter().enumerate().take(4).skip(1) {
        asking.ask_segment(number).succeed();
        assert!(asking.given() == *expected, "{number}");
    }
    // Damaged on this disk, and cut off: each is fetched again, which fails as long as the repository is away.
    for (number, length) in [(4, None), (5, Some(8192)), (6, Some(0))] {
        let name = asking.ready().into_iter().find(|name| name.starts_with(&asking.segments[number])).unwrap();
        let path = asking.prefetched().join(name);
        let mut content = fs::read(&path).unwrap();
        let last = content.len() - 1;
        content[last] ^= 1;
        content.truncate(length.unwrap_or(content.len()));
        fs::write(&path, content).unwrap();
        let refused = asking.ask_segment(number).run();
        assert!(refused.code.is_some_and(|code| code > 125), "{number}: {:?} {}", refused.code, refused.stderr);
    }
    fs::rename(&away, &repository).unwrap();
    for (number, expected) in expected.iter().enumerate().skip(4) {
        asking.ask_segment(number).succeed();
        assert!(asking.given() == *expected, "{number}");
    }
    // A server that goes back, as one that starts again does.
    asking.ask_segment(2).succeed();
    assert!(asking.given() == expected[2]);
    asking.wait_for_ready(&asking.segments[3..11]);

    // It asks for a history file before recovery ends.
    assert_eq!(asking.ask("00000002.history", "RECOVERYHISTORY").run().code, Some(1));
    assert!(!asking.prefetched().exists());
}

#[test]
fn d07_a_miss_is_asked_again_each_time() {
    let asking = Asking::new("");
    let last = asking.segments.len() - 1;
    let stored = asking.cluster.archived_segments(1).pop().unwrap();
    let away = asking.cluster.dir().join("away");
    fs::rename(&stored, &away).unwrap();
    asking.ask_segment(last - 2).succeed();
    asking.wait_for_ready(&asking.segments[last - 1..last]);
    asking.ask_segment(last - 1).succeed();
    assert_eq!(asking.ask_segment(last).run().code, Some(1));
    fs::rename(&away, &stored).unwrap();
    asking.ask_segment(last).succeed();
}

#[test]
fn with_prefetch_0_nothing_is_fetched_ahead() {
    let asking = Asking::new("[restore]\nprefetch = 0\n");
    asking.ask_segment(0).succeed();
    assert!(!asking.prefetched().exists());
}

/// What a killed process left is neither used nor in the way.
#[test]
fn leftovers_of_a_killed_process_go_away() {
    let asking = Asking::new("");
    fs::create_dir(asking.prefetched()).unwrap();
    for name in
        [format!("{}.fetching", asking.segments[1]), "000000010000000000000001.00000000".to_owned(), "x".to_owned()]
    {
        fs::write(asking.prefetched().join(name), "half").unwrap();
    }
    fs::write(asking.prefetched().join(format!("{}.zzzzzzzz", asking.segments[2])), "half").unwrap();
    TestUser::get().own_all(&asking.prefetched());
    asking.ask_segment(0).succeed();
    asking.wait_for_ready(&asking.segments[1..9]);
    asking.ask_segment(1).succeed();
    assert!(asking.given() == asking.expected(1));
}

/// A whole recovery, on a standby that is promoted in the end.
#[test]
fn a_recovery_leaves_nothing_behind() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE t AS SELECT 0 AS n");
    let backup = cluster.backup();
    for number in 1..=SEGMENTS {
        cluster.server().psql(&format!("INSERT INTO t VALUES ({number}); SELECT pg_switch_wal()"));
    }
    cluster.archive_all();
    for (name, options) in [("restored", vec!["--target-action", "promote"]), ("standby", vec!["--standby"])] {
        let mut server = cluster.restore_and_start(name, &[vec!["--backup", backup.as_str()], options].concat());
        if name == "standby" {
            server.wait_for("SELECT max(n) FROM t", &SEGMENTS.to_string());
            server.promote();
        }
        server.wait_until_promoted();
        assert_eq!(server.psql("SELECT count(*) FROM t"), (SEGMENTS + 1).to_string());
        assert!(!server.data_dir().join("pg_wal/pgark-prefetch").exists(), "{name}");
    }
}
