//! `backup_manifest`, read as a stream.
//!
//! Servers write JSON in a fixed layout with one object a line, and the last line holds the SHA-256 of all lines
//! before it:
//!
//! ```text
//! { "PostgreSQL-Backup-Manifest-Version": 2,
//! "System-Identifier": 7710467865093598212,            version 2 only
//! "Files": [
//! { "Path": "PG_VERSION", "Size": 3, "Last-Modified": "2026-11-21 04:00:29 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "64440205" },
//! ...
//! ],
//! "WAL-Ranges": [
//! { "Timeline": 1, "Start-LSN": "0/1800028", "End-LSN": "0/1800100" }
//! ],
//! "Manifest-Checksum": "..."}
//! ```
//!
//! The reader insists on that layout, holds one line at a time, and so takes millions of files. What it yields is to
//! be trusted only after [`ManifestReader::finish`] has seen the checksum. A manifest is stored and sent on byte for
//! byte, never written anew from what was read; [`ManifestEditor`] changes only the lines of files that are other ones.

mod checksum;
mod editor;
mod entry;
mod error;

use std::io::{BufRead, Read};

use sha2::{Digest, Sha256};

pub use checksum::{ChecksumAlgorithm, ManifestChecksum, crc32c_from_hex, crc32c_to_hex};
pub use editor::{ManifestEditor, ManifestReplacement};
pub use entry::{ManifestFile, WalRange};
pub use error::ManifestError;

use crate::SystemIdentifier;
use checksum::from_hex;

/// The longest line that is read; a path of 1023 bytes, each escaped in six, and the other fields fit.
const MAX_LINE_BYTES: u64 = 16 * 1024;
/// A backup crosses a handful of timelines at most.
const MAX_WAL_RANGES: usize = 10_000;
/// Sizes are signed 64-bit numbers in the server.
const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// Reads a manifest from its first byte to its last.
///
/// Two entries with the same path are not noticed here, since that takes memory for every file: the caller that puts
/// the entries into a table has to refuse them.
#[derive(Debug)]
pub struct ManifestReader<R> {
    lines: Lines<R>,
    version: u32,
    system_identifier: Option<SystemIdentifier>,
    place: Place,
}

/// What stands in the manifest besides the files; its checksum was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEnd {
    /// The version of the format: 1 up to PostgreSQL 16, 2 from 17 on.
    pub version: u32,
    /// The cluster, which only version 2 names.
    pub system_identifier: Option<SystemIdentifier>,
    /// The WAL that the backup needs, newest timeline first.
    pub wal_ranges: Vec<WalRange>,
}

/// Where in the list of files the reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the first entry.
    First,
    /// After an entry that another one must follow.
    Next,
    /// After the last entry: its line had no comma, or the list was empty.
    Last,
    /// Behind the bracket that ends the list.
    Done,
    /// An error was returned, and nothing more can be read.
    Failed,
}

impl<R: BufRead> ManifestReader<R> {
    /// Reads the manifest up to the list of files.
    pub fn new(reader: R) -> Result<Self, ManifestError> {
        let mut lines = Lines { reader, hash: Sha256::new(), line: Vec::new(), number: 0 };
        let first = lines.next()?;
        let version = first
            .strip_prefix(b"{ \"PostgreSQL-Backup-Manifest-Version\": ")
            .and_then(|rest| rest.strip_suffix(b","))
            .and_then(decimal)
            .ok_or_else(|| lines.unexpected("the manifest's version"))?;
        let version = match version {
            1 => 1,
            2 => 2,
            version => return Err(ManifestError::UnsupportedVersion { version }),
        };
        let system_identifier = if version == 1 {
            None
        } else {
            let number = lines
                .next()?
                .strip_prefix(b"\"System-Identifier\": ")
                .and_then(|rest| rest.strip_suffix(b","))
                .and_then(decimal)
                .ok_or_else(|| lines.unexpected("the system identifier"))?;
            Some(SystemIdentifier::new(number))
        };
        lines.expect(b"\"Files\": [", "the list of files")?;
        Ok(Self { lines, version, system_identifier, place: Place::First })
    }

    /// Returns the version of the format.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Returns the cluster, which only version 2 names.
    pub const fn system_identifier(&self) -> Option<SystemIdentifier> {
        self.system_identifier
    }

    /// Reads the next file, or returns nothing at the end of the list.
    pub fn next_file(&mut self) -> Result<Option<ManifestFile>, ManifestError> {
        let result = self.read_file();
        if result.is_err() {
            self.place = Place::Failed;
        }
        result
    }

    /// Reads the rest of the manifest, skipping files that were not asked for, and verifies its checksum.
    pub fn finish(mut self) -> Result<ManifestEnd, ManifestError> {
        while self.next_file()?.is_some() {}
        let wal_ranges = self.read_wal_ranges()?;
        self.verify_checksum()?;
        Ok(ManifestEnd { version: self.version, system_identifier: self.system_identifier, wal_ranges })
    }

    fn read_file(&mut self) -> Result<Option<ManifestFile>, ManifestError> {
        match self.place {
            Place::Failed => return Err(ManifestError::AfterError),
            Place::Done => return Ok(None),
            Place::Last => {
                self.lines.expect(b"],", "the end of the list of files")?;
                self.place = Place::Done;
                return Ok(None);
            }
            Place::First | Place::Next => {}
        }
        let number = self.lines.number + 1;
        let line = self.lines.next()?;
        if line == b"]," && self.place == Place::First {
            self.place = Place::Done;
            return Ok(None);
        }
        let (object, more) = without_comma(line);
        let file = entry::parse_file(object, number)?;
        self.place = if more { Place::Next } else { Place::Last };
        Ok(Some(file))
    }

    fn read_wal_ranges(&mut self) -> Result<Vec<WalRange>, ManifestError> {
        self.lines.expect(b"\"WAL-Ranges\": [", "the WAL ranges")?;
        let mut ranges = Vec::new();
        loop {
            let number = self.lines.number + 1;
            let line = self.lines.next()?;
            if line == b"]," && ranges.is_empty() {
                return Ok(ranges);
            }
            let (object, more) = without_comma(line);
            ranges.push(entry::parse_wal_range(object, number)?);
            if !more {
                self.lines.expect(b"],", "the end of the WAL ranges")?;
                return Ok(ranges);
            }
            if ranges.len() >= MAX_WAL_RANGES {
                return Err(ManifestError::TooManyWalRanges { limit: MAX_WAL_RANGES });
            }
        }
    }

    fn verify_checksum(&mut self) -> Result<(), ManifestError> {
        let expected = self.lines.hash.clone().finalize();
        let written = self
            .lines
            .next()?
            .strip_prefix(b"\"Manifest-Checksum\": \"")
            .and_then(|rest| rest.strip_suffix(b"\"}"))
            .and_then(from_hex)
            .ok_or_else(|| self.lines.unexpected("the manifest's checksum"))?;
        if written != expected.as_slice() {
            return Err(ManifestError::Checksum);
        }
        self.lines.end()
    }
}

impl<R: BufRead> Iterator for ManifestReader<R> {
    type Item = Result<ManifestFile, ManifestError>;

    /// Yields the files; after an error, nothing.
    fn next(&mut self) -> Option<Self::Item> {
        if self.place == Place::Failed { None } else { self.next_file().transpose() }
    }
}

/// Reads line by line and hashes everything that was handed out.
#[derive(Debug)]
struct Lines<R> {
    reader: R,
    hash: Sha256,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line and returns it without its newline.
    fn next(&mut self) -> Result<&[u8], ManifestError> {
        self.number += 1;
        self.line.clear();
        let number = self.number;
        // One byte above the limit tells a line that is too long from one that just fits.
        let read = self.reader.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut self.line);
        read.map_err(|source| ManifestError::Read { line: number, source })?;
        if self.line.len() as u64 > MAX_LINE_BYTES {
            return Err(ManifestError::LineTooLong { line: number, limit: MAX_LINE_BYTES });
        }
        self.hash.update(&self.line);
        match self.line.split_last() {
            Some((b'\n', line)) => Ok(line),
            _ => Err(ManifestError::CutShort { line: number }),
        }
    }

    fn expect(&mut self, text: &[u8], what: &'static str) -> Result<(), ManifestError> {
        if self.next()? == text { Ok(()) } else { Err(self.unexpected(what)) }
    }

    fn end(&mut self) -> Result<(), ManifestError> {
        let rest = self.reader.fill_buf().map_err(|source| ManifestError::Read { line: self.number + 1, source })?;
        if rest.is_empty() { Ok(()) } else { Err(ManifestError::BytesAfterEnd) }
    }

    /// Says what should have stood on the line that was read last.
    fn unexpected(&self, expected: &'static str) -> ManifestError {
        ManifestError::unexpected(self.number, expected, &self.line)
    }
}

fn without_comma(line: &[u8]) -> (&[u8], bool) {
    line.strip_suffix(b",").map_or((line, false), |object| (object, true))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

#[cfg(test)]
mod tests;
