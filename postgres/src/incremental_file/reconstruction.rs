//! From which backup of a chain each block of a file comes.
//!
//! The newest backup gives the length and the blocks it holds. Every other block is that of the next older backup
//! that has it, down to the one that holds the whole file. A block that none of them has is zeros: the server had
//! extended the file and written nothing.
//!
//! A block also is zeros when the file ended before it in a backup in between, or was cut below it before that backup
//! (the limit block of the WAL summaries): what an older backup has there was deleted. `pg_combinebackup` takes it all
//! the same, up to version 18, and so brings deleted rows back.

use std::iter;
use std::mem;
use std::ops::Range;

use thiserror::Error;

use super::{BLOCK_BYTES, IncrementalHeader};

/// What one backup of a chain holds of a file.
#[derive(Clone, Copy, Debug)]
pub enum ChainFile<'a> {
    /// All of it. If a backup has a file both whole and as blocks, the whole one counts.
    Whole {
        /// Its length. What follows the last whole block is not used.
        bytes: u64,
    },
    /// The blocks that changed since the next older backup.
    Incremental {
        /// The beginning of the incremental file.
        header: &'a IncrementalHeader,
        /// The shortest that the fork was cut to since the next older backup started, counted from the segment's
        /// beginning; nothing if it was not cut or that is not known. With a cut from before that start, blocks would
        /// be lost that the older backup has.
        limit_block: Option<u32>,
    },
    /// Nothing.
    Absent,
}

/// How a file is put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconstruction {
    blocks: u32,
    runs: Vec<BlockRun>,
    copy_of: Option<usize>,
}

/// Neighbouring blocks with one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The blocks, counted from the segment's beginning.
    pub blocks: Range<u32>,
    /// Where they come from.
    pub source: BlockSource,
}

/// Where the bytes of blocks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSource {
    /// From a file of the chain, where they follow one another.
    File {
        /// The place of the backup in the chain, zero for the newest.
        member: usize,
        /// Where in that backup's file the first block begins, in bytes.
        offset: u64,
    },
    /// They are all zeros.
    Zeros,
}

/// The chain does not hold the file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReconstructionError {
    /// Only an incremental file has to be put together.
    #[error("newest backup of the chain has no incremental file")]
    NotIncremental,
    /// A backup that an incremental file builds on does not know the file.
    #[error("backup {member} of the chain, counted from the newest as 0, does not have the file")]
    Absent {
        /// The place of the backup in the chain.
        member: usize,
    },
    /// Even the oldest backup has only blocks.
    #[error("no backup of the chain has the whole file")]
    NoWholeFile,
}

impl Reconstruction {
    /// Decides where each block comes from, given what the backups of a chain hold, newest first.
    ///
    /// What follows a whole file in the chain is not looked at. Memory is that of the runs: at most a few MiB for the
    /// worst pattern of changes, next to nothing for an ordinary one.
    pub fn plan(chain: &[ChainFile<'_>]) -> Result<Self, ReconstructionError> {
        let Some(ChainFile::Incremental { header, .. }) = chain.first() else {
            return Err(ReconstructionError::NotIncremental);
        };
        let blocks = header.truncation_blocks();
        let mut search = Search { missing: iter::once(0..blocks).collect(), found: Vec::new() };
        // Blocks from here on are in no older backup, or not in the way they were then.
        let mut end = blocks;
        for (member, file) in chain.iter().enumerate() {
            match *file {
                ChainFile::Incremental { header, limit_block } => {
                    search.take(member, end, header.runs());
                    end = end.min(header.truncation_blocks()).min(limit_block.unwrap_or(end));
                }
                ChainFile::Whole { bytes } => {
                    let length = bytes / BLOCK_BYTES as u64;
                    let whole = 0..u32::try_from(length).unwrap_or(u32::MAX);
                    search.take(member, end, [(whole, 0)]);
                    let runs = search.finish();
                    let is_copy = bytes == u64::from(blocks) * BLOCK_BYTES as u64
                        && runs.iter().all(|run| run.source == BlockSource::File { member, offset: 0 });
                    return Ok(Self { blocks, runs, copy_of: is_copy.then_some(member) });
                }
                ChainFile::Absent => return Err(ReconstructionError::Absent { member }),
            }
        }
        Err(ReconstructionError::NoWholeFile)
    }

    /// Returns the length of the file in blocks.
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Returns the length of the file in bytes.
    pub const fn bytes(&self) -> u64 {
        self.blocks as u64 * BLOCK_BYTES as u64
    }

    /// Returns the runs of blocks that make the file, in order and without holes.
    pub fn runs(&self) -> &[BlockRun] {
        &self.runs
    }

    /// Returns the place in the chain of the backup whose file this one equals, so that its checksum is known.
    pub const fn copy_of(&self) -> Option<usize> {
        self.copy_of
    }
}

struct Search {
    /// Blocks that no backup had so far, rising.
    missing: Vec<Range<u32>>,
    found: Vec<BlockRun>,
}

impl Search {
    /// Takes what is still missing and before `end` from a file that has `runs` of blocks, each at an offset.
    fn take(&mut self, member: usize, end: u32, runs: impl IntoIterator<Item = (Range<u32>, u64)>) {
        let mut runs = runs.into_iter().map(|(run, offset)| (run.start..run.end.min(end), offset)).peekable();
        for mut missing in mem::take(&mut self.missing) {
            while !missing.is_empty()
                && let Some((run, offset)) = runs.peek()
                && run.start < missing.end
            {
                let blocks = run.start.max(missing.start)..run.end.min(missing.end);
                if blocks.is_empty() {
                    runs.next();
                    continue;
                }
                let offset = offset + u64::from(blocks.start - run.start) * BLOCK_BYTES as u64;
                if missing.start < blocks.start {
                    self.missing.push(missing.start..blocks.start);
                }
                missing.start = blocks.end;
                self.found.push(BlockRun { blocks, source: BlockSource::File { member, offset } });
            }
            if !missing.is_empty() {
                self.missing.push(missing);
            }
        }
    }

    /// Fills up with zeros and puts the runs in order.
    fn finish(mut self) -> Vec<BlockRun> {
        self.found.extend(self.missing.into_iter().map(|blocks| BlockRun { blocks, source: BlockSource::Zeros }));
        self.found.sort_unstable_by_key(|run| run.blocks.start);
        self.found
    }
}

#[cfg(test)]
mod tests;
