//! A local repository is durable when success is reported: the system calls of a real `pgark-archive-command` are
//! watched, made to fail and interrupted with `strace`; disks are full where a small tmpfs is (which takes root).

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Outcome, Program, TempDir, program_path};
use pgark_repository::{ClusterRepository, PreparedWalFile, RepositoryError, WalStored};

use crate::place::{SYSTEM, local_options, noise, open};
use crate::sample_backup::{OPTIONS, Sample, begin, facts};

const SEGMENT: &str = "00000001000000000000000A";

/// A segment of 1 MiB whose first page belongs to its name, and a configuration with one local repository.
struct Archiving {
    dir: TempDir,
    segment: PathBuf,
    config: PathBuf,
}

impl Archiving {
    fn new() -> Self {
        let dir = TempDir::new("archiving");
        let mut raw = noise(1, 1 << 20);
        let mut header = Vec::new();
        // PostgreSQL 15, a long header, timeline 1.
        header.extend_from_slice(&0xD110_u16.to_le_bytes());
        header.extend_from_slice(&2_u16.to_le_bytes());
        header.extend_from_slice(&1_u32.to_le_bytes());
        header.extend_from_slice(&(10_u64 << 20).to_le_bytes());
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(&SYSTEM.as_u64().to_le_bytes());
        header.extend_from_slice(&(1_u32 << 20).to_le_bytes());
        header.extend_from_slice(&8192_u32.to_le_bytes());
        raw[..header.len()].copy_from_slice(&header);
        dir.create_dir("pg_wal");
        let segment = dir.write(&format!("pg_wal/{SEGMENT}"), raw);
        let repository = dir.join("repository");
        let config = dir.write(
            "config.toml",
            format!(
                "state_dir = \"{}\"\n[cluster]\nname = \"main\"\n[[repository]]\nname = \"test\"\nurl = \"file://{}\"\n",
                dir.join("state").display(),
                repository.display()
            ),
        );
        Self { dir, segment, config }
    }

    fn run(&self) -> Outcome {
        Program::archive_command().config(&self.config).arg(&self.segment).run()
    }

    /// Runs it below strace with these options; the trace goes into a file.
    fn traced(&self, options: &[&str]) -> (Outcome, String) {
        let strace = Path::new("/usr/bin/strace");
        assert!(strace.exists(), "strace is missing: apt-get install strace");
        let trace = self.dir.join("trace");
        let outcome = Program::at(strace)
            .args(["-f", "-y", "-s", "300", "-o"])
            .arg(&trace)
            .args(options)
            .arg(program_path("pgark-archive-command"))
            .config(&self.config)
            .arg(&self.segment)
            .run();
        (outcome, std::fs::read_to_string(trace).unwrap())
    }

    fn repository(&self) -> ClusterRepository {
        open(&local_options(&self.dir.join("repository")))
    }

    /// Every file below the repository, hidden and temporary ones too.
    fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, files) } else { files.push(path) }
            }
        }
        let mut files = Vec::new();
        walk(&self.dir.join("repository"), &mut files);
        files
    }

    fn object(&self) -> PathBuf {
        self.dir.join(format!("repository/main/{SYSTEM}/wal/00000001/00000000/{SEGMENT}.zst"))
    }

    async fn assert_whole(&self) {
        let fetched = self.repository().fetch_wal_file(&SEGMENT.parse().unwrap(), Vec::new()).await.unwrap().unwrap();
        assert!(fetched == std::fs::read(&self.segment).unwrap());
    }
}

/// A call that has returned, as strace shows it; one that was interrupted by others is put together.
fn calls(trace: &str) -> Vec<String> {
    let mut begun = std::collections::BTreeMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(pid.to_owned(), start.to_owned());
        } else if let Some(rest) = call.strip_prefix("<... ") {
            let rest = rest.split_once(" resumed>").unwrap().1;
            calls.push(begun.remove(pid).unwrap_or_default() + rest);
        } else {
            calls.push(call.to_owned());
        }
    }
    calls
}

fn position(calls: &[String], what: &str, matches: impl Fn(&str) -> bool) -> usize {
    calls.iter().position(|call| matches(call)).unwrap_or_else(|| panic!("no {what} in:\n{}", calls.join("\n")))
}

/// fsync of the content, then the name, then fsync of the folder, then exit 0. Folders that are new are durable too.
#[test]
fn b05_b06_success_comes_after_the_file_and_its_folder_are_synced() {
    let archiving = Archiving::new();
    let (outcome, trace) =
        archiving.traced(&["-e", "trace=fsync,fdatasync,linkat,link,rename,renameat,renameat2,mkdir,exit_group"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let calls = calls(&trace);
    let folder = archiving.object().parent().unwrap().display().to_string();
    let is_sync = |call: &str| call.starts_with("fsync(") || call.starts_with("fdatasync(");
    let done = |call: &str| call.ends_with("= 0");
    let content = position(&calls, "fsync of the content", |call| {
        is_sync(call) && done(call) && call.contains(&format!("<{folder}/"))
    });
    let named = position(&calls, "link", |call| call.starts_with("link") && done(call) && call.contains(SEGMENT));
    let synced = calls.iter().rposition(|call| is_sync(call) && done(call) && call.contains(&format!("<{folder}>)")));
    let exited = position(&calls, "exit", |call| call.starts_with("exit_group(0)"));
    assert!(content < named && named < synced.unwrap() && synced.unwrap() < exited, "{}", calls.join("\n"));
    assert!(calls.iter().all(|call| !call.starts_with("rename")), "names are never replaced");
    for (place, call) in
        calls.iter().enumerate().filter(|(_, call)| call.starts_with("mkdir(") && call.contains("repository"))
    {
        let path = call.split('"').nth(1).unwrap();
        let parent = Path::new(path).parent().unwrap().display();
        let rest = &calls[place..exited];
        position(rest, "fsync of a new folder's parent", |call| {
            is_sync(call) && done(call) && call.contains(&format!("<{parent}>)"))
        });
    }
}

/// The first writer was killed after it gave the name and before it synced the folder: the second one does it.
#[test]
fn b01_b06_success_for_a_file_that_is_there_comes_after_it_is_synced() {
    let archiving = Archiving::new();
    assert_eq!(archiving.run().code, Some(0));
    let (outcome, trace) = archiving.traced(&["-e", "trace=fsync,fdatasync,exit_group"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let calls = calls(&trace);
    let object = archiving.object();
    let folder = object.parent().unwrap().display();
    let file = position(&calls, "fsync of the object", |call| call.contains(&format!("<{}>) = 0", object.display())));
    let named = position(&calls, "fsync of the folder", |call| call.contains(&format!("<{folder}>) = 0")));
    let exited = position(&calls, "exit", |call| call.starts_with("exit_group(0)"));
    assert!(file < exited && named < exited, "{}", calls.join("\n"));
}

fn assert_failed(outcome: &Outcome, what: &str) {
    assert!(outcome.code.is_some_and(|code| (1..=125).contains(&code)), "{what}: {outcome:?}");
    assert!(!outcome.stderr.is_empty(), "{what} says nothing");
}

#[tokio::test]
async fn b07_a_disk_that_cannot_sync_is_a_failure_and_leaves_no_object() {
    for call in ["fsync:error=EIO", "fsync:error=EIO:when=1", "linkat:error=EIO", "fsync:error=ENOSPC"] {
        let archiving = Archiving::new();
        let (outcome, _) = archiving.traced(&["-e", &format!("inject={call}")]);
        assert_failed(&outcome, call);
        assert_eq!(archiving.files(), Vec::<PathBuf>::new(), "{call}");
        let outcome = archiving.run();
        assert_eq!(outcome.code, Some(0), "{call}: {}", outcome.stderr);
        archiving.assert_whole().await;
    }
}

/// The folder's own sync fails: the object may be seen, but success is not reported before a later run has synced it.
#[tokio::test]
async fn b06_b07_a_folder_that_cannot_be_synced_is_a_failure() {
    let archiving = Archiving::new();
    // The folders are there already, so the second fsync is that of the folder.
    std::fs::create_dir_all(archiving.object().parent().unwrap()).unwrap();
    let (outcome, trace) = archiving.traced(&["-e", "trace=fsync,linkat", "-e", "inject=fsync:error=EIO:when=2"]);
    assert_failed(&outcome, "fsync of the folder");
    let calls = calls(&trace);
    let failed = position(&calls, "failed fsync", |call| call.contains("EIO"));
    assert!(calls[..failed].iter().any(|call| call.starts_with("linkat(") && call.ends_with("= 0")), "{trace}");
    let outcome = archiving.run();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    archiving.assert_whole().await;
}

/// Killed on the way into each call that matters: nothing half is visible, and the next run succeeds.
#[tokio::test]
async fn b04_killed_at_any_call_it_leaves_all_or_nothing() {
    let mut killed = 0;
    for call in ["mkdir", "fsync", "linkat", "write", "openat"] {
        for when in 1..=9 {
            // Of the reads of libraries and configuration at the start only some are tried.
            let when = if call == "openat" { when * 7 } else { when };
            let archiving = Archiving::new();
            let (outcome, _) = archiving.traced(&["-e", &format!("inject={call}:signal=SIGKILL:when={when}")]);
            // strace ends by the signal that ended the program.
            killed += u32::from(outcome.signal == Some(9) || outcome.code == Some(137));
            let files = archiving.files();
            assert!(files.is_empty() || files == [archiving.object()], "{call} {when}: {files:?}");
            if !files.is_empty() {
                archiving.assert_whole().await;
            }
            let outcome = archiving.run();
            assert_eq!(outcome.code, Some(0), "{call} {when}: {}", outcome.stderr);
            archiving.assert_whole().await;
        }
    }
    assert!(killed > 15, "{killed}");
}

/// A file system of its own, with a size. Needs root, as the servers of the full tests do.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let disk = Self(TempDir::new("small-disk"));
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], disk.0.path());
        disk
    }

    fn resize(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], self.0.path());
    }

    fn repository(&self) -> ClusterRepository {
        open(&local_options(&self.0.join("repository")))
    }

    fn used_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.0.path()).unwrap();
        (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    }
}

fn mount(options: &[&str], path: &Path) {
    let output = Command::new("mount").args(options).arg(path).output().unwrap();
    assert!(output.status.success(), "mount {options:?} (root is needed): {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.0.path()).output());
    }
}

fn is_full(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
}

#[tokio::test]
async fn b07_a_full_disk_is_an_error_and_nothing_is_visible() {
    let disk = SmallDisk::new("4m");
    let repository = disk.repository();
    let raw = noise(1, 16 << 20);
    let file = PreparedWalFile::prepare(SEGMENT.parse().unwrap(), &raw, 1, 2).unwrap();
    let before = disk.used_bytes();
    for _ in 0..2 {
        let error = repository.store_wal_file(&file).await.unwrap_err();
        assert!(is_full(&error), "{error:?}");
        assert_eq!(repository.store().list(&repository.keys().root()).await.unwrap(), []);
        assert!(!repository.has_wal_file(&SEGMENT.parse().unwrap()).await.unwrap());
        assert!(disk.used_bytes() <= before + 65536, "{}", disk.used_bytes());
    }
    disk.resize("64m");
    assert_eq!(repository.store_wal_file(&file).await.unwrap(), WalStored::New);
    assert!(repository.fetch_wal_file(&SEGMENT.parse().unwrap(), Vec::new()).await.unwrap().unwrap() == raw);
}

/// One of two repositories fills up: the backup exists in neither, and its space comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_a35_a_backup_onto_a_full_disk_exists_nowhere() {
    let disk = SmallDisk::new("8m");
    let healthy = TempDir::new("healthy");
    let repositories = [open(&local_options(&healthy.join("repository"))), disk.repository()];
    let mut sample = Sample::large();
    sample.file(b"base/5/more", noise(5, 20 << 20));
    let error = sample.write(&repositories, OPTIONS, &sample.manifest().text()).await.err().unwrap();
    assert!(is_full(&error), "{error:?}");
    for repository in &repositories {
        let list = repository.backups().await.unwrap();
        assert_eq!((list.finished.len(), list.unfinished.len()), (0, 1));
    }
    disk.resize("128m");
    let backup = sample.commit(&repositories).await;
    for repository in &repositories {
        assert_eq!(repository.backups().await.unwrap().finished.len(), 1);
        crate::backups::check(repository, &sample, &backup).await;
    }
}

/// Full at the very end, when only the index and the mark are missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_a_backup_without_its_index_has_no_commit_mark() {
    let disk = SmallDisk::new("8m");
    let healthy = TempDir::new("healthy");
    let repositories = [open(&local_options(&healthy.join("repository"))), disk.repository()];
    let sample = Sample::small();
    let checked = sample.write(&repositories, OPTIONS, &sample.manifest().text()).await.unwrap();
    let fill = std::fs::write(disk.0.join("fill"), vec![1; 16 << 20]);
    assert!(fill.is_err());
    let error = checked.commit(&facts).await.unwrap_err();
    assert!(is_full(&error), "{error:?}");
    for repository in &repositories {
        let list = repository.backups().await.unwrap();
        assert_eq!((list.finished.len(), list.unfinished.len()), (0, 1));
    }
    // Nothing can even be begun.
    let error = begin(&repositories, OPTIONS).await.err().unwrap();
    assert!(is_full(&error), "{error:?}");
}
