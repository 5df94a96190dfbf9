//! The restore itself: parts are read at once by several threads, every file is checked while it is written, and the
//! cluster becomes startable with the very last step.
//!
//! ```text
//! marker; pg_control goes → what does not belong goes → links → directories and files, checked → settings, signal,
//!        manifest → sync everything → remove the marker, sync → pg_control under a temporary name, sync, rename, sync
//! ```
//!
//! Of a chain, the files that the newest backup has only in part come first: each is put together from all backups while
//! it is written ([`put_together`]). Nothing is kept besides.
//!
//! A server does not start without `global/pg_control`, so a restore that is killed at any point leaves a directory
//! that no server accepts, and the marker in it tells the next restore why it is not empty. With `--delta` that one
//! goes on: it is a restore over what is there.

mod claim;
mod delta;
mod expected;
mod finish;
mod frame_reader;
mod header_reader;
mod manifest_edit;
mod merging;
mod part;
mod parts;
mod put_together;
mod remove;
mod sweep;
mod tar_reader;
mod tree;
mod write_back;

use std::any::Any;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgark_command::Progress;
use pgark_repository::{Backup, IndexedMember, RepositoryError};
use thiserror::Error;
use tokio::runtime::Handle;

pub use self::delta::DeltaFigures;
use self::delta::is_there;
use self::finish::NEW_CONTROL_FILE;
pub(crate) use self::frame_reader::FrameReader;
pub(crate) use self::header_reader::HeaderReader;
pub(crate) use self::manifest_edit::{ManifestEdit, whole_label};
pub(crate) use self::parts::{Parts, Sink};
pub(crate) use self::put_together::Reconstructed;
pub use self::tar_reader::TarReader;
pub(crate) use self::tree::LastParent;
use self::tree::Tree;
use self::write_back::{end_of_writing, write_back};
use crate::chain::{Chain, is_in_blocks};
use crate::copies::Copies;
use crate::destination::{Destination, MARKER};
use crate::survey::{AUTO_CONF, BACKUP_LABEL, CONTROL_FILE, Survey, TABLESPACE_MAP};

/// Asks of the source's own that the restored cluster must not follow; what it is to do is written at the end.
const SIGNALS: [&[u8]; 2] = [b"recovery.signal", b"standby.signal"];

/// What is restored, where to, and how.
pub struct Extraction {
    pub copies: Copies,
    pub backup: Backup,
    /// What the backup builds on.
    pub chain: Chain,
    pub survey: Survey,
    pub destination: Destination,
    /// The content of `postgresql.auto.conf` in the restored cluster.
    pub auto_conf: Vec<u8>,
    /// The name of the file that asks for recovery.
    pub signal_file: &'static str,
    /// How many parts are read at once.
    pub jobs: usize,
    pub progress: Arc<Progress>,
    /// Ends the restore before the next file once it is set.
    pub stop: Arc<AtomicBool>,
}

/// The restore failed; what it has created so far cannot be started.
#[derive(Debug, Error)]
pub enum ExtractError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("cannot {operation} {}", .path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the restore was told to stop")]
    Stopped,
}

/// Restores a backup. On success everything is durable and the cluster can be started. Into an empty directory
/// everything is written, over another one what differs.
pub async fn extract(extraction: Extraction) -> Result<DeltaFigures, ExtractError> {
    let runtime = Handle::current();
    blocking(move || {
        // What is created here has exactly the mode that it is given.
        let usual = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
        let restored = extraction.run(&runtime);
        rustix::process::umask(usual);
        restored
    })
    .await
}

/// Counts what a restore would write and remove, and touches nothing.
pub async fn look(extraction: Extraction) -> Result<DeltaFigures, ExtractError> {
    let runtime = Handle::current();
    blocking(move || extraction.look(&runtime)).await
}

async fn blocking(
    work: impl FnOnce() -> Result<DeltaFigures, ExtractError> + Send + 'static,
) -> Result<DeltaFigures, ExtractError> {
    let done = tokio::task::spawn_blocking(work);
    done.await.unwrap_or_else(|error| Err(RepositoryError::Input(format!("the restore stopped: {error}")).into()))
}

impl Extraction {
    fn run(&self, runtime: &Handle) -> Result<DeltaFigures, ExtractError> {
        let figures = DeltaFigures::default();
        let tree = Tree::create(&self.destination, self.backup.server.system_identifier)?;
        if self.destination.is_occupied {
            self.sweep(&tree, runtime, &figures, true)?;
        }
        finish::link_tablespaces(self, &tree)?;
        let reconstructed = Reconstructed::default();
        self.restore_parts(&tree, &figures, &reconstructed, runtime)?;
        finish::finish(self, &tree, &reconstructed, runtime)?;
        Ok(figures)
    }

    fn restore_parts(
        &self,
        tree: &Tree,
        figures: &DeltaFigures,
        reconstructed: &Reconstructed,
        runtime: &Handle,
    ) -> Result<(), ExtractError> {
        let into_tree = IntoTree { extraction: self, tree, figures };
        let parts = Parts { copies: &self.copies, jobs: self.jobs, progress: &self.progress, sink: &into_tree };
        let (end, ended) = end_of_writing();
        std::thread::scope(|scope| {
            let writing_back = scope.spawn(move || write_back(tree, &ended));
            let put_together = self.put_together(tree, figures, reconstructed, runtime);
            let result = put_together.and_then(|()| parts.read(runtime));
            drop(end);
            result.and(writing_back.join().unwrap_or_else(thread_died))
        })
    }

    /// Opens a file to be written anew.
    fn new_file(&self, tree: &Tree, last: &mut LastParent, path: &[u8], mode: u32) -> Result<File, ExtractError> {
        match self.destination.is_occupied {
            true => tree.replace_file(last, path, mode),
            false => tree.create_file(last, path, mode),
        }
    }

    /// Files that are checked like all others, but written at the end, in another form, or not at all.
    fn is_held_back(&self, path: &[u8]) -> bool {
        let is_moved = self.destination.tablespaces.iter().any(|tablespace| tablespace.is_moved);
        path == CONTROL_FILE
            || path == AUTO_CONF
            || path == BACKUP_LABEL && !self.chain.is_empty()
            || path == TABLESPACE_MAP && is_moved
            || path == MARKER.as_bytes()
            || path.strip_prefix(b"global/").is_some_and(|name| name == NEW_CONTROL_FILE.as_bytes())
            || SIGNALS.contains(&path)
    }
}

/// A restore's tree of files. The first failure ends it.
struct IntoTree<'t> {
    extraction: &'t Extraction,
    tree: &'t Tree,
    figures: &'t DeltaFigures,
}

impl Sink for IntoTree<'_> {
    fn directory(&self, member: &IndexedMember) -> Result<(), ExtractError> {
        self.tree.create_directory(&member.path, member.mode)
    }

    fn file(&self, last: &mut LastParent, member: &IndexedMember) -> Result<Option<Box<dyn Write + '_>>, ExtractError> {
        if self.extraction.stop.load(Ordering::Relaxed) {
            return Err(ExtractError::Stopped);
        }
        if self.extraction.is_held_back(&member.path) {
            return Ok(None);
        }
        Ok(Some(Box::new(self.extraction.new_file(self.tree, last, &member.path, member.mode)?)))
    }

    fn has(&self, last: &mut LastParent, member: &IndexedMember) -> Result<bool, ExtractError> {
        if is_in_blocks(&member.path) {
            return Ok(true);
        }
        if !self.extraction.destination.is_occupied {
            return Ok(false);
        }
        // These come from the survey, which has checked them.
        let Some(file) = member.file.filter(|_| !self.extraction.is_held_back(&member.path)) else { return Ok(true) };
        let is_kept = is_there(self.tree, last, member, true);
        self.figures.compared(file.size, is_kept);
        Ok(is_kept)
    }

    fn fetched(&self, bytes: u64) {
        self.figures.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn discard(&self, last: &mut LastParent, member: &IndexedMember) -> Result<(), ExtractError> {
        match self.extraction.is_held_back(&member.path) {
            true => Ok(()),
            false => self.tree.remove_file(last, &member.path),
        }
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        self.tree.shown(path)
    }
}

fn thread_died(_: Box<dyn Any + Send>) -> Result<(), ExtractError> {
    Err(RepositoryError::Input("a thread of the restore died".to_owned()).into())
}

pub(crate) fn io_failure(
    operation: &'static str,
    path: impl Into<PathBuf>,
    source: impl Into<io::Error>,
) -> ExtractError {
    ExtractError::Io { operation, path: path.into(), source: source.into() }
}
