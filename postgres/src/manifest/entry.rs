//! The objects in a manifest: a file, or a range of WAL.
//!
//! Each is JSON of its own. Unknown, repeated, missing and null fields are refused, and so is what is well-formed but
//! cannot be true.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};

use super::MAX_FILE_SIZE;
use super::checksum::{ChecksumAlgorithm, ManifestChecksum, from_hex};
use super::error::ManifestError;
use crate::{Lsn, TimelineId, check_relative_path};

/// A file of the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// The path below the data directory; it has passed [`check_relative_path`]. Files of tablespaces are below
    /// `pg_tblspc/<oid>/`, and incremental files have the name `INCREMENTAL.<name>`.
    pub path: Vec<u8>,
    /// The size of what the server sent.
    pub size: u64,
    /// The checksum of what the server sent; absent when the backup was made with `MANIFEST_CHECKSUMS 'NONE'`.
    pub checksum: Option<ManifestChecksum>,
    /// When the file was last changed, as the server wrote it, like `2026-11-21 04:00:29 GMT`.
    pub last_modified: String,
}

/// WAL that must be replayed before the backup is consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline to read.
    pub timeline: TimelineId,
    /// The first byte that is needed.
    pub start: Lsn,
    /// The position after the last byte that is needed.
    pub end: Lsn,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileObject<'a> {
    #[serde(rename = "Path", borrow, default, deserialize_with = "present_text")]
    path: Option<Cow<'a, str>>,
    #[serde(rename = "Encoded-Path", borrow, default, deserialize_with = "present_text")]
    encoded_path: Option<Cow<'a, str>>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: String,
    #[serde(rename = "Checksum-Algorithm", borrow, default, deserialize_with = "present_text")]
    algorithm: Option<Cow<'a, str>>,
    #[serde(rename = "Checksum", borrow, default, deserialize_with = "present_text")]
    checksum: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WalRangeObject {
    #[serde(rename = "Timeline")]
    timeline: TimelineId,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

pub(super) fn parse_file(object: &[u8], line: u64) -> Result<ManifestFile, ManifestError> {
    let file: FileObject<'_> =
        serde_json::from_slice(object).map_err(|source| ManifestError::Object { line, source })?;
    let wrong = |problem| ManifestError::Field { line, problem };
    let path = match (file.path, file.encoded_path) {
        (Some(path), None) => path.into_owned().into_bytes(),
        (None, Some(digits)) => from_hex(digits.as_bytes()).ok_or_else(|| wrong("encoded path is not hexadecimal"))?,
        (Some(_), Some(_)) => return Err(wrong("file has both a path and an encoded path")),
        (None, None) => return Err(wrong("file has no path")),
    };
    check_relative_path(&path).map_err(|source| ManifestError::Path { line, source })?;
    if file.size > MAX_FILE_SIZE {
        return Err(wrong("size is larger than any file can be"));
    }
    let checksum = match (file.algorithm, file.checksum) {
        (None, None) => None,
        (Some(name), Some(digits)) => {
            let algorithm =
                ChecksumAlgorithm::from_name(&name).ok_or_else(|| wrong("checksum algorithm is not known"))?;
            let checksum = ManifestChecksum::from_hex(algorithm, &digits)
                .ok_or_else(|| wrong("checksum is not hexadecimal or has the wrong length"))?;
            Some(checksum)
        }
        (None, Some(_)) => return Err(wrong("checksum has no algorithm")),
        (Some(_), None) => return Err(wrong("checksum algorithm has no checksum")),
    };
    Ok(ManifestFile { path, size: file.size, checksum, last_modified: file.last_modified })
}

pub(super) fn parse_wal_range(object: &[u8], line: u64) -> Result<WalRange, ManifestError> {
    let WalRangeObject { timeline, start, end } =
        serde_json::from_slice(object).map_err(|source| ManifestError::Object { line, source })?;
    if end < start {
        return Err(ManifestError::Field { line, problem: "WAL range ends before it starts" });
    }
    Ok(WalRange { timeline, start, end })
}

/// Takes a text, but no null: serde would read that as an absent field.
fn present_text<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    // `Cow` alone always copies; this borrows wherever the JSON has no escapes.
    #[derive(Deserialize)]
    struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);
    Borrowed::deserialize(deserializer).map(|text| Some(text.0))
}
