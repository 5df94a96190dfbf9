//! G05, G11: `pgark-agent expire` is killed at its deletions. Every backup that is still visible is whole, and the next
//! expiry ends where an undisturbed one does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::Program;
use rustix::process::Signal;

use crate::repository_files::RepositoryFiles;
use crate::site::{Site, directory_repository};
use crate::strace::{killed_at, was_killed};

/// Calls of one thread that deletes; and how many are tried at most.
const CALLS: [(&str, u32); 3] = [("unlink", 30), ("fsync", 9), ("rmdir", 12)];

#[test]
fn g05_an_expiry_that_is_killed_is_finished_by_the_next() {
    sweep(3);
}

#[test]
#[ignore = "long: make soak"]
fn soak_g05_an_expiry_that_is_killed_at_every_call() {
    sweep(1);
}

fn sweep(stride: usize) {
    let mut site = Site::start();
    let held = site.backup();
    for _ in 0..3 {
        site.archive_segment();
        site.backup();
    }
    site.agent().args(["hold", &held, "--reason", "kept"]).succeed();
    site.server_mut().stop_fast();

    let expected = Copy::of(&site, "expected");
    expected.expire().succeed();
    let expected = expected.files().all();
    assert!(expected.iter().any(|name| name.contains(&held)));

    let mut killed = 0;
    for (call, most) in CALLS {
        for n in (1..=most).step_by(stride) {
            let copy = Copy::of(&site, &format!("{call}-{n}"));
            let outcome = killed_at("pgark-agent", call, n).arg("--config").arg(&copy.config).arg("expire").run();
            if !was_killed(&outcome) {
                assert_eq!(outcome.code, Some(0), "{call} {n}: {}", outcome.stderr);
                break;
            }
            killed += 1;
            copy.restore().args(["verify", "--quick"]).succeed();
            copy.expire().succeed();
            // Killed between the commit mark and the claim, it leaves what looks like a backup that runs.
            for id in copy.files().begun().difference(&copy.files().committed()) {
                write_earlier(&copy.files(), id);
                copy.expire().succeed();
            }
            assert_eq!(copy.files().all(), expected, "{call} {n}");
            // Nobody knows of an empty folder whether somebody is about to write into it.
            copy.make_folders_older();
            copy.expire().succeed();
            let folders = fs::read_dir(copy.backups()).unwrap().count();
            assert_eq!(folders, copy.files().committed().len(), "{call} {n}: an empty folder of a backup is left");
            fs::remove_dir_all(&copy.root).unwrap();
        }
    }
    println!("{killed} expiries were killed");
    assert!(killed >= 4, "only {killed} expiries were killed before their end");
}

/// A backup that is written to no more for longer than the grace is deleted, and not before; its late writer cannot
/// commit it.
#[test]
fn g05_g07_an_interrupted_backup_is_deleted_after_its_grace() {
    let mut site = Site::start();
    site.backup();
    site.fill("kept", 24);
    let backup = crate::connection::slow_backup(&mut site);
    backup.signal(Signal::STOP);
    let begun: Vec<String> = site.files().begun().into_iter().collect();
    let id = begun.iter().find(|id| !site.files().committed().contains(*id)).unwrap().clone();
    let expire = |what: &str| {
        let outcome = site.agent().env("PGARK_RETENTION_FULL", "1").arg("expire").succeed();
        assert!(outcome.stdout.contains(what), "{}", outcome.stdout);
    };
    expire("not finished: it runs, or is deleted after");
    assert!(site.files().begun().contains(&id));
    write_earlier(&site.files(), &id);
    expire("interrupted: nothing was written to it since");
    assert!(site.files().with(&[&id]).is_empty(), "{:?}", site.files().with(&[&id]));

    backup.signal(Signal::CONT);
    let late = backup.wait();
    assert_eq!(late.code, Some(1), "{}", late.stderr);
    assert_eq!(site.files().committed().len(), 1, "{:?}", site.files().all());
}

/// Makes a backup look as if nothing had been written to it for longer than the grace.
fn write_earlier(files: &RepositoryFiles, id: &str) {
    for name in files.with(&[id]) {
        let status = Command::new("touch").args(["-d", "2 days ago"]).arg(files.path(&name)).status().unwrap();
        assert!(status.success());
    }
}

/// A copy of a repository, and a configuration for it.
struct Copy {
    root: PathBuf,
    config: PathBuf,
}

impl Copy {
    fn of(site: &Site, name: &str) -> Self {
        let root = site.dir().create_dir(name);
        let status = Command::new("cp").arg("-a").arg(site.repository_dir().join(".")).arg(&root).status().unwrap();
        assert!(status.success());
        let text = format!("{}[retention]\nfull = 1\n", directory_repository(&root));
        let config = site.dir().write(&format!("{name}.toml"), text);
        Self { root, config }
    }

    fn make_folders_older(&self) {
        let mut touch = Command::new("find");
        touch.arg(self.backups()).args(["-type", "d", "-exec", "touch", "-d", "2 hours ago", "{}", "+"]);
        assert!(touch.status().unwrap().success());
    }

    fn expire(&self) -> Program {
        Program::agent().config(&self.config).arg("expire")
    }

    fn restore(&self) -> Program {
        Program::restore().config(&self.config)
    }

    fn files(&self) -> RepositoryFiles {
        RepositoryFiles::new(&self.root)
    }

    fn backups(&self) -> PathBuf {
        let cluster = self.root.join("main");
        let system = fs::read_dir(&cluster).unwrap().next().unwrap().unwrap().file_name();
        cluster.join(Path::new(&system)).join("backups")
    }
}
