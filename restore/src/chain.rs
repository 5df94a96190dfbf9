//! The backups on which an incremental one builds, proven before anything is written.
//!
//! The index and manifest of each are surveyed, their labels must lead from one to the next, every incremental file
//! is read and checked once, and of the full backup at the beginning the bytes as they are stored: what is missing, damaged,
//! foreign or out of order is known before the destination is touched. Files of the full one are checked while they are
//! written, as they would be alone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use futures_util::{StreamExt, stream};
use pgark_command::{Progress, ProgressDisplay};
use pgark_postgres::{ChainMember, IncrementalHeader, RelationFile, reconstructed_path};
use pgark_repository::{
    BackupObject, BackupObjectKind, IndexLine, IndexReader, IndexedMember, PathSet, RepositoryError,
};
use tokio::runtime::Handle;

use crate::copies::{Copies, List, StoredCopy};
use crate::damage::{damaged, reading_failed};
use crate::extract::{ExtractError, HeaderReader, LastParent, Parts, Sink};
use crate::stored_object::check_stored;
use crate::survey::{DigestReader, Survey, tablespace_of};

/// The backups below an incremental one, oldest first; none below a full one.
#[derive(Debug, Default)]
pub struct Chain {
    pub(crate) older: Vec<Copies>,
    /// The files of which the newest backup has only the changed blocks, under the names that they have when whole.
    pub(crate) in_blocks: PathSet,
    /// Their sizes together.
    pub(crate) bytes_in_blocks: u64,
}

impl Chain {
    /// Surveys and proves the backups on which `newest` builds, the nearest first. `survey` is that of the newest, whose
    /// layout becomes that of the whole.
    pub async fn prove(
        newest: &Copies,
        older: Vec<Copies>,
        survey: &mut Survey,
        jobs: usize,
        display: ProgressDisplay,
    ) -> Result<Self, ExtractError> {
        if older.is_empty() {
            return Ok(Self::default());
        }
        let mut members = vec![survey.chain_member()];
        for copies in &older {
            members.push(copies.survey().await?.chain_member());
        }
        if let Err(error) = ChainMember::check(&members) {
            return Err(blame(newest, error.to_string()));
        }
        let progress = Progress::start("prove", display);
        if let Some(full) = older.last() {
            prove_stored(full, jobs, &progress).await?;
        }
        let (runtime, newest) = (Handle::current(), newest.clone());
        let prove = move || {
            let older: Vec<Copies> = older.into_iter().rev().collect();
            let proven = prove(&newest, &older, jobs, &progress, &runtime);
            progress.finish();
            proven.map(|proven| (older, proven))
        };
        let (older, proven) = tokio::task::spawn_blocking(prove)
            .await
            .unwrap_or_else(|error| Err(RepositoryError::Input(format!("the proof stopped: {error}")).into()))?;
        survey.layout.bytes = proven.bytes;
        survey.layout.tablespace_bytes = proven.tablespace_bytes;
        Ok(Self { older, in_blocks: proven.in_blocks, bytes_in_blocks: proven.bytes_in_blocks })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.older.is_empty()
    }

    /// All backups, the newest first.
    pub(crate) fn members<'c>(&'c self, newest: &'c Copies) -> impl Iterator<Item = &'c Copies> {
        std::iter::once(newest).chain(self.older.iter().rev())
    }
}

impl Survey {
    fn chain_member(&self) -> ChainMember {
        let label = &self.label;
        ChainMember {
            system_identifier: self.control.system_identifier,
            // The survey has compared it.
            manifest_system_identifier: None,
            start_lsn: label.start_lsn,
            start_timeline: label.start_timeline.unwrap_or(label.start_segment.timeline),
            incremental_from: label.incremental_from,
        }
    }
}

/// The name of a file once it is whole.
pub(crate) fn whole_path(path: &[u8]) -> Cow<'_, [u8]> {
    reconstructed_path(path).map_or(Cow::Borrowed(path), Cow::Owned)
}

/// Whether a file holds only changed blocks.
pub(crate) fn is_in_blocks(path: &[u8]) -> bool {
    matches!(whole_path(path), Cow::Owned(_))
}

/// Reads the members of a backup's index.
pub(crate) fn each_member(
    copies: &Copies,
    runtime: &Handle,
    mut each: impl FnMut(&IndexedMember),
) -> Result<(), RepositoryError> {
    each_line(copies, runtime, |line| {
        if let IndexLine::Member(member) = line {
            each(&member);
        }
        Ok(())
    })
}

/// Reads a backup's index.
pub(crate) fn each_line<E: From<RepositoryError>>(
    copies: &Copies,
    runtime: &Handle,
    mut each: impl FnMut(IndexLine) -> Result<(), E>,
) -> Result<(), E> {
    let Some(StoredCopy { repository, backup, .. }) = copies.in_order().first().copied() else { return Ok(()) };
    let key = repository.index_key(backup);
    let (index, digest) = DigestReader::new(copies.read(List::Index, runtime));
    let mut index = IndexReader::new(index);
    while let Some(line) = index.next_line().map_err(|error| reading_failed(repository, &key, error))? {
        each(line)?;
    }
    Ok(digest.check(repository, &key, &backup.index)?)
}

pub(crate) fn blame(copies: &Copies, reason: String) -> ExtractError {
    match copies.in_order().first() {
        Some(StoredCopy { repository, backup, .. }) => {
            damaged(repository, &repository.index_key(backup), reason).into()
        }
        None => RepositoryError::Input(reason).into(),
    }
}

/// Holds the parts of a backup against their CRC-32. What is wrong in one copy may be right in the next.
async fn prove_stored(copies: &Copies, jobs: usize, progress: &Progress) -> Result<(), RepositoryError> {
    let mut first = None;
    let mut unproven: Option<BTreeSet<BackupObjectKind>> = None;
    for copy in copies.in_order() {
        let is_unproven = |object: &BackupObject| match &unproven {
            None => matches!(object.kind, BackupObjectKind::Part(_)),
            Some(unproven) => unproven.contains(&object.kind),
        };
        let parts: Vec<_> = copy.repository.objects_of(&copy.backup).into_iter().filter(is_unproven).collect();
        let check = |part: BackupObject| async move { (check_stored(&copy.repository, &part).await, part) };
        let mut checks = stream::iter(parts).map(check).buffer_unordered(jobs);
        let mut failed = BTreeSet::new();
        while let Some((checked, part)) = checks.next().await {
            match checked {
                Ok(()) => progress.advance(part.size),
                Err(error) => {
                    failed.insert(part.kind);
                    copies.note_failure(copy, &error);
                    first.get_or_insert(error);
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        unproven = Some(failed);
    }
    first.map_or(Ok(()), Err)
}

#[derive(Default)]
struct Proven {
    bytes: u64,
    tablespace_bytes: BTreeMap<u32, u64>,
    in_blocks: PathSet,
    bytes_in_blocks: u64,
}

fn prove(
    newest: &Copies,
    older: &[Copies],
    jobs: usize,
    progress: &Progress,
    runtime: &Handle,
) -> Result<Proven, ExtractError> {
    let mut below = PathSet::default();
    if let Some(full) = older.first() {
        each_member(full, runtime, |member| {
            if member.file.is_some() {
                below.insert(&member.path);
            }
        })?;
    }
    let mut proven = Proven::default();
    for copies in older.iter().skip(1).chain([newest]) {
        let level = Level { copies, below, found: Mutex::default() };
        Parts { copies, jobs, progress, sink: &level }.read(runtime)?;
        let found = level.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        (below, proven) = (found.files, found.proven);
    }
    Ok(proven)
}

/// A backup of the chain that is read and checked.
struct Level<'l> {
    copies: &'l Copies,
    /// The files of the next older backup.
    below: PathSet,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    files: PathSet,
    proven: Proven,
}

impl Level<'_> {
    /// A part that is read from another copy once more counts once.
    fn note(&self, path: &[u8], bytes: u64, is_in_blocks: bool) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !found.files.insert(path) {
            return;
        }
        let proven = &mut found.proven;
        proven.bytes = proven.bytes.saturating_add(bytes);
        if let Some(oid) = tablespace_of(path) {
            let sum = proven.tablespace_bytes.entry(oid).or_default();
            *sum = sum.saturating_add(bytes);
        }
        if is_in_blocks {
            proven.in_blocks.insert(path);
            proven.bytes_in_blocks = proven.bytes_in_blocks.saturating_add(bytes);
        }
    }
}

impl Sink for Level<'_> {
    fn file(&self, _: &mut LastParent, member: &IndexedMember) -> Result<Option<Box<dyn Write + '_>>, ExtractError> {
        let Some(file) = member.file else { return Ok(None) };
        let Cow::Owned(whole) = whole_path(&member.path) else {
            self.note(&member.path, file.size, false);
            return Ok(None);
        };
        if file.size < IncrementalHeader::FIXED_BYTES as u64 {
            let name = String::from_utf8_lossy(&member.path).into_owned();
            return Err(blame(self.copies, format!("`{name}` has only {} bytes", file.size)));
        }
        if !self.below.contains(&whole) {
            let name = String::from_utf8_lossy(&member.path).into_owned();
            return Err(blame(self.copies, format!("`{name}` builds on a file that the backup below does not have")));
        }
        let header = HeaderReader::new(file.size);
        Ok(Some(Box::new(ProvenBlocks { level: self, whole, header: Some(header) })))
    }
}

/// Only looks at the header of an incremental file.
struct ProvenBlocks<'l> {
    level: &'l Level<'l>,
    whole: Vec<u8>,
    header: Option<HeaderReader>,
}

impl Write for ProvenBlocks<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut rest = bytes;
        if let Some(header) = &mut self.header
            && let Some(header) = header.take(&mut rest)?
        {
            self.level.note(&self.whole, whole_bytes(&header), true);
            self.header = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn whole_bytes(header: &IncrementalHeader) -> u64 {
    u64::from(header.truncation_blocks()) * RelationFile::BLOCK_BYTES as u64
}
