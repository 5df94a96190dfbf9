//! Durable creation of local files: the one place that syncs and publishes.
//!
//! A file is written without a name (`O_TMPFILE`), synced, then linked under its name without
//! replacing anything, and its directory is synced. A writer that dies leaves nothing behind. File
//! systems without nameless files get a temporary name that listings skip (`<name>#<number>`).

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, OFlags};

const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// A file that is being written and has no name yet.
#[derive(Debug)]
pub(crate) struct DurableFile {
    file: File,
    directory: PathBuf,
    target: PathBuf,
    temporary: Option<PathBuf>,
}

impl DurableFile {
    /// Begins a file that will be published at `target`; missing directories are made, durably.
    pub(crate) fn begin(target: &Path) -> io::Result<Self> {
        let directory = target.parent().unwrap_or(Path::new(".")).to_owned();
        match Self::open(&directory, target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_directories(&directory)?;
                Self::open(&directory, target)
            }
            other => other,
        }
    }

    fn open(directory: &Path, target: &Path) -> io::Result<Self> {
        let nameless = OpenOptions::new()
            .write(true)
            .mode(FILE_MODE)
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(directory);
        let (file, temporary) = match nameless {
            Ok(file) => (file, None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(_) => {
                let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let number = u64::from(std::process::id()) << 32 | u64::from(unique_number());
                let temporary = directory.join(format!("{name}#{number}"));
                let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary)?;
                (file, Some(temporary))
            }
        };
        Ok(Self { file, directory: directory.to_owned(), target: target.to_owned(), temporary })
    }

    /// Makes the content durable and gives it its name; an existing file stays as it is
    /// (`AlreadyExists`).
    pub(crate) fn publish(self) -> io::Result<()> {
        // Whoever restores is in the writer's group, whatever the writer's umask is.
        self.file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        self.file.sync_all()?;
        match &self.temporary {
            None => {
                let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, descriptor, CWD, &self.target, AtFlags::SYMLINK_FOLLOW)?;
            }
            Some(temporary) => std::fs::hard_link(temporary, &self.target)?,
        }
        sync_directory(&self.directory)
    }
}

impl Write for DurableFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for DurableFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The name is ours alone; if it stays, listings skip it.
            drop(std::fs::remove_file(temporary));
        }
    }
}

/// Makes a directory's entries durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Creates a directory and its missing parents, each made durable in its own parent.
fn create_directories(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else { return Ok(()) };
    create_directories(parent)?;
    match std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Ok(()) => std::fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))?,
        // Another writer made it meanwhile: it may not be durable yet, so sync all the same.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    sync_directory(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// Removes a directory and those in it that hold nothing and were last changed before this time. Says whether the
/// directory is gone. One that is filled meanwhile stays, as the system itself sees to.
pub(crate) fn remove_empty_directories(directory: &Path, before: SystemTime) -> io::Result<bool> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let changed = std::fs::metadata(directory)?.modified()?;
    let mut is_empty = true;
    for entry in entries {
        let entry = entry?;
        is_empty &= entry.file_type()?.is_dir() && remove_empty_directories(&entry.path(), before)?;
    }
    // A directory that was made for an object a moment ago is empty, too.
    if !is_empty || changed > before {
        return Ok(false);
    }
    match std::fs::remove_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

fn unique_number() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn b04_an_unpublished_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a/b/c");
        let mut file = DurableFile::begin(&target).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path().join("a/b")).unwrap().count(), 0);
    }

    #[test]
    fn only_directories_that_have_been_empty_for_long_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (old, young) = (folder.path().join("old/within"), folder.path().join("young"));
        std::fs::create_dir_all(&old).unwrap();
        let between = SystemTime::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::create_dir(&young).unwrap();
        std::fs::create_dir_all(folder.path().join("full/within")).unwrap();
        std::fs::write(folder.path().join("full/within/file"), "x").unwrap();
        assert!(!remove_empty_directories(folder.path(), between).unwrap());
        assert!(!folder.path().join("old").exists());
        assert!(young.exists());
        assert!(!remove_empty_directories(folder.path(), SystemTime::now()).unwrap());
        assert!(!young.exists());
        assert!(folder.path().join("full/within/file").exists());
        assert!(remove_empty_directories(&folder.path().join("missing"), between).unwrap());
    }

    #[test]
    fn a_published_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a/b");
        for (content, expected) in [(b"first", None), (b"other", Some(io::ErrorKind::AlreadyExists))] {
            let mut file = DurableFile::begin(&target).unwrap();
            file.write_all(content).unwrap();
            assert_eq!(file.publish().err().map(|error| error.kind()), expected);
        }
        assert_eq!(std::fs::read(&target).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(folder.path().join("a")).unwrap().count(), 1);
    }
}
