//! A data directory is claimed before anything in it changes: a lock against other restores, a marker that says what is
//! going on, and no `pg_control` any more, without which no server starts.
//!
//! A server creates `postmaster.pid` before it reads `pg_control` for good. So one that starts meanwhile is either seen
//! here, and then gets its `pg_control` back, or fails.

use std::fs::File;
use std::io::{self, Write};

use pgark_postgres::SystemIdentifier;
use rustix::fs::{AtFlags, FlockOperation, Mode, RenameFlags};
use rustix::io::Errno;

use super::remove::remove;
use super::tree::{DIRECTORY, NEW_FILE, Root};
use super::{ExtractError, io_failure};
use crate::destination::{MARKER, MARKER_SYSTEM, NEW_MARKER};

/// The name of the `pg_control` that a cluster had before.
pub(super) const OLD_CONTROL_FILE: &str = "pg_control.pgark-old";
const POSTMASTER_PID: &str = "postmaster.pid";

pub(super) fn claim(root: &Root, system_identifier: SystemIdentifier) -> Result<(), ExtractError> {
    // Held as long as the handle is open.
    rustix::fs::flock(&root.handle, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        let error = match error {
            Errno::WOULDBLOCK => io::Error::other("another restore is at work in it"),
            error => error.into(),
        };
        io_failure("lock", &root.path, error)
    })?;
    mark(root, system_identifier).map_err(|error| io_failure("create", root.path.join(MARKER), error))?;
    take_control_file(root).map_err(|error| io_failure("claim", &root.path, error))
}

/// Whatever else has these names goes, and is never written into.
fn mark(root: &Root, system_identifier: SystemIdentifier) -> io::Result<()> {
    remove(&root.handle, NEW_MARKER.as_ref())?;
    let mut marker = File::from(rustix::fs::openat(&root.handle, NEW_MARKER, NEW_FILE, Mode::from_raw_mode(0o600))?);
    writeln!(
        marker,
        "A restore of pgark has not come to its end here. PostgreSQL cannot start on this directory.\n\
         `pgark-restore base --delta` goes on with it.\n{MARKER_SYSTEM}{system_identifier}"
    )?;
    marker.sync_all()?;
    rustix::fs::renameat(&root.handle, NEW_MARKER, &root.handle, MARKER)?;
    Ok(rustix::fs::fsync(&root.handle)?)
}

fn take_control_file(root: &Root) -> io::Result<()> {
    let global = match rustix::fs::openat(&root.handle, "global", DIRECTORY, Mode::empty()) {
        Ok(global) => global,
        Err(Errno::NOENT) => return Ok(()),
        // A link, through which a server would find one.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            remove(&root.handle, "global".as_ref())?;
            return Ok(rustix::fs::fsync(&root.handle)?);
        }
        Err(error) => return Err(error.into()),
    };
    remove(&global, OLD_CONTROL_FILE.as_ref())?;
    match rustix::fs::renameat(&global, "pg_control", &global, OLD_CONTROL_FILE) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    rustix::fs::fsync(&global)?;
    if rustix::fs::statat(&root.handle, POSTMASTER_PID, AtFlags::SYMLINK_NOFOLLOW).is_err() {
        return Ok(());
    }
    // Never over one that is newer.
    rustix::fs::renameat_with(&global, OLD_CONTROL_FILE, &global, "pg_control", RenameFlags::NOREPLACE)?;
    remove(&root.handle, MARKER.as_ref())?;
    Err(io::Error::other("a server was started in it"))
}
