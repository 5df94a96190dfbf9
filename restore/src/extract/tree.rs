//! The directories under restore, as open handles: every file and directory is created relative to one, never through
//! a link. What is in the way is an error, or with `--delta` goes first.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use pgark_postgres::SystemIdentifier;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::claim::claim;
use super::{ExtractError, io_failure};
use crate::destination::Destination;
use crate::survey::tablespace_of;

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
pub(super) const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The data directory and the tablespaces outside of it.
#[derive(Debug)]
pub(super) struct Tree {
    data: Root,
    tablespaces: BTreeMap<u32, Root>,
    mode_mask: u32,
}

#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) handle: OwnedFd,
}

/// The directory in which the last file was created; most files follow one in the same directory.
#[derive(Debug, Default)]
pub(crate) struct LastParent {
    path: Vec<u8>,
    handle: Option<OwnedFd>,
}

impl Tree {
    /// Creates the directories themselves and claims the data directory.
    pub(super) fn create(destination: &Destination, system_identifier: SystemIdentifier) -> Result<Self, ExtractError> {
        let mode_mask = destination.mode_mask;
        let data = Root::create(&destination.directory, mode_mask, destination.is_occupied)?;
        claim(&data, system_identifier)?;
        let mut tablespaces = BTreeMap::new();
        for tablespace in &destination.tablespaces {
            if let Some(location) = &tablespace.location {
                tablespaces.insert(tablespace.oid, Root::create(location, mode_mask, tablespace.is_occupied)?);
            }
        }
        Ok(Self { data, tablespaces, mode_mask })
    }

    /// Opens what is there, to look at it only.
    pub(super) fn look(destination: &Destination) -> Result<Option<Self>, ExtractError> {
        if !destination.is_occupied {
            return Ok(None);
        }
        let data = Root::open(&destination.directory)?;
        let mut tablespaces = BTreeMap::new();
        for tablespace in destination.tablespaces.iter().filter(|tablespace| tablespace.is_occupied) {
            if let Some(location) = &tablespace.location {
                tablespaces.insert(tablespace.oid, Root::open(location)?);
            }
        }
        Ok(Some(Self { data, tablespaces, mode_mask: destination.mode_mask }))
    }

    pub(super) fn tablespaces(&self) -> impl Iterator<Item = (u32, &Root)> {
        self.tablespaces.iter().map(|(oid, root)| (*oid, root))
    }

    pub(super) fn data(&self) -> &Root {
        &self.data
    }

    pub(super) fn roots(&self) -> impl Iterator<Item = &Root> {
        std::iter::once(&self.data).chain(self.tablespaces.values())
    }

    /// The path for messages.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        self.data.path.join(OsStr::from_bytes(path))
    }

    /// Where a path below the data directory really lies: in a tablespace, the rest is below that.
    fn place<'p>(&self, path: &'p [u8]) -> (BorrowedFd<'_>, &'p [u8]) {
        if let Some(root) = tablespace_of(path).and_then(|oid| self.tablespaces.get(&oid)) {
            let rest = path.splitn(3, |&byte| byte == b'/').nth(2).unwrap_or_default();
            return (root.handle.as_fd(), rest);
        }
        (self.data.handle.as_fd(), path)
    }

    /// Creates a directory and those above it; one that is there is fine.
    pub(super) fn create_directory(&self, path: &[u8], mode: u32) -> Result<(), ExtractError> {
        let (root, rest) = self.place(path);
        let failed = |error: io::Error| io_failure("create", self.shown(path), error);
        let parts: Vec<&[u8]> = rest.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect();
        let mut parent: Option<OwnedFd> = None;
        for (index, part) in parts.iter().enumerate() {
            let above = parent.as_ref().map_or(root, AsFd::as_fd);
            let mode = if index + 1 == parts.len() { mode } else { self.mode_mask };
            let mode = Mode::from_raw_mode(mode & self.mode_mask | 0o700);
            match rustix::fs::mkdirat(above, OsStr::from_bytes(part), mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let opened = rustix::fs::openat(above, OsStr::from_bytes(part), DIRECTORY, Mode::empty());
            let opened = opened.map_err(|error| failed(error.into()))?;
            if index + 1 == parts.len() {
                set_mode(&opened, mode).map_err(failed)?;
            }
            parent = Some(opened);
        }
        Ok(())
    }

    /// Creates a file that must not be there.
    pub(super) fn create_file(&self, last: &mut LastParent, path: &[u8], mode: u32) -> Result<File, ExtractError> {
        self.open_new(last, path, mode).map_err(|error| io_failure("create", self.shown(path), error))
    }

    /// Removes a file that was created just now.
    pub(super) fn remove_file(&self, last: &mut LastParent, path: &[u8]) -> Result<(), ExtractError> {
        let removed = self
            .open_parent(last, path)
            .and_then(|(above, name)| Ok(rustix::fs::unlinkat(above, name, AtFlags::empty())?));
        removed.map_err(|error| io_failure("remove", self.shown(path), error))
    }

    fn open_new(&self, last: &mut LastParent, path: &[u8], mode: u32) -> io::Result<File> {
        let (above, name) = self.open_parent(last, path)?;
        let mode = self.file_mode(mode);
        Ok(File::from(rustix::fs::openat(above, name, NEW_FILE, mode)?))
    }

    /// Replaces whatever has this name; the old file goes, so that nothing is written into what it is linked to.
    pub(super) fn replace_file(&self, last: &mut LastParent, path: &[u8], mode: u32) -> Result<File, ExtractError> {
        let removed = self.open_parent(last, path).and_then(|(above, name)| {
            match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        removed.map_err(|error| io_failure("replace", self.shown(path), error))?;
        self.create_file(last, path, mode)
    }

    /// Opens a file for reading, whatever it is.
    pub(super) fn open_file(&self, last: &mut LastParent, path: &[u8]) -> io::Result<File> {
        let (above, name) = self.open_parent(last, path)?;
        // A pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(File::from(rustix::fs::openat(above, name, flags, Mode::empty())?))
    }

    /// The mode that a file is given here.
    pub(super) fn file_mode(&self, mode: u32) -> Mode {
        Mode::from_raw_mode(mode & self.mode_mask & 0o777 | 0o600)
    }

    /// The directory of a file, and its name in it.
    fn open_parent<'l, 'p>(
        &'l self,
        last: &'l mut LastParent,
        path: &'p [u8],
    ) -> io::Result<(BorrowedFd<'l>, &'p OsStr)> {
        let (root, rest) = self.place(path);
        let (parent, name) = match rest.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&rest[..slash], &rest[slash + 1..]),
            None => (&b""[..], rest),
        };
        // The whole path tells tablespaces apart; without the name it names the directory.
        let directory = &path[..path.len() - name.len()];
        if last.handle.is_none() || last.path != directory {
            let mut handle: Option<OwnedFd> = None;
            for part in parent.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
                let above = handle.as_ref().map_or(root, AsFd::as_fd);
                handle = Some(rustix::fs::openat(above, OsStr::from_bytes(part), DIRECTORY, Mode::empty())?);
            }
            last.handle = Some(match handle {
                Some(handle) => handle,
                None => root.try_clone_to_owned()?,
            });
            last.path = directory.to_vec();
        }
        Ok((last.handle.as_ref().map_or(root, AsFd::as_fd), OsStr::from_bytes(name)))
    }

    /// Opens a directory below the data directory.
    pub(super) fn open_directory(&self, path: &str) -> Result<OwnedFd, ExtractError> {
        rustix::fs::openat(&self.data.handle, path, DIRECTORY, Mode::empty())
            .map_err(|error| io_failure("open", self.data.path.join(path), error))
    }
}

impl Root {
    /// Creates a directory, or takes one that is there: an empty one, or what is to be brought to the backup.
    fn create(path: &Path, mode_mask: u32, is_occupied: bool) -> Result<Self, ExtractError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| io_failure("create", path, error))?;
        let root = Self::open(path)?;
        rustix::fs::fchmod(&root.handle, Mode::from_raw_mode(mode_mask))
            .map_err(|error| io_failure("change the mode of", path, error))?;
        if is_occupied {
            return Ok(root);
        }
        // It was empty when it was checked; somebody else may have been faster since.
        let mut entries = Dir::read_from(&root.handle).map_err(|error| io_failure("read", path, error))?;
        let occupied =
            entries.any(|entry| entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")));
        if occupied {
            let error = io::Error::new(io::ErrorKind::DirectoryNotEmpty, "it is not empty any more");
            return Err(io_failure("use", path, error));
        }
        Ok(root)
    }

    fn open(path: &Path) -> Result<Self, ExtractError> {
        // The place itself may be reached by a link of the administrator; what is below it may not.
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let handle = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| io_failure("open", path, error))?;
        Ok(Self { path: path.to_path_buf(), handle })
    }
}

/// Changes a mode that is another one.
pub(super) fn set_mode(handle: impl AsFd, mode: Mode) -> io::Result<()> {
    if Mode::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) != mode {
        rustix::fs::fchmod(&handle, mode)?;
    }
    Ok(())
}
