//! Why a manifest is refused.

use std::io;

use thiserror::Error;

use crate::PathError;

/// The manifest cannot be read, or must not be trusted.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The source of the bytes failed.
    #[error("reading line {line} of the manifest")]
    Read {
        /// The line, counted from 1.
        line: u64,
        /// What the source said.
        #[source]
        source: io::Error,
    },
    /// The manifest ends too early.
    #[error("manifest is cut short: line {line} has no newline")]
    CutShort {
        /// The line, counted from 1.
        line: u64,
    },
    /// A line is longer than any that a server writes.
    #[error("line {line} of the manifest is longer than {limit} bytes")]
    LineTooLong {
        /// The line, counted from 1.
        line: u64,
        /// The limit.
        limit: u64,
    },
    /// The line is not what must stand there.
    #[error("line {line} of the manifest: expected {expected}, found {found:?}")]
    Unexpected {
        /// The line, counted from 1.
        line: u64,
        /// What must stand there.
        expected: &'static str,
        /// The line's beginning.
        found: String,
    },
    /// The version is not known.
    #[error("manifest has version {version}, expected 1 or 2")]
    UnsupportedVersion {
        /// The version found.
        version: u64,
    },
    /// The object on a line is not a valid one.
    #[error("line {line} of the manifest")]
    Object {
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A field has an impossible value, or fields contradict each other.
    #[error("line {line} of the manifest: {problem}")]
    Field {
        /// The line, counted from 1.
        line: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A path must not be used.
    #[error("line {line} of the manifest")]
    Path {
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        source: PathError,
    },
    /// More WAL ranges than a backup can cross.
    #[error("manifest has more than {limit} WAL ranges")]
    TooManyWalRanges {
        /// The limit.
        limit: usize,
    },
    /// The manifest was changed after it was written.
    #[error("manifest does not match its own checksum")]
    Checksum,
    /// Something follows the last line.
    #[error("manifest has bytes after its checksum")]
    BytesAfterEnd,
    /// Reading went on after an error.
    #[error("manifest was already refused")]
    AfterError,
}

impl ManifestError {
    pub(super) fn unexpected(line: u64, expected: &'static str, found: &[u8]) -> Self {
        let found = String::from_utf8_lossy(found).chars().take(200).collect();
        Self::Unexpected { line, expected, found }
    }
}
