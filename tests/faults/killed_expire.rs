//! G05, G11: `pgark-agent expire` is killed at its deletions. Every backup that is still visible is whole, and the next
//! expiry ends where an undisturbed one does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::Program;
use rustix::process::Signal;

use crate::repository_files::RepositoryFiles;
use crate::site::{Site, directory_repository};
use crate::strace::{killed_at_path, was_killed};

#[test]
fn g05_an_expiry_that_is_killed_is_finished_by_the_next() {
    let mut site = Site::start();
    let held = site.backup();
    for _ in 0..3 {
        site.archive_segment();
        site.backup();
    }
    site.agent().args(["hold", &held, "--reason", "kept"]).succeed();
    site.server_mut().stop_fast();

    let expired = Copy::of(&site, "expired");
    expired.expire().succeed();
    let expected = expired.files().all();
    assert!(expected.iter().any(|name| name.contains(&held)));
    let deleted = |name: &String| !expected.contains(name);
    let objects: Vec<_> = site.files().all().into_iter().filter(deleted).map(|name| ("unlink", name)).collect();
    let gone = site.files().begun().difference(&expired.files().begun()).cloned().collect::<Vec<_>>();
    assert_eq!(gone.len(), 2, "{gone:?}");
    let folder = |id| format!("{}/{id}", expired.backups().strip_prefix(&expired.root).unwrap().display());
    // The folder of a backup is synced when its commit mark is gone, and removed when it is empty.
    let folders = gone.iter().flat_map(|id| [("fsync", folder(id)), ("rmdir", folder(id))]);
    for kind in ["/backup.json", "/started.json", "/parts/", "/wal/"] {
        assert!(objects.iter().any(|(_, name)| name.contains(kind)), "{objects:?}");
    }

    for (call, name) in objects.iter().cloned().chain(folders) {
        let copy = Copy::of(&site, "copy");
        let killed = killed_at_path("pgark-agent", call, &copy.files().path(&name));
        let outcome = killed.arg("--config").arg(&copy.config).arg("expire").run();
        assert!(was_killed(&outcome), "{call} {name}: {:?} {}", outcome.code, outcome.stderr);
        copy.restore().args(["verify", "--quick"]).succeed();
        copy.expire().succeed();
        // Killed right between a commit mark and its claim, it leaves what looks like a backup that runs.
        let begun: Vec<_> = copy.files().begun().difference(&copy.files().committed()).cloned().collect();
        assert!(begun.is_empty() || call == "fsync" || name.ends_with("/started.json"), "{call} {name}: {begun:?}");
        assert!(begun.len() <= 1, "{call} {name}: {begun:?}");
        for id in begun {
            write_earlier(&copy.files(), &id);
            copy.expire().succeed();
        }
        assert_eq!(copy.files().all(), expected, "{call} {name}");
        // Nobody knows of an empty folder whether somebody is about to write into it.
        copy.make_folders_older();
        copy.expire().succeed();
        let folders = fs::read_dir(copy.backups()).unwrap().count();
        assert_eq!(folders, copy.files().committed().len(), "{call} {name}: an empty folder of a backup is left");
        fs::remove_dir_all(&copy.root).unwrap();
    }
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
