//! The directories under restore, as open handles: every file and directory is created relative to one, never through
//! a link, and never over something that is there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{ExtractError, io_failure};
use crate::destination::{Destination, MARKER};
use crate::survey::tablespace_of;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW_FILE: OFlags =
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
    /// Creates the directories themselves, with the marker in the data directory.
    pub(super) fn create(destination: &Destination) -> Result<Self, ExtractError> {
        let mode_mask = destination.mode_mask;
        let data = Root::create(&destination.directory, mode_mask)?;
        let marker = rustix::fs::openat(&data.handle, MARKER, NEW_FILE, Mode::from_raw_mode(0o600))
            .map_err(|error| io_failure("create", data.path.join(MARKER), error))?;
        let text = "A restore of pgark has not come to its end here. PostgreSQL cannot start on this directory.\n";
        io::Write::write_all(&mut File::from(marker), text.as_bytes())
            .map_err(|error| io_failure("write", data.path.join(MARKER), error))?;
        rustix::fs::fsync(&data.handle).map_err(|error| io_failure("sync", &data.path, error))?;
        let mut tablespaces = BTreeMap::new();
        for tablespace in &destination.tablespaces {
            if let Some(location) = &tablespace.location {
                tablespaces.insert(tablespace.oid, Root::create(location, mode_mask)?);
            }
        }
        let tree = Self { data, tablespaces, mode_mask };
        for tablespace in destination.tablespaces.iter().filter(|tablespace| tablespace.location.is_none()) {
            tree.create_directory(format!("pg_tblspc/{}", tablespace.oid).as_bytes(), 0o700)?;
        }
        Ok(tree)
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
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let opened = rustix::fs::openat(above, OsStr::from_bytes(part), DIRECTORY, Mode::empty());
            parent = Some(opened.map_err(|error| failed(error.into()))?);
        }
        Ok(())
    }

    /// Creates a file that must not be there.
    pub(super) fn create_file(&self, last: &mut LastParent, path: &[u8], mode: u32) -> Result<File, ExtractError> {
        self.open_new(last, path, mode).map_err(|error| io_failure("create", self.shown(path), error))
    }

    /// Removes a file that was created just now.
    pub(super) fn remove_file(&self, last: &mut LastParent, path: &[u8]) -> Result<(), ExtractError> {
        let removed = self.parent_of(last, path).and_then(|(above, name)| {
            Ok(rustix::fs::unlinkat(above, OsStr::from_bytes(name), rustix::fs::AtFlags::empty())?)
        });
        removed.map_err(|error| io_failure("remove", self.shown(path), error))
    }

    fn open_new(&self, last: &mut LastParent, path: &[u8], mode: u32) -> io::Result<File> {
        let (above, name) = self.parent_of(last, path)?;
        let mode = Mode::from_raw_mode(mode & self.mode_mask & 0o777 | 0o600);
        Ok(File::from(rustix::fs::openat(above, OsStr::from_bytes(name), NEW_FILE, mode)?))
    }

    /// The directory of a file, and its name in there.
    fn parent_of<'p, 'l: 'p>(
        &'l self,
        last: &'l mut LastParent,
        path: &'p [u8],
    ) -> io::Result<(BorrowedFd<'p>, &'p [u8])> {
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
        Ok((last.handle.as_ref().map_or(root, AsFd::as_fd), name))
    }

    /// Opens a directory below the data directory.
    pub(super) fn open_directory(&self, path: &str) -> Result<OwnedFd, ExtractError> {
        rustix::fs::openat(&self.data.handle, path, DIRECTORY, Mode::empty())
            .map_err(|error| io_failure("open", self.data.path.join(path), error))
    }
}

impl Root {
    /// Creates a directory, or takes one that is there and empty.
    fn create(path: &Path, mode_mask: u32) -> Result<Self, ExtractError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| io_failure("create", path, error))?;
        // The place itself may be reached by a link of the administrator; what is below it may not.
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let handle = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| io_failure("open", path, error))?;
        rustix::fs::fchmod(&handle, Mode::from_raw_mode(mode_mask))
            .map_err(|error| io_failure("change the mode of", path, error))?;
        // It was empty when it was checked; somebody else may have been faster since.
        let mut entries = rustix::fs::Dir::read_from(&handle).map_err(|error| io_failure("read", path, error))?;
        let occupied =
            entries.any(|entry| entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")));
        if occupied {
            let error = io::Error::new(io::ErrorKind::DirectoryNotEmpty, "it is not empty any more");
            return Err(io_failure("use", path, error));
        }
        Ok(Self { path: path.to_path_buf(), handle })
    }
}
