//! A backup in all repositories that have it: what one copy lacks is read from the next, also in the middle.
//!
//! The copies hold the same files in the same frames, so their lists are equal, byte for byte, and so are the parts once
//! they are decrypted. Which copy failed is told each time: a damaged one must not go unnoticed because there is another.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgark_repository::{Backup, BackupId, ClusterRepository, ObjectKey, OpenedObject, RepositoryError};
use tokio::runtime::Handle;

use crate::damage::reading_failed;
use crate::survey::{Survey, decompress, survey};

/// The copies of one backup, the preferred one first; there is at least one.
#[derive(Clone, Debug)]
pub struct Copies(Arc<[StoredCopy]>);

#[derive(Debug)]
pub(crate) struct StoredCopy {
    pub(crate) repository: ClusterRepository,
    pub(crate) backup: Backup,
    has_failed: AtomicBool,
}

/// What a backup says of its files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum List {
    Index,
    Manifest,
}

impl List {
    pub(crate) fn key(self, repository: &ClusterRepository, backup: &Backup) -> ObjectKey {
        match self {
            Self::Index => repository.index_key(backup),
            Self::Manifest => repository.manifest_key(backup),
        }
    }
}

impl Copies {
    /// The copies that hold what `backup` says.
    pub(crate) fn new(backup: &Backup, found: impl IntoIterator<Item = (ClusterRepository, Backup)>) -> Self {
        let is_same = |(repository, copy): &(ClusterRepository, Backup)| {
            let same = copy.index.sha256 == backup.index.sha256 && copy.manifest.sha256 == backup.manifest.sha256;
            if !same {
                tracing::warn!(repository = repository.name(), id = %backup.id, "holds another backup under this id");
            }
            same
        };
        let copy = |(repository, backup)| StoredCopy { repository, backup, has_failed: AtomicBool::new(false) };
        Self(found.into_iter().filter(is_same).map(copy).collect())
    }

    /// One copy alone.
    pub fn of(repository: ClusterRepository, backup: Backup) -> Self {
        Self(Arc::new([StoredCopy { repository, backup, has_failed: AtomicBool::new(false) }]))
    }

    /// In the order of preference, those that failed last.
    pub(crate) fn in_order(&self) -> Vec<&StoredCopy> {
        let (well, failed): (Vec<_>, Vec<_>) = self.0.iter().partition(|copy| !copy.has_failed.load(Ordering::Relaxed));
        well.into_iter().chain(failed).collect()
    }

    /// Takes note of a copy that failed. Of a single one the caller tells.
    pub(crate) fn note_failure(&self, copy: &StoredCopy, error: &(dyn std::error::Error + 'static)) {
        copy.has_failed.store(true, Ordering::Relaxed);
        if self.0.len() > 1 {
            warn_of_copy(copy.repository.name(), &copy.backup.id, error);
        }
    }

    /// Surveys the first copy that can be surveyed.
    pub async fn survey(&self) -> Result<Survey, RepositoryError> {
        let mut first = None;
        for copy in self.in_order() {
            match survey(&copy.repository, &copy.backup).await {
                Ok(survey) => return Ok(survey),
                Err(error) => {
                    self.note_failure(copy, &error);
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(no_copy))
    }

    /// Reads a list, decrypted and decompressed. For blocking threads.
    pub(crate) fn read(&self, list: List, runtime: &Handle) -> ListReader {
        let mut untried: Vec<usize> = (0..self.0.len()).collect();
        // Those that failed come last, and the end of the list first.
        untried.sort_by_key(|&number| (self.0[number].has_failed.load(Ordering::Relaxed), number));
        untried.reverse();
        ListReader { copies: self.clone(), list, runtime: runtime.clone(), untried, open: None, position: 0 }
    }
}

fn no_copy() -> RepositoryError {
    RepositoryError::Input("no repository has the backup any more".to_owned())
}

/// A list that goes on in the next copy where one fails. Its errors carry a [`RepositoryError`].
pub(crate) struct ListReader {
    copies: Copies,
    list: List,
    runtime: Handle,
    /// The last one is next.
    untried: Vec<usize>,
    open: Option<(usize, zstd::Decoder<'static, BufReader<OpenedObject>>)>,
    position: u64,
}

impl ListReader {
    fn open_next(&mut self, number: usize) -> Result<(), RepositoryError> {
        let Some(StoredCopy { repository, backup, .. }) = self.copies.0.get(number) else { return Err(no_copy()) };
        let repository = &if self.untried.is_empty() { repository.clone() } else { repository.impatient() };
        let key = self.list.key(repository, backup);
        let object = self.runtime.block_on(repository.open_backup_object(backup, &key))?;
        let mut content = decompress(repository, &key, object)?;
        // The copies are equal: what was read of one before is passed over in the next.
        io::copy(&mut (&mut content).take(self.position), &mut io::sink())
            .map_err(|error| reading_failed(repository, &key, error))?;
        self.open = Some((number, content));
        Ok(())
    }

    /// Gives a copy up; an error, when it was the last one.
    fn give_up(&mut self, number: usize, error: RepositoryError) -> io::Result<()> {
        self.open = None;
        if let Some(copy) = self.copies.0.get(number) {
            self.copies.note_failure(copy, &error);
        }
        if self.untried.is_empty() { Err(io::Error::other(error)) } else { Ok(()) }
    }
}

impl Read for ListReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some((number, content)) = &mut self.open else {
                let Some(number) = self.untried.pop() else { return Err(io::Error::other(no_copy())) };
                if let Err(error) = self.open_next(number) {
                    self.give_up(number, error)?;
                }
                continue;
            };
            match content.read(buffer) {
                Ok(count) => {
                    self.position += count as u64;
                    return Ok(count);
                }
                Err(error) => {
                    let number = *number;
                    let Some(StoredCopy { repository, backup, .. }) = self.copies.0.get(number) else {
                        return Err(error);
                    };
                    let error = reading_failed(repository, &self.list.key(repository, backup), error);
                    self.give_up(number, error)?;
                }
            }
        }
    }
}

/// Says that one copy of several is of no use.
pub(crate) fn warn_of_copy(repository: &str, id: &BackupId, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(repository, %id, error, "this copy of the backup cannot be used; taking the next one");
}
