//! The restore itself: parts are read at once by several threads, every file is checked while it is written, and the
//! cluster becomes startable with the very last step.
//!
//! ```text
//! marker → directories and files, checked → links, settings, signal, manifest → sync everything
//!        → remove the marker, sync → pg_control under a temporary name, sync, rename, sync
//! ```
//!
//! A server does not start without `global/pg_control`, so a restore that is killed at any point leaves a directory
//! that no server accepts, and the marker in it tells the next restore why it is not empty.

mod finish;
mod part;
mod tar_reader;
mod tree;
mod write_back;

use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use pgark_command::Progress;
use pgark_repository::{
    Backup, ClusterRepository, IndexLine, IndexReader, IndexedMember, IndexedPart, OpenedObject, RepositoryError,
};
use thiserror::Error;
use tokio::runtime::Handle;

use self::part::restore_part;
pub use self::tar_reader::TarReader;
use self::tree::Tree;
use self::write_back::{end_of_writing, write_back};
use crate::damage::{damaged, reading_failed};
use crate::destination::Destination;
use crate::survey::{DigestReader, Survey, decompress};

/// What is restored, where to, and how.
pub struct Extraction {
    pub repository: ClusterRepository,
    pub backup: Backup,
    pub survey: Survey,
    pub destination: Destination,
    /// The content of `postgresql.auto.conf` in the restored cluster.
    pub auto_conf: Vec<u8>,
    /// The name of the file that asks for recovery.
    pub signal_file: &'static str,
    /// How many parts are read at once.
    pub jobs: usize,
    pub progress: Arc<Progress>,
}

/// The restore failed; what it has created so far cannot be started.
#[derive(Debug, Error)]
pub enum ExtractError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("cannot {operation} {}", .path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

/// A part with its members, ready to be restored.
struct Work {
    part: IndexedPart,
    members: Vec<IndexedMember>,
}

/// Restores a backup. On success everything is durable and the cluster can be started.
pub async fn extract(extraction: Extraction) -> Result<(), ExtractError> {
    let index_key = extraction.repository.index_key(&extraction.backup);
    let manifest_key = extraction.repository.manifest_key(&extraction.backup);
    let index = extraction.repository.open_backup_object(&extraction.backup, &index_key).await?;
    let manifest = extraction.repository.open_backup_object(&extraction.backup, &manifest_key).await?;
    let runtime = Handle::current();
    let done = tokio::task::spawn_blocking(move || {
        // What is created here has exactly the mode that it is given.
        let usual = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
        let restored = extraction.run(index, manifest, &runtime);
        rustix::process::umask(usual);
        restored
    });
    done.await.unwrap_or_else(|error| Err(RepositoryError::Input(format!("the restore stopped: {error}")).into()))
}

impl Extraction {
    fn run(&self, index: OpenedObject, manifest: OpenedObject, runtime: &Handle) -> Result<(), ExtractError> {
        let tree = Tree::create(&self.destination)?;
        self.restore_parts(&tree, index, runtime)?;
        finish::finish(self, &tree, manifest)
    }

    /// Reads the index again and hands each part with its members to a thread.
    fn restore_parts(&self, tree: &Tree, index: OpenedObject, runtime: &Handle) -> Result<(), ExtractError> {
        let stop = AtomicBool::new(false);
        let jobs = self.jobs.clamp(1, self.backup.parts.len().max(1));
        let (sender, receiver) = sync_channel::<Work>(1);
        let receiver = Mutex::new(receiver);
        let (end, ended) = end_of_writing();
        std::thread::scope(|scope| {
            let writing_back = scope.spawn(move || write_back(tree, &ended));
            let workers: Vec<_> =
                (0..jobs).map(|_| scope.spawn(|| self.work(tree, &receiver, runtime, &stop))).collect();
            let dispatched = self.dispatch(tree, index, sender, &stop);
            if dispatched.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            let mut result = dispatched;
            for worker in workers {
                let done = worker.join().unwrap_or_else(thread_died);
                result = result.and(done);
            }
            drop(end);
            result.and(writing_back.join().unwrap_or_else(thread_died))
        })
    }

    fn dispatch(
        &self,
        tree: &Tree,
        index: OpenedObject,
        queue: SyncSender<Work>,
        stop: &AtomicBool,
    ) -> Result<(), ExtractError> {
        let key = self.repository.index_key(&self.backup);
        let (index, digest) = DigestReader::new(decompress(&self.repository, &key, index)?);
        let mut index = IndexReader::new(index);
        let mut members: Vec<IndexedMember> = Vec::new();
        while let Some(line) = index.next_line().map_err(|error| reading_failed(&self.repository, &key, error))? {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match line {
                IndexLine::Member(member) => {
                    if member.file.is_none() {
                        tree.create_directory(&member.path, member.mode)?;
                    }
                    members.push(member);
                }
                IndexLine::Part(part) => {
                    let work = Work { part, members: std::mem::take(&mut members) };
                    // Threads take what is sent until the end, also when one has failed.
                    if queue.send(work).is_err() {
                        return Ok(());
                    }
                }
            }
        }
        if !members.is_empty() {
            return Err(damaged(&self.repository, &key, "it ends within a part").into());
        }
        Ok(digest.check(&self.repository, &key, &self.backup.index)?)
    }

    fn work(
        &self,
        tree: &Tree,
        queue: &Mutex<Receiver<Work>>,
        runtime: &Handle,
        stop: &AtomicBool,
    ) -> Result<(), ExtractError> {
        let mut result = Ok(());
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(work) = next else { return result };
            if !stop.load(Ordering::Relaxed) {
                let restored = restore_part(self, tree, runtime, &work, stop);
                if restored.is_err() {
                    stop.store(true, Ordering::Relaxed);
                    result = restored;
                }
            }
        }
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
