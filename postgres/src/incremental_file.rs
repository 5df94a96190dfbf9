//! `INCREMENTAL.*`: the blocks of a relation's file that changed since the parent of an incremental backup.
//!
//! PostgreSQL 17 and later send such a file in place of the relation's own; for the other versions the agent makes
//! them. `base/5/INCREMENTAL.16384.1` stands for `base/5/16384.1`.
//!
//! ```text
//!  0 u32 magic D3AE1F0D
//!  4 u32 number of blocks n, at most 131072
//!  8 u32 truncation length in blocks
//! 12 u32 block number, n times, rising, counted from the beginning of the 1 GiB segment
//!    zeros up to a multiple of 8192; none of them if there is no block
//!    the blocks in the same order, 8192 bytes each
//! ```
//!
//! The truncation length is that of the whole file: blocks below it that are not here are those of the parent.

mod error;
mod reconstruction;

use std::ops::Range;

pub use error::IncrementalFileError;
pub use reconstruction::{BlockRun, BlockSource, ChainFile, Reconstruction, ReconstructionError};

use crate::RelationFile;
use crate::little_endian::u32_at;

const MAGIC: u32 = 0xD3AE_1F0D;
const PREFIX: &[u8] = b"INCREMENTAL.";
const FIXED_BYTES: usize = 12;
const BLOCK_BYTES: usize = RelationFile::BLOCK_BYTES;
const MAX_BLOCKS: u32 = RelationFile::MAX_BLOCKS;

/// What an incremental file says before its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncrementalHeader {
    /// As it is in the file, which can be more than a segment has.
    truncation_blocks: u32,
    /// Neighbouring blocks as one, so that this is never larger than the list in the file.
    runs: Vec<Range<u32>>,
    block_count: u32,
}

impl IncrementalHeader {
    /// How many bytes from the beginning of the file tell [`IncrementalHeader::length_from`] the header's length.
    pub const FIXED_BYTES: usize = FIXED_BYTES;

    /// Makes the header of a file that is `truncation_blocks` long once it is whole, and of which `blocks` are kept,
    /// rising.
    pub fn new(truncation_blocks: u32, blocks: impl IntoIterator<Item = u32>) -> Result<Self, IncrementalFileError> {
        if truncation_blocks > MAX_BLOCKS {
            return Err(IncrementalFileError::TruncationLength { found: truncation_blocks });
        }
        Self::collect(truncation_blocks, blocks)
    }

    /// Returns how many bytes the header has, given the first twelve: the blocks begin after them.
    pub fn length_from(start: &[u8]) -> Result<usize, IncrementalFileError> {
        let fixed = |offset| {
            u32_at(start, offset).ok_or(IncrementalFileError::Short { expected: FIXED_BYTES, found: start.len() })
        };
        match fixed(0)? {
            MAGIC => {}
            found => return Err(IncrementalFileError::Magic { found }),
        }
        match fixed(4)? {
            count if count <= MAX_BLOCKS => Ok(header_bytes(count)),
            found => Err(IncrementalFileError::TooManyBlocks { found: found.into() }),
        }
    }

    /// Reads the header of a file that is `file_bytes` long; what follows the header in `content` is not looked at.
    pub fn parse(content: &[u8], file_bytes: u64) -> Result<Self, IncrementalFileError> {
        let length = Self::length_from(content)?;
        let short = IncrementalFileError::Short { expected: length, found: content.len() };
        let Some((fixed, rest)) = content.get(..length).and_then(|header| header.split_at_checked(FIXED_BYTES)) else {
            return Err(short);
        };
        let (Some(count), Some(truncation_blocks)) = (u32_at(fixed, 4), u32_at(fixed, 8)) else {
            return Err(short);
        };
        let (numbers, padding) = rest.as_chunks().0.split_at(count as usize);
        if padding.iter().any(|bytes| *bytes != [0; 4]) {
            return Err(IncrementalFileError::Padding);
        }
        let header = Self::collect(truncation_blocks, numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)))?;
        if header.file_bytes() == file_bytes {
            Ok(header)
        } else {
            Err(IncrementalFileError::FileLength { expected: header.file_bytes(), found: file_bytes })
        }
    }

    /// Writes the header, padding included.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.header_bytes());
        for number in [MAGIC, self.block_count, self.truncation_blocks].into_iter().chain(self.blocks()) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.resize(self.header_bytes(), 0);
        bytes
    }

    /// Returns the length of the file once it is whole, in blocks.
    pub fn truncation_blocks(&self) -> u32 {
        self.truncation_blocks.min(MAX_BLOCKS)
    }

    /// Whether the file names a length above that of a segment, of which [`IncrementalHeader::truncation_blocks`]
    /// then returns the part that can be. PostgreSQL 17.0 to 17.7 and 18.0 to 18.1 wrote that for a relation of
    /// several segments that was truncated; `pg_combinebackup` refuses it.
    pub fn is_truncation_too_large(&self) -> bool {
        self.truncation_blocks > MAX_BLOCKS
    }

    /// Returns how many blocks the file holds.
    pub fn block_count(&self) -> u32 {
        self.block_count
    }

    /// Returns the numbers of the blocks that the file holds, rising.
    pub fn blocks(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().cloned().flatten()
    }

    /// Returns the length of the header in bytes.
    pub fn header_bytes(&self) -> usize {
        header_bytes(self.block_count)
    }

    /// Returns the length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.header_bytes() as u64 + u64::from(self.block_count) * BLOCK_BYTES as u64
    }

    /// Returns the blocks that the file holds, neighbours as one, and the offset in the file where each run begins.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u32>, u64)> {
        let mut next = self.header_bytes() as u64;
        self.runs.iter().map(move |run| {
            let offset = next;
            next += run.len() as u64 * BLOCK_BYTES as u64;
            (run.clone(), offset)
        })
    }

    fn collect(truncation_blocks: u32, blocks: impl IntoIterator<Item = u32>) -> Result<Self, IncrementalFileError> {
        let mut header = Self { truncation_blocks, runs: Vec::new(), block_count: 0 };
        for block in blocks {
            if block >= header.truncation_blocks() {
                let truncation_blocks = header.truncation_blocks();
                return Err(IncrementalFileError::BlockBeyondEnd { block, truncation_blocks });
            }
            match header.runs.last_mut() {
                Some(run) if block < run.end => {
                    return Err(IncrementalFileError::NotRising { block, after: run.end - 1 });
                }
                Some(run) if block == run.end => run.end += 1,
                _ => header.runs.push(block..block + 1),
            }
            header.block_count += 1;
        }
        Ok(header)
    }
}

/// Returns the path under which the changed blocks of a relation's file are kept, or nothing for another file.
pub fn incremental_path(path: &[u8]) -> Option<Vec<u8>> {
    RelationFile::parse(path)?;
    let (folder, name) = split_path(path)?;
    Some([folder, PREFIX, name].concat())
}

/// Returns the path of the file that an incremental file stands for, or nothing if `path` is not that of one. A file
/// that only begins like one, in another place or with another name, is an ordinary file.
pub fn reconstructed_path(path: &[u8]) -> Option<Vec<u8>> {
    let (folder, name) = split_path(path)?;
    let path = [folder, name.strip_prefix(PREFIX)?].concat();
    RelationFile::parse(&path).is_some().then_some(path)
}

/// Splits a path after its last slash.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path.iter().rposition(|&byte| byte == b'/')?;
    Some(path.split_at(slash + 1))
}

const fn header_bytes(block_count: u32) -> usize {
    let bytes = FIXED_BYTES + 4 * block_count as usize;
    if block_count == 0 { bytes } else { bytes.next_multiple_of(BLOCK_BYTES) }
}

#[cfg(test)]
mod tests;
