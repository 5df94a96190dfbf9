//! A34: `pgark-agent backup` is killed at every stage. Afterwards there is no commit mark, or a whole backup; the server
//! has left backup mode and holds no slot; the next backup works.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::repository_files::RepositoryFiles;
use crate::site::Site;
use crate::strace::{killed_at, was_killed};

const COUNT: &str = "SELECT count(*), sum(length(noise)) FROM kept";

/// When the agent is killed.
#[derive(Debug, Clone)]
enum Moment {
    /// So much of the duration of a whole backup after its start.
    After(Duration),
    /// As soon as a file with this text in its name is in the folder of the new backup.
    Seen(&'static str),
    /// When a thread enters this system call for the n-th time.
    Call(&'static str, u32),
}

#[test]
fn a34_a_backup_that_is_killed_does_not_exist_or_is_whole() {
    let mut test = KilledBackups::start(24);
    let whole = test.whole_backup();
    let phases = ["started.json", "parts/000001", "parts/000002", "backup_manifest", "index.jsonl"];
    for phase in phases {
        test.kill(Moment::Seen(phase));
    }
    for twentieths in [2, 11] {
        test.kill(Moment::After(whole * twentieths / 20));
    }
    // A thread publishes several objects, so the second link of one is never the claim.
    test.kill(Moment::Call("linkat", 2));
    test.end();
}

#[test]
#[ignore = "long: make soak"]
fn soak_a34_a_backup_that_is_killed_a_hundred_times() {
    let mut test = KilledBackups::start(48);
    let whole = test.whole_backup();
    for hundredths in (0..160).step_by(2) {
        test.kill(Moment::After(whole * hundredths / 100));
    }
    for phase in ["started.json", "parts/000001", "parts/000003", "backup_manifest", "index.jsonl", "backup.json"] {
        test.kill(Moment::Seen(phase));
    }
    for (call, times) in [("linkat", 6), ("fsync", 12), ("connect", 3)] {
        (1..=times).for_each(|n| test.kill(Moment::Call(call, n)));
    }
    test.end();
}

struct KilledBackups {
    site: Site,
    files: RepositoryFiles,
    expected: String,
    /// How many kills left a folder without a commit mark, and how many came too late.
    interrupted: u32,
    committed: u32,
}

impl KilledBackups {
    fn start(megabytes: u32) -> Self {
        let site = Site::start();
        site.fill("kept", megabytes);
        let expected = site.server().psql(COUNT);
        Self { files: site.files(), site, expected, interrupted: 0, committed: 0 }
    }

    fn whole_backup(&self) -> Duration {
        let started = Instant::now();
        self.site.start_backup().succeed();
        started.elapsed()
    }

    fn kill(&mut self, moment: Moment) {
        let (begun, committed) = (self.files.begun(), self.files.committed());
        let outcome = match &moment {
            Moment::After(delay) => {
                let backup = self.site.start_backup().start();
                std::thread::sleep(*delay);
                backup.kill9()
            }
            Moment::Seen(text) => {
                let mut backup = self.site.start_backup().start();
                let seen = || {
                    let new = |name: &String| name.contains(text) && !begun.iter().any(|id| name.contains(id.as_str()));
                    self.files.all().iter().any(new)
                };
                while backup.is_running() && !seen() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                backup.kill9()
            }
            Moment::Call(call, n) => {
                let strace = killed_at("pgark-agent", call, *n).arg("--config").arg(self.site.config());
                strace.arg("backup").as_test_user().run()
            }
        };
        // A second in which another backup has begun has its id; the next one waits for a free one.
        self.site.wait_until_left_alone();
        let new: Vec<_> = self.files.committed().difference(&committed).cloned().collect();
        let unfinished: Vec<_> =
            self.files.begun().difference(&begun).filter(|id| !new.contains(id)).cloned().collect();
        let list = self.site.list();
        for id in &unfinished {
            let line = list.lines().find(|line| line.starts_with(id.as_str()));
            let line = line.unwrap_or_else(|| panic!("{moment:?}: {id} is not in the list:\n{list}"));
            assert!(line.contains("not finished"), "{moment:?}: {line}");
        }
        self.interrupted += unfinished.len() as u32;
        self.committed += new.len() as u32;
        if outcome.code == Some(0) {
            assert_eq!((new.len(), unfinished.len()), (1, 0), "{moment:?}: exit 0 means one whole backup");
        } else {
            assert!(was_killed(&outcome), "{moment:?}: {:?} {}", outcome.code, outcome.stderr);
        }
        println!("{moment:?}: {}", if new.is_empty() { "no backup" } else { "a whole backup" });
        for id in new {
            self.check(&id);
        }
    }

    fn check(&self, id: &str) {
        assert_eq!(self.site.restored_answer("restored", Some(id), COUNT), self.expected, "{id}");
    }

    fn end(self) {
        println!("{} backups were interrupted, {} were whole", self.interrupted, self.committed);
        assert!(self.interrupted >= 4, "only {} kills met a backup at work", self.interrupted);
        let before = self.files.committed();
        self.site.start_backup().succeed();
        let after = self.files.committed();
        let new: Vec<_> = after.difference(&before).collect();
        assert_eq!(new.len(), 1, "the next backup works");
        self.check(new[0]);
        no_temporary_names_are_listed(&self.files, &self.site.dir().join("repository"));
    }
}

/// Where the file system has nameless files, killed writers leave nothing at all behind.
fn no_temporary_names_are_listed(files: &RepositoryFiles, root: &Path) {
    let strange: Vec<_> = files.all().into_iter().filter(|name| name.contains('#')).collect();
    assert!(strange.is_empty(), "left in {}: {strange:?}", root.display());
}
