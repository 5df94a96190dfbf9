//! The block map: a hash of every block of every relation, kept to find the blocks that differ at the next backup.
//!
//! PostgreSQL 13 to 16 cannot tell which blocks changed, so the whole stream is read and compared with the map of the
//! parent. A page's own LSN is not asked: hint bits, restored blocks and damage change a block and leave it as it is.
//! Two blocks are taken for equal if the first 64 bits of their BLAKE3 digests are, which for two that differ happens
//! once in 2^64. The hash is a cryptographic one, since whoever writes rows chooses the bytes.
//!
//! ```text
//! beginning     8 bytes "PGARKMAP" · u32 version 1 · u32 size of a block, 8192
//! every file    u16 length of the path · path below the data directory, `base/5/16384.1`
//!               · u32 number of blocks, at most 131072 · u64 hash of each block in order · u32 CRC-32C of all that
//! end           u16 0 · u64 number of files · u32 CRC-32C of these ten bytes
//! ```
//!
//! Numbers are little-endian, and a hash is the first eight bytes of the digest. Files stand in the order in which the
//! server sent them. Those that are always stored whole are not in the map: what belongs to no relation, free space
//! maps, and files that end inside a block. A file takes a thousandth of its size, and 1 MiB at most.

mod error;
mod reader;

use std::io::Write;

pub use error::BlockMapError;
pub use reader::{BlockMapFile, BlockMapIndex, BlockMapReader};

use crate::{IncrementalFileError, IncrementalHeader, RelationFile};

const MAGIC: &[u8; 8] = b"PGARKMAP";
const VERSION: u32 = 1;

/// The hashes of a file's blocks, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockHashes(Vec<u64>);

/// Writes a block map, file by file. Two files with one path are noticed when the map is read.
#[derive(Debug)]
pub struct BlockMapWriter<W> {
    writer: W,
    files: u64,
    record: Vec<u8>,
}

/// Returns the hash by which blocks are compared.
pub fn block_hash(block: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(block).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

impl BlockHashes {
    /// Adds the hash of the next block.
    pub fn push(&mut self, hash: u64) {
        self.0.push(hash);
    }

    /// Whether the file, as it was, does not have this block in this place.
    pub fn differs_at(&self, block: usize, hash: u64) -> bool {
        self.0.get(block) != Some(&hash)
    }

    /// Returns which blocks of this file must be stored beside a parent that has those of `parent`. Nothing is
    /// returned if that is all of them, so that the file is best stored whole; an empty file is one of these.
    ///
    /// A block beyond the parent's end counts as changed even if it is all zeros: an older backup of the chain could
    /// have other bytes there. Fails for a file longer than a segment.
    pub fn changes_since(&self, parent: &Self) -> Result<Option<IncrementalHeader>, IncrementalFileError> {
        let found = self.0.len() as u64;
        let length = u32::try_from(found).map_err(|_| IncrementalFileError::TooManyBlocks { found })?;
        let changed = (0..length).zip(&self.0).filter(|&(block, hash)| parent.differs_at(block as usize, *hash));
        let header = IncrementalHeader::new(length, changed.map(|(block, _)| block))?;
        Ok((header.block_count() < length).then_some(header))
    }
}

impl FromIterator<u64> for BlockHashes {
    fn from_iter<T: IntoIterator<Item = u64>>(hashes: T) -> Self {
        Self(hashes.into_iter().collect())
    }
}

impl<W: Write> BlockMapWriter<W> {
    /// Begins a map.
    pub fn new(mut writer: W) -> Result<Self, BlockMapError> {
        let numbers = [VERSION, RelationFile::BLOCK_BYTES as u32].map(u32::to_le_bytes);
        let header = [MAGIC, numbers.as_flattened()].concat();
        writer.write_all(&header).map_err(|source| BlockMapError::Write { source })?;
        Ok(Self { writer, files: 0, record: Vec::new() })
    }

    /// Adds a file, which must be one that may be incremental.
    pub fn write(&mut self, path: &[u8], hashes: &BlockHashes) -> Result<(), BlockMapError> {
        check_file(path, hashes.0.len() as u64)?;
        self.record.extend_from_slice(&(path.len() as u16).to_le_bytes());
        self.record.extend_from_slice(path);
        self.record.extend_from_slice(&(hashes.0.len() as u32).to_le_bytes());
        self.record.extend(hashes.0.iter().flat_map(|hash| hash.to_le_bytes()));
        self.files += 1;
        self.write_record()
    }

    /// Ends the map and returns where it was written to.
    pub fn finish(mut self) -> Result<W, BlockMapError> {
        self.record.extend_from_slice(&0_u16.to_le_bytes());
        self.record.extend_from_slice(&self.files.to_le_bytes());
        self.write_record()?;
        Ok(self.writer)
    }

    fn write_record(&mut self) -> Result<(), BlockMapError> {
        self.record.extend_from_slice(&crc32c::crc32c(&self.record).to_le_bytes());
        self.writer.write_all(&self.record).map_err(|source| BlockMapError::Write { source })?;
        self.record.clear();
        Ok(())
    }
}

/// Fails for a file that is never stored as blocks.
fn check_file(path: &[u8], blocks: u64) -> Result<(), BlockMapError> {
    let bytes = blocks.saturating_mul(RelationFile::BLOCK_BYTES as u64);
    match RelationFile::parse(path) {
        Some(file) if file.may_be_incremental(bytes) => Ok(()),
        _ => Err(BlockMapError::File { path: String::from_utf8_lossy(path).chars().take(200).collect(), blocks }),
    }
}

#[cfg(test)]
mod tests;
