//! The files of which the newest backup of a chain has only changed blocks.
//!
//! The whole file is read from the backup that has it, and while it passes by, the blocks that newer backups have take
//! the place of its own: everything is written once, and the checksum of what becomes of it is known at the end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use pgark_repository::{FRAME_BYTES, IndexedMember, WholeFile};
use tokio::runtime::Handle;

use super::merging::{Merging, Piece};
use super::parts::{Parts, Sink};
use super::tree::{LastParent, Tree};
use super::{DeltaFigures, ExtractError, Extraction, io_failure};
use crate::chain::{each_member, is_in_blocks};
use crate::chain_files::{ChainFiles, ChainReader, PlannedFile, zeros};

/// What the frames of newer backups may take in memory, in all threads together.
const MOST_FRAME_BYTES: usize = 128 << 20;

/// Size and CRC-32C of the files that were put together, by their paths.
#[derive(Debug, Default)]
pub(crate) struct Reconstructed(Mutex<HashMap<Vec<u8>, WholeFile>>);

impl Reconstructed {
    pub(crate) fn insert(&self, path: &[u8], whole: WholeFile) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_vec(), whole);
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<WholeFile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied()
    }
}

impl Extraction {
    /// Writes the files that the newest backup has in blocks.
    pub(super) fn put_together(
        &self,
        tree: &Tree,
        figures: &DeltaFigures,
        reconstructed: &Reconstructed,
        runtime: &Handle,
    ) -> Result<(), ExtractError> {
        if self.chain.is_empty() {
            return Ok(());
        }
        let mut created = Ok(());
        each_member(&self.copies, runtime, |member| {
            if member.file.is_none() && created.is_ok() {
                created = tree.create_directory(&member.path, member.mode);
            }
        })?;
        created?;
        let files = ChainFiles::find(self.chain.members(&self.copies), &self.chain.in_blocks, runtime)?;
        let newer = self.chain.older.len().max(1);
        let jobs = self.jobs.min((MOST_FRAME_BYTES / FRAME_BYTES / newer).max(1));
        for (copies, number) in self.chain.older.iter().zip((1..=newer).rev()) {
            let readers = Mutex::default();
            let sink = WholeFiles { extraction: self, tree, figures, reconstructed, files: &files, number, readers };
            Parts { copies, jobs, progress: &self.progress, sink: &sink }.read(runtime)?;
        }
        Ok(())
    }
}

/// Takes the files of one backup on which the newest builds.
struct WholeFiles<'w> {
    extraction: &'w Extraction,
    tree: &'w Tree,
    figures: &'w DeltaFigures,
    reconstructed: &'w Reconstructed,
    files: &'w ChainFiles<'w>,
    /// The place of the backup in the chain.
    number: usize,
    /// Those that no thread uses now: one that was used for the file before has the right frames.
    readers: Mutex<Vec<ChainReader<'w>>>,
}

impl<'w> WholeFiles<'w> {
    fn take_reader(&self) -> ChainReader<'w> {
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| self.files.reader())
    }

    fn give_back(&self, mut reader: ChainReader<'w>) {
        self.fetched(reader.take_fetched());
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
    }
}

impl Sink for WholeFiles<'_> {
    fn has(&self, _: &mut LastParent, member: &IndexedMember) -> Result<bool, ExtractError> {
        Ok(is_in_blocks(&member.path) || self.files.whole_in(&member.path) != Some(self.number))
    }

    fn file(&self, last: &mut LastParent, member: &IndexedMember) -> Result<Option<Box<dyn Write + '_>>, ExtractError> {
        if self.extraction.stop.load(Ordering::Relaxed) {
            return Err(ExtractError::Stopped);
        }
        let mut reader = self.take_reader();
        let planned = reader.plan(&member.path)?;
        let file = self.extraction.new_file(self.tree, last, &member.path, planned.mode())?;
        let merging = Merging::new(&planned.plan, planned.base());
        Ok(Some(Box::new(PutTogether {
            sink: self,
            reader: Some(reader),
            planned,
            merging,
            file,
            found: WholeFile::EMPTY,
        })))
    }

    fn written(&self, _: &mut LastParent, member: &IndexedMember) -> Result<(), ExtractError> {
        if let Some(whole) = self.reconstructed.get(&member.path) {
            self.figures.compared(whole.size, false);
        }
        Ok(())
    }

    fn fetched(&self, bytes: u64) {
        self.figures.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn discard(&self, last: &mut LastParent, member: &IndexedMember) -> Result<(), ExtractError> {
        self.tree.remove_file(last, &member.path)
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        self.tree.shown(path)
    }
}

/// One file that is put together.
struct PutTogether<'s, 'w> {
    sink: &'s WholeFiles<'w>,
    /// Until the end.
    reader: Option<ChainReader<'w>>,
    planned: PlannedFile,
    merging: Merging,
    file: File,
    found: WholeFile,
}

impl PutTogether<'_, '_> {
    /// Writes what can be told once these bytes of the whole file are there.
    fn pass(&mut self, bytes: &[u8]) -> Result<(), ExtractError> {
        let Self { sink, reader: Some(reader), planned, merging, file, found } = self else { return Ok(()) };
        let mut put = |bytes: &[u8]| {
            found.add(bytes);
            file.write_all(bytes).map_err(|error| io_failure("write", sink.shown(planned.path()), error))
        };
        merging.pass(bytes, |piece| match piece {
            Piece::Passing(bytes) => put(bytes),
            Piece::Zeros(bytes) => zeros(bytes, &mut put),
            Piece::Newer { member, range } => reader.content(member, planned.place(member), range, &mut put),
        })
    }

    fn end(&mut self) -> Result<(), ExtractError> {
        self.pass(&[])?;
        self.sink.files.check(&self.planned, self.found)?;
        self.sink.reconstructed.insert(self.planned.path(), self.found);
        Ok(())
    }
}

impl Drop for PutTogether<'_, '_> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.sink.give_back(reader);
        }
    }
}

/// Its errors carry an [`ExtractError`].
impl Write for PutTogether<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pass(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    /// Ends the file.
    fn flush(&mut self) -> io::Result<()> {
        self.end().map_err(io::Error::other)
    }
}
