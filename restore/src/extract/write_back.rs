//! Sends what was written to the disk while the rest is still being read.
//!
//! A restore ends with everything on stable storage. Left to itself the kernel keeps gigabytes in memory until that
//! last sync, and the disk idles while parts are decompressed; synced all along, it works all along.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::tree::Tree;
use super::{ExtractError, io_failure};

/// Short against the length of a restore, long against a sync with nothing to do.
const PAUSE: Duration = Duration::from_millis(100);

/// Ends the write-back when it is dropped.
pub(super) struct EndOfWriting(#[expect(dead_code, reason = "what counts is that it is dropped")] SyncSender<()>);

/// A signal for the end of writing, and the side that listens to it.
pub(super) fn end_of_writing() -> (EndOfWriting, Receiver<()>) {
    let (sender, receiver) = sync_channel(0);
    (EndOfWriting(sender), receiver)
}

/// Syncs until nothing is written any more. An error is told once only, by the call that met it, so it counts here.
pub(super) fn write_back(tree: &Tree, ended: &Receiver<()>) -> Result<(), ExtractError> {
    while ended.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
        sync_file_systems(tree)?;
    }
    Ok(())
}

/// One call for each file system instead of one for each of many thousand files.
pub(super) fn sync_file_systems(tree: &Tree) -> Result<(), ExtractError> {
    for root in tree.roots() {
        rustix::fs::syncfs(&root.handle).map_err(|error| io_failure("sync", &root.path, error))?;
    }
    Ok(())
}
