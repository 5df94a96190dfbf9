//! `index.jsonl`: where each file lies in the parts, and where each frame lies in a part.
//!
//! A line of JSON for each member in the order in which they are stored, and after the members of a
//! part a line for the part:
//!
//! ```text
//! {"path":"base/5","mode":448,"part":3,"offset":0}
//! {"path":"base/5/1259","size":8192,"mode":384,"mtime":1763600000,"crc32c":"994e7be2","part":3,"offset":512}
//! {"path_hex":"ff","size":1,…}
//! {"path":"base/5/INCREMENTAL.2619",…,"limit_block":5,…}
//! {"part":3,"raw_size":268435968,"frames":[812345,…]}
//! ```
//!
//! `offset` is the place of the member's tar header in the part's raw bytes: a file's content begins
//! 512 bytes later. Frames hold [`FRAME_BYTES`](crate::FRAME_BYTES) raw bytes each, the last one the
//! rest; the numbers are their compressed lengths, in order.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

/// A line is a path and some numbers, or the frames of one part: 16 GiB have 4,096.
const LINE_LIMIT: u64 = 4 << 20;

/// A file or directory in a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedMember {
    /// The path below the data directory, raw bytes.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// The part, from 1.
    pub part: u32,
    /// Where its tar header begins in the part's raw bytes.
    pub offset: u64,
    /// What a file has and a directory has not.
    pub file: Option<IndexedFile>,
}

/// Size and checksum of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexedFile {
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// CRC-32C of the content.
    pub crc32c: u32,
    /// Of an incremental file: the block from which on the parent's blocks are not of this file any more, because it
    /// was cut there since the parent began, counted from the beginning of the file.
    pub limit_block: Option<u32>,
    /// Of an incremental file that pgark itself made: the file that it stands for, as the server sent it.
    pub whole: Option<WholeFile>,
}

/// A file once it is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WholeFile {
    /// Bytes.
    pub size: u64,
    /// CRC-32C of the content.
    #[serde(with = "crc32c_digits")]
    pub crc32c: u32,
}

impl WholeFile {
    /// One without content.
    pub const EMPTY: Self = Self { size: 0, crc32c: 0 };

    /// Takes what follows.
    pub fn add(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }
}

/// CRC-32C as the manifest writes it.
mod crc32c_digits {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(crc32c: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&pgark_postgres::crc32c_to_hex(*crc32c))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let digits = String::deserialize(deserializer)?;
        pgark_postgres::crc32c_from_hex(&digits).ok_or_else(|| D::Error::custom("a crc32c is not 8 hex digits"))
    }
}

/// The frames of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexedPart {
    /// The part, from 1.
    pub part: u32,
    /// Bytes of the tar archive.
    pub raw_size: u64,
    /// Compressed length of each frame, in order.
    pub frames: Vec<u32>,
}

/// A line of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexLine {
    /// A file or directory.
    Member(IndexedMember),
    /// The end of a part.
    Part(IndexedPart),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberLine {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    mode: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32c: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_block: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    whole: Option<WholeFile>,
    part: u32,
    offset: u64,
}

impl From<&IndexedMember> for MemberLine {
    fn from(member: &IndexedMember) -> Self {
        let path = std::str::from_utf8(&member.path).ok().map(str::to_owned);
        let path_hex = path.is_none().then(|| member.path.iter().map(|b| format!("{b:02x}")).collect());
        Self {
            path,
            path_hex,
            size: member.file.map(|file| file.size),
            mode: member.mode,
            mtime: member.file.map(|file| file.mtime),
            crc32c: member.file.map(|file| pgark_postgres::crc32c_to_hex(file.crc32c)),
            limit_block: member.file.and_then(|file| file.limit_block),
            whole: member.file.and_then(|file| file.whole),
            part: member.part,
            offset: member.offset,
        }
    }
}

impl TryFrom<MemberLine> for IndexedMember {
    type Error = &'static str;

    fn try_from(line: MemberLine) -> Result<Self, &'static str> {
        let path = match (line.path, line.path_hex) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(hex)) => decode_hex(&hex).ok_or("a path_hex is not hex")?,
            _ => return Err("a member needs either path or path_hex"),
        };
        pgark_postgres::check_relative_path(&path).map_err(|_| "a path leads out of the data directory")?;
        let file = match (line.size, line.mtime, line.crc32c) {
            (Some(size), Some(mtime), Some(crc32c)) => {
                let crc32c = pgark_postgres::crc32c_from_hex(&crc32c).ok_or("a crc32c is not 8 hex digits")?;
                Some(IndexedFile { size, mtime, crc32c, limit_block: line.limit_block, whole: line.whole })
            }
            (None, None, None) if line.limit_block.is_none() && line.whole.is_none() => None,
            _ => return Err("a file needs size, mtime and crc32c"),
        };
        Ok(Self { path, mode: line.mode, part: line.part, offset: line.offset, file })
    }
}

fn decode_hex(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

impl IndexLine {
    /// Writes the line with its newline.
    ///
    /// # Errors
    /// When the output fails.
    pub fn write(&self, mut output: impl Write) -> io::Result<()> {
        match self {
            Self::Member(member) => serde_json::to_writer(&mut output, &MemberLine::from(member))?,
            Self::Part(part) => serde_json::to_writer(&mut output, part)?,
        }
        output.write_all(b"\n")
    }

    fn parse(line: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Line {
            Part(IndexedPart),
            Member(MemberLine),
        }
        match serde_json::from_slice(line).map_err(|error| error.to_string())? {
            Line::Part(part) => Ok(Self::Part(part)),
            Line::Member(member) => IndexedMember::try_from(member).map(Self::Member).map_err(str::to_owned),
        }
    }
}

/// Reads an index line by line, in bounded memory.
pub struct IndexReader<R> {
    input: R,
    number: u64,
}

impl<R: BufRead> IndexReader<R> {
    /// Reads from the decompressed index.
    pub fn new(input: R) -> Self {
        Self { input, number: 0 }
    }

    /// The next line, or `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` for a line that is none, or what the input gives.
    pub fn next_line(&mut self) -> io::Result<Option<IndexLine>> {
        self.number += 1;
        let mut line = Vec::new();
        io::Read::take(&mut self.input, LINE_LIMIT).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        let wrong = |reason: String| {
            io::Error::new(io::ErrorKind::InvalidData, format!("index line {}: {reason}", self.number))
        };
        let Some(text) = line.strip_suffix(b"\n") else {
            return Err(wrong("it has no end".to_owned()));
        };
        IndexLine::parse(text).map(Some).map_err(wrong)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<IndexLine>> {
        let mut reader = IndexReader::new(bytes);
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line()? {
            lines.push(line);
        }
        Ok(lines)
    }

    proptest! {
        #[test]
        fn a07_any_path_round_trips(name in proptest::collection::vec(1u8.., 1..60), size: u64, crc32c: u32, mode in 0u32..0o7777) {
            let mut path = b"base/".to_vec();
            path.extend(name.iter().map(|b| if *b == b'/' { b'_' } else { *b }));
            let file = IndexedFile { size, mtime: 5, crc32c, limit_block: size.is_multiple_of(3).then_some(crc32c), whole: size.is_multiple_of(5).then_some(WholeFile { size, crc32c }) };
            let member = IndexLine::Member(IndexedMember { path, mode, part: 7, offset: size / 2, file: Some(file) });
            let mut line = Vec::new();
            member.write(&mut line).unwrap();
            if let Ok(lines) = read(&line) {
                prop_assert_eq!(lines, vec![member]);
            } else {
                // Only `.` and `..` may be refused.
                prop_assert!(name == b"." || name == b"..");
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(read(&bytes));
        }
    }

    #[test]
    fn f01_paths_that_lead_out_are_refused() {
        for path in ["../x", "/etc/passwd", "a/../b", "", "a//b", "a/", "."] {
            let line = format!("{{\"path\":\"{path}\",\"mode\":384,\"part\":1,\"offset\":0}}\n");
            assert!(read(line.as_bytes()).is_err(), "{path}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        assert!(read(b"{\"part\":1,\"raw_size\":0,\"frames\":[]}").is_err());
    }
}
