//! Why a block map cannot be written or read.

use std::io;

use thiserror::Error;

/// The block map cannot be written, or must not be trusted.
#[derive(Debug, Error)]
pub enum BlockMapError {
    /// The source of the bytes failed.
    #[error("reading the block map")]
    Read {
        /// What the source said.
        #[source]
        source: io::Error,
    },
    /// The destination of the bytes failed.
    #[error("writing the block map")]
    Write {
        /// What the destination said.
        #[source]
        source: io::Error,
    },
    /// The file is of another kind.
    #[error("file is not a block map")]
    Magic,
    /// The version is not known.
    #[error("block map has version {found}, expected 1")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The map is that of a cluster which was built otherwise.
    #[error("block map is of blocks of {found} bytes, expected 8192")]
    BlockBytes {
        /// The size found.
        found: u32,
    },
    /// The file is one that is always stored whole.
    #[error("block map has {path:?} with {blocks} blocks, which is not kept by blocks")]
    File {
        /// Its path.
        path: String,
        /// Its length.
        blocks: u64,
    },
    /// The map is damaged.
    #[error("block map has checksum {found:08x}, expected {expected:08x}")]
    Checksum {
        /// The checksum of the bytes.
        expected: u32,
        /// The checksum in the map.
        found: u32,
    },
    /// The map ends too early.
    #[error("block map is cut short")]
    CutShort,
    /// Files are missing from the map, or were added.
    #[error("block map has {found} files, expected {expected} as its end says")]
    FileCount {
        /// The number at the end.
        expected: u64,
        /// The number of files.
        found: u64,
    },
    /// Something follows the end.
    #[error("block map has bytes after its end")]
    BytesAfterEnd,
    /// A file stands in the map twice.
    #[error("block map has a file twice")]
    Twice,
}
