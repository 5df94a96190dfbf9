//! The directory of a drill: made, used and removed, whatever happens in between.
//!
//! ```text
//! <directory>/drill-20261120T020003Z-4711/
//!     pgark-drill.lock    locked while the drill lives
//!     data/  tablespaces/  socket/  server.log  postgresql.conf  pg_hba.conf
//! ```
//!
//! Dropping it removes it. A drill that was killed cannot do that: the lock goes with its process, so the next drill
//! sees which directories nobody owns, ends the servers in them and removes them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;

const PREFIX: &str = "drill-";
const LOCK: &str = "pgark-drill.lock";
/// What a path of a unix socket may have, without its final NUL.
const SOCKET_PATH_LIMIT: usize = 107;
/// The file in it, with the port that every drill uses.
const SOCKET_NAME: &str = ".s.PGSQL.5432.lock";
/// How long a server may take to die when it is told to.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// The place for the drill cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ThrowawayError {
    #[error("cannot {operation} {}", .path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is too long a path: the server's socket in it may have {SOCKET_PATH_LIMIT} bytes", .path.display())]
    LongPath { path: PathBuf },
}

/// The directory of this drill.
#[derive(Debug)]
pub(crate) struct Throwaway {
    path: PathBuf,
    keep: bool,
    /// Held for as long as the drill lives.
    _lock: File,
}

impl ThrowawayError {
    /// What the user can do; nothing where the configuration is not at fault.
    pub(crate) fn hint(&self) -> Option<String> {
        let elsewhere = "name another directory with --directory or directory in [drill]";
        match self {
            Self::LongPath { .. } => Some(elsewhere.to_owned()),
            Self::Io { path, source, .. }
                if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) =>
            {
                let path = path.display();
                Some(format!(
                    "make it for the user at work, as in `install -d -o postgres -m 0700 {path}`, or {elsewhere}"
                ))
            }
            Self::Io { .. } => None,
        }
    }
}

impl Throwaway {
    /// Makes a new one, and removes those of drills that were killed.
    pub(crate) fn create(parent: &Path, keep: bool) -> Result<Self, ThrowawayError> {
        match DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failure("create", parent)(error)),
            _ => {}
        }
        let parent = parent.canonicalize().map_err(failure("look at", parent))?;
        // Between the creation of a directory and its lock nobody else may look.
        let door = parent.join(LOCK);
        let door_file = open_lock(&door)?;
        rustix::fs::flock(&door_file, FlockOperation::LockExclusive)
            .map_err(|error| failure("lock", &door)(error.into()))?;
        remove_abandoned(&parent)?;
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let path = parent.join(format!("{PREFIX}{time}-{}", std::process::id()));
        if path.join("socket").join(SOCKET_NAME).as_os_str().as_bytes().len() > SOCKET_PATH_LIMIT {
            return Err(ThrowawayError::LongPath { path });
        }
        let private = |path: &Path| DirBuilder::new().mode(0o700).create(path).map_err(failure("create", path));
        private(&path)?;
        let lock_path = path.join(LOCK);
        let lock = open_lock(&lock_path)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failure("lock", &lock_path)(error.into()))?;
        let made = Self { path, keep, _lock: lock };
        private(&made.socket())?;
        Ok(made)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(crate) fn tablespaces(&self) -> PathBuf {
        self.path.join("tablespaces")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("socket")
    }

    /// Removes it, or lets go of it where it is to be kept; returns what is left.
    pub(crate) fn finish(mut self) -> Result<Option<PathBuf>, ThrowawayError> {
        if self.keep {
            let lock = self.path.join(LOCK);
            std::fs::remove_file(&lock).map_err(failure("remove", &lock))?;
            return Ok(Some(self.path.clone()));
        }
        // Whatever comes of it, there is nothing left to do when it is dropped.
        self.keep = true;
        std::fs::remove_dir_all(&self.path).map_err(failure("remove", &self.path))?;
        Ok(None)
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %self.path.display(), %error, "the directory of the drill could not be removed");
        }
    }
}

fn open_lock(path: &Path) -> Result<File, ThrowawayError> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failure("open", path))
}

fn failure<'p>(operation: &'static str, path: &'p Path) -> impl Fn(io::Error) -> ThrowawayError + use<'p> {
    move |source| ThrowawayError::Io { operation, path: path.to_path_buf(), source }
}

/// Removes the directories of drills that live no more. Only what has a lock file of ours is touched; a directory that
/// was kept has none.
fn remove_abandoned(parent: &Path) -> Result<(), ThrowawayError> {
    for entry in std::fs::read_dir(parent).map_err(failure("list", parent))? {
        let entry = entry.map_err(failure("list", parent))?;
        let (path, name) = (entry.path(), entry.file_name());
        let lock_path = path.join(LOCK);
        if !name.as_bytes().starts_with(PREFIX.as_bytes()) || !lock_path.is_file() {
            continue;
        }
        let lock = open_lock(&lock_path)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => continue,
            Err(error) => return Err(failure("lock", &lock_path)(error.into())),
        }
        tracing::warn!(path = %path.display(), "remove what a drill left behind that was killed");
        end_server(&path.join("data"));
        std::fs::remove_dir_all(&path).map_err(failure("remove", &path))?;
    }
    Ok(())
}

/// Ends the server of a data directory, if one is running there.
fn end_server(data: &Path) {
    let Some(pid) = running_server(data) else { return };
    for signal in [Signal::QUIT, Signal::KILL] {
        if kill_process(pid, signal).is_err() {
            return;
        }
        let began = Instant::now();
        while began.elapsed() < KILL_LIMIT {
            if running_server(data).is_none() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The process in `postmaster.pid`, if it is a server on this very directory and not one that got its number later.
fn running_server(data: &Path) -> Option<Pid> {
    let content = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let number: i32 = content.lines().next()?.trim().parse().ok()?;
    let command = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
    let is_ours = command.split(|&byte| byte == 0).any(|word| word == data.as_os_str().as_bytes());
    Pid::from_raw(number).filter(|_| is_ours)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn drills(parent: &Path) -> usize {
        std::fs::read_dir(parent).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    }

    #[test]
    fn it_goes_away_unless_it_is_kept_and_the_next_one_removes_what_was_abandoned() {
        let place = tempfile::tempdir().unwrap();
        let parent = place.path().join("drills");
        let first = Throwaway::create(&parent, false).unwrap();
        assert!(first.socket().is_dir());
        drop(first);
        assert_eq!(drills(&parent), 0);

        let kept = Throwaway::create(&parent, true).unwrap().finish().unwrap().unwrap();
        // What belongs to somebody else, and what a killed drill left.
        std::fs::create_dir(parent.join("drill-notes")).unwrap();
        let abandoned = parent.join("drill-20200101T000000Z-1");
        std::fs::create_dir_all(abandoned.join("data/base")).unwrap();
        std::fs::write(abandoned.join(LOCK), "").unwrap();
        std::fs::write(abandoned.join("data/postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        // Names are of the second.
        std::thread::sleep(Duration::from_millis(1100));
        let second = Throwaway::create(&parent, false).unwrap();
        assert!(!abandoned.exists() && kept.is_dir() && second.path().is_dir());
        // A drill that lives is left alone.
        let third = drills(&parent);
        std::thread::sleep(Duration::from_millis(1100));
        let other = Throwaway::create(&parent, false).unwrap();
        assert_eq!(drills(&parent), third + 1);
        assert_eq!(second.finish().unwrap(), None);
        drop(other);
        assert_eq!(drills(&parent), 2);
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let parent = place.path().join("x".repeat(90));
        assert!(matches!(Throwaway::create(&parent, false), Err(ThrowawayError::LongPath { .. })));
    }
}
