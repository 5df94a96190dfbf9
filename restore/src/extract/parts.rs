//! All parts of a backup, read at once by several threads and checked file by file: to restore them, or only to prove
//! that they can be.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use pgark_command::Progress;
use pgark_postgres::{PageChecker, WrongPages};
use pgark_repository::{IndexLine, IndexReader, IndexedMember, IndexedPart};
use tokio::runtime::Handle;

use super::part::read_part;
use super::tree::LastParent;
use super::{ExtractError, thread_died};
use crate::copies::{Copies, List, StoredCopy};
use crate::damage::{damaged, reading_failed};
use crate::survey::DigestReader;

/// Where the files go.
pub(crate) trait Sink: Sync {
    /// A directory, before anything in it.
    fn directory(&self, _: &IndexedMember) -> Result<(), ExtractError> {
        Ok(())
    }

    /// Whether the file is there already, as the backup has it; then it is not read.
    fn has(&self, _: &mut LastParent, _: &IndexedMember) -> Result<bool, ExtractError> {
        Ok(false)
    }

    /// Opens a file; nothing for one that is only checked.
    fn file(&self, last: &mut LastParent, member: &IndexedMember) -> Result<Option<Box<dyn Write + '_>>, ExtractError>;

    /// Takes note of a file that was written whole and has the right checksum.
    fn written(&self, _: &mut LastParent, _: &IndexedMember) -> Result<(), ExtractError> {
        Ok(())
    }

    /// Takes a file back whose part failed and is read once more from another copy.
    fn discard(&self, _: &mut LastParent, _: &IndexedMember) -> Result<(), ExtractError> {
        Ok(())
    }

    /// So many stored bytes were read.
    fn fetched(&self, _: u64) {}

    /// The path for messages.
    fn shown(&self, path: &[u8]) -> PathBuf {
        PathBuf::from(String::from_utf8_lossy(path).into_owned())
    }

    /// Whether a part is read at all.
    fn wants(&self, _: u32) -> bool {
        true
    }

    /// What looks at the pages of a file while it passes, where somebody wants to know.
    fn pages(&self, _: &IndexedMember) -> Option<PageChecker> {
        None
    }

    /// Takes what was found in them.
    fn pages_checked(&self, _: &IndexedMember, _: WrongPages) {}

    /// Takes note of a part that failed; what it returns ends everything, or not.
    fn part_failed(&self, error: ExtractError) -> Result<(), ExtractError> {
        Err(error)
    }
}

/// The parts of a backup, and where their files go.
pub(crate) struct Parts<'p, S> {
    pub(crate) copies: &'p Copies,
    /// How many are read at once.
    pub(crate) jobs: usize,
    pub(crate) progress: &'p Progress,
    pub(crate) sink: &'p S,
}

/// A part with its members.
pub(super) struct Work {
    pub(super) part: IndexedPart,
    pub(super) members: Vec<IndexedMember>,
}

impl<S: Sink> Parts<'_, S> {
    /// Reads the index and hands each part with its members to a thread.
    pub(crate) fn read(&self, runtime: &Handle) -> Result<(), ExtractError> {
        let stop = AtomicBool::new(false);
        let Some(copy) = self.copies.in_order().first().copied() else { return Ok(()) };
        let jobs = self.jobs.clamp(1, copy.backup.parts.len().max(1));
        let (sender, receiver) = sync_channel::<Work>(1);
        let receiver = Mutex::new(receiver);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(|| self.work(&receiver, runtime, &stop))).collect();
            let dispatched = self.dispatch(copy, runtime, sender, &stop);
            if dispatched.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            let mut result = dispatched;
            for worker in workers {
                let done = worker.join().unwrap_or_else(thread_died);
                result = result.and(done);
            }
            result
        })
    }

    /// `copy` is only for messages: the index is the same in all of them.
    fn dispatch(
        &self,
        StoredCopy { repository, backup, .. }: &StoredCopy,
        runtime: &Handle,
        queue: SyncSender<Work>,
        stop: &AtomicBool,
    ) -> Result<(), ExtractError> {
        let key = repository.index_key(backup);
        let (index, digest) = DigestReader::new(self.copies.read(List::Index, runtime));
        let mut index = IndexReader::new(index);
        let mut members: Vec<IndexedMember> = Vec::new();
        while let Some(line) = index.next_line().map_err(|error| reading_failed(repository, &key, error))? {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match line {
                IndexLine::Member(member) => {
                    if member.file.is_none() {
                        self.sink.directory(&member)?;
                    }
                    members.push(member);
                }
                IndexLine::Part(part) => {
                    let work = Work { part, members: std::mem::take(&mut members) };
                    if !self.sink.wants(work.part.part) {
                        continue;
                    }
                    // Threads take what is sent until the end, also when one has failed.
                    if queue.send(work).is_err() {
                        return Ok(());
                    }
                }
            }
        }
        if !members.is_empty() {
            return Err(damaged(repository, &key, "it ends within a part").into());
        }
        Ok(digest.check(repository, &key, &backup.index)?)
    }

    fn work(&self, queue: &Mutex<Receiver<Work>>, runtime: &Handle, stop: &AtomicBool) -> Result<(), ExtractError> {
        let mut result = Ok(());
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(work) = next else { return result };
            if stop.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(error) = read_part(self, runtime, &work, stop)
                && let Err(error) = self.sink.part_failed(error)
            {
                stop.store(true, Ordering::Relaxed);
                result = Err(error);
            }
        }
    }
}
