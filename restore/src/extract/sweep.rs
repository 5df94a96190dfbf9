//! Takes out of a data directory and its tablespaces what the backup does not have. No link is followed: the
//! directories themselves are open handles, and below them a link is removed like a file. In a tablespace's place only
//! the cluster's own directory (`PG_15_202209061`) is looked at.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, Stat};

use super::delta::{DeltaFigures, is_written_by_restore};
use super::expected::Expected;
use super::remove::{is_directory, is_dot, remove};
use super::tree::{DIRECTORY, Tree};
use super::{ExtractError, io_failure};
use crate::destination::MARKER;
use crate::survey::tablespace_of;

pub(super) struct Sweep<'s> {
    pub(super) tree: &'s Tree,
    pub(super) expected: &'s Expected,
    /// The name of the cluster's own directory in each tablespace.
    pub(super) own_directory: String,
    pub(super) figures: &'s DeltaFigures,
    /// Otherwise it only counts.
    pub(super) is_carried_out: bool,
}

impl Sweep<'_> {
    pub(super) fn run(&self) -> Result<(), ExtractError> {
        self.directory(self.tree.data().handle.as_fd(), b"")?;
        for (oid, root) in self.tree.tablespaces() {
            let prefix = format!("pg_tblspc/{oid}/{}", self.own_directory);
            self.entry(root.handle.as_fd(), self.own_directory.as_bytes(), prefix.as_bytes())?;
        }
        Ok(())
    }

    fn directory(&self, directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), ExtractError> {
        let failed = |error: io::Error| io_failure("read", self.tree.shown(path), error);
        for entry in Dir::read_from(directory).map_err(|error| failed(error.into()))? {
            let entry = entry.map_err(|error| failed(error.into()))?;
            let name = entry.file_name().to_bytes();
            if is_dot(name) {
                continue;
            }
            let below = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            self.entry(directory, name, &below)?;
        }
        Ok(())
    }

    fn entry(&self, above: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), ExtractError> {
        let name = OsStr::from_bytes(name);
        let found = match rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(io_failure("look at", self.tree.shown(path), error)),
        };
        if self.belongs(path, &found) {
            if !is_directory(&found) {
                return Ok(());
            }
            let opened = rustix::fs::openat(above, name, DIRECTORY, Mode::empty())
                .map_err(|error| io_failure("open", self.tree.shown(path), error))?;
            return self.directory(opened.as_fd(), path);
        }
        if !is_written_by_restore(path) {
            self.count(above, name, &found).map_err(|error| io_failure("read", self.tree.shown(path), error))?;
        }
        if !self.is_carried_out {
            return Ok(());
        }
        remove(above, name).map_err(|error| io_failure("remove", self.tree.shown(path), error))
    }

    fn belongs(&self, path: &[u8], found: &Stat) -> bool {
        // Of a tablespace outside there is only the link in the data directory, which is put right later.
        let is_link_of_tablespace = path.iter().filter(|&&byte| byte == b'/').count() == 1
            && tablespace_of(path).is_some_and(|oid| self.tree.tablespaces().any(|(other, _)| other == oid));
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => is_link_of_tablespace,
            FileType::Directory => !is_link_of_tablespace && self.expected.has_directory(path),
            FileType::RegularFile => path == MARKER.as_bytes() || self.expected.has_file(path),
            _ => false,
        }
    }

    /// Files, also those in directories that go; links and directories have no content of their own.
    fn count(&self, above: BorrowedFd<'_>, name: &OsStr, found: &Stat) -> io::Result<()> {
        if !is_directory(found) {
            self.figures.removed(u64::try_from(found.st_size).unwrap_or(0));
            return Ok(());
        }
        let directory = rustix::fs::openat(above, name, DIRECTORY, Mode::empty())?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !is_dot(name) {
                let name = OsStr::from_bytes(name);
                let found = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                self.count(directory.as_fd(), name, &found)?;
            }
        }
        Ok(())
    }
}
