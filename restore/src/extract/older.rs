//! What a restore takes from the backups below an incremental one: the files of which that one has only changed blocks.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use pgark_repository::IndexedMember;
use tokio::runtime::Handle;

use super::parts::{Parts, Sink};
use super::tree::{LastParent, Tree};
use super::{DeltaFigures, ExtractError, Extraction, block_writer};
use crate::chain::{each_member, is_in_blocks, whole_path};

/// Size and CRC-32C of the files that were put together, by the paths of their incremental files.
#[derive(Debug, Default)]
pub(crate) struct Reconstructed(Mutex<HashMap<Vec<u8>, (u64, u32)>>);

impl Reconstructed {
    pub(crate) fn insert(&self, path: &[u8], size: u64, crc32c: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_vec(), (size, crc32c));
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<(u64, u32)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied()
    }
}

impl Extraction {
    /// Brings the files that the newest backup has in blocks to the state of the backup below it.
    pub(super) fn restore_older(
        &self,
        tree: &Tree,
        figures: &DeltaFigures,
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
        for copies in &self.chain.older {
            let sink = OlderFiles { extraction: self, tree, figures };
            Parts { copies, jobs: self.jobs, progress: &self.progress, sink: &sink }.read(runtime)?;
        }
        Ok(())
    }
}

/// Takes only what the newest backup builds on.
pub(super) struct OlderFiles<'o> {
    extraction: &'o Extraction,
    tree: &'o Tree,
    figures: &'o DeltaFigures,
}

impl Sink for OlderFiles<'_> {
    fn has(&self, _: &mut LastParent, member: &IndexedMember) -> Result<bool, ExtractError> {
        Ok(!self.extraction.chain.in_blocks.contains(&whole_path(&member.path)))
    }

    fn file(&self, last: &mut LastParent, member: &IndexedMember) -> Result<Option<Box<dyn Write + '_>>, ExtractError> {
        if self.extraction.stop.load(Ordering::Relaxed) {
            return Err(ExtractError::Stopped);
        }
        match is_in_blocks(&member.path) {
            true => block_writer(self.tree, last, member),
            // An older backup may have had it, too, and over a directory anything may be there.
            false => Ok(Some(Box::new(self.tree.replace_file(last, &member.path, member.mode)?))),
        }
    }

    fn fetched(&self, bytes: u64) {
        self.figures.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn discard(&self, last: &mut LastParent, member: &IndexedMember) -> Result<(), ExtractError> {
        match is_in_blocks(&member.path) {
            true => Ok(()),
            false => self.tree.remove_file(last, &member.path),
        }
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        self.tree.shown(path)
    }
}
