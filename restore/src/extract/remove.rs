//! Removes what a name in a directory stands for, and never what it leads to: links are removed, not followed, and a
//! directory on which another file system is mounted is an error.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, Stat};
use rustix::io::Errno;

use super::tree::DIRECTORY;

/// Removes a file, a link, or a directory with everything in it; what is not there is fine.
pub(super) fn remove(above: impl AsFd, name: &OsStr) -> io::Result<()> {
    let found = match rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !is_directory(&found) {
        return Ok(rustix::fs::unlinkat(&above, name, AtFlags::empty())?);
    }
    if found.st_dev != rustix::fs::fstat(&above)?.st_dev {
        return Err(io::Error::other("another file system is mounted there; unmount it first"));
    }
    let directory = rustix::fs::openat(&above, name, DIRECTORY, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        if !is_dot(entry.file_name().to_bytes()) {
            remove(&directory, OsStr::from_bytes(entry.file_name().to_bytes()))?;
        }
    }
    Ok(rustix::fs::unlinkat(&above, name, AtFlags::REMOVEDIR)?)
}

pub(super) fn is_directory(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

/// A directory's names for itself and for the one above.
pub(super) fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}
