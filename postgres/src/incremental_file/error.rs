//! Why an incremental file is refused.

use thiserror::Error;

use crate::RelationFile;

/// The file is not the incremental file that it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IncrementalFileError {
    /// Fewer bytes than the header has.
    #[error("header of the incremental file is cut short: expected {expected} bytes, found {found}")]
    Short {
        /// The bytes needed.
        expected: usize,
        /// The bytes there are.
        found: usize,
    },
    /// The file is of another kind, or of a machine with another byte order.
    #[error("incremental file has magic {found:08X}, expected D3AE1F0D")]
    Magic {
        /// The magic found.
        found: u32,
    },
    /// The file claims more blocks than a segment has.
    #[error("incremental file has {found} blocks, more than the {} of a segment", RelationFile::MAX_BLOCKS)]
    TooManyBlocks {
        /// The number of blocks.
        found: u64,
    },
    /// The whole file would be longer than a segment.
    #[error("whole file would have {found} blocks, more than the {} of a segment", RelationFile::MAX_BLOCKS)]
    TruncationLength {
        /// The length in blocks.
        found: u32,
    },
    /// A block is not part of the whole file.
    #[error("incremental file has block {block} of a file of {truncation_blocks} blocks")]
    BlockBeyondEnd {
        /// The block.
        block: u32,
        /// The length of the whole file in blocks.
        truncation_blocks: u32,
    },
    /// A block is there twice, or out of order.
    #[error("incremental file has block {block} after block {after}")]
    NotRising {
        /// The block.
        block: u32,
        /// The block before it.
        after: u32,
    },
    /// There are other bytes between the block numbers and the blocks than zeros.
    #[error("incremental file has no zeros before its first block")]
    Padding,
    /// The file is cut short, or goes on after its last block.
    #[error("incremental file has {found} bytes, expected {expected} as its header says")]
    FileLength {
        /// The length that follows from the header.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
}
