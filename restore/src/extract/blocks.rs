//! The changed blocks of an incremental file, written into the file as the backup below left it.
//!
//! What lies behind the end of the file, or behind where it was cut in between, was deleted: it becomes zeros, unless
//! this backup has it. Written twice, the result is the same.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use pgark_postgres::{IncrementalHeader, RelationFile};

const BLOCK: u64 = RelationFile::BLOCK_BYTES as u64;

/// Gathers the header of an incremental file.
pub(crate) struct HeaderReader {
    file_bytes: u64,
    length: usize,
    bytes: Vec<u8>,
}

impl HeaderReader {
    pub(crate) fn new(file_bytes: u64) -> Self {
        Self { file_bytes, length: IncrementalHeader::FIXED_BYTES, bytes: Vec::new() }
    }

    /// How many bytes the next call needs at least, as far as is known.
    pub(crate) fn missing(&self) -> usize {
        self.length - self.bytes.len()
    }

    /// Takes what is still missing from the front of `rest`. A file that ends before its header is longer than any
    /// complete one, or shorter than the beginning: the first write tells.
    pub(crate) fn take(&mut self, rest: &mut &[u8]) -> io::Result<Option<IncrementalHeader>> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        loop {
            if self.file_bytes < self.length as u64 {
                let length = self.length;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("its header would have {length} bytes"),
                ));
            }
            let (now, later) = rest.split_at(rest.len().min(self.length - self.bytes.len()));
            self.bytes.extend_from_slice(now);
            *rest = later;
            if self.bytes.len() < self.length {
                return Ok(None);
            }
            let length = IncrementalHeader::length_from(&self.bytes).map_err(invalid)?;
            if length == self.length {
                return IncrementalHeader::parse(&self.bytes, self.file_bytes).map(Some).map_err(invalid);
            }
            self.length = length;
        }
    }
}

/// Writes the blocks to their places.
pub(super) struct BlockWriter {
    file: File,
    limit_block: Option<u32>,
    header: Option<HeaderReader>,
    /// What is still to come, in bytes of the file.
    runs: VecDeque<Range<u64>>,
}

impl BlockWriter {
    /// `file` is as the backup below left it; `limit_block` is where it was cut since.
    pub(super) fn new(file: File, file_bytes: u64, limit_block: Option<u32>) -> Self {
        Self { file, limit_block, header: Some(HeaderReader::new(file_bytes)), runs: VecDeque::new() }
    }

    fn begin(&mut self, header: &IncrementalHeader) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let whole = u64::from(header.truncation_blocks()) * BLOCK;
        let limit = self.limit_block.map_or(u64::MAX, |block| u64::from(block) * BLOCK);
        let valid = (length / BLOCK * BLOCK).min(limit).min(whole);
        if valid < length {
            self.file.set_len(valid)?;
        }
        if valid < whole {
            self.file.set_len(whole)?;
        }
        let bytes = |(blocks, _): (Range<u32>, u64)| u64::from(blocks.start) * BLOCK..u64::from(blocks.end) * BLOCK;
        self.runs = header.runs().map(bytes).collect();
        Ok(())
    }
}

impl Write for BlockWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        if let Some(header) = &mut self.header {
            let Some(header) = header.take(&mut rest)? else { return Ok(bytes.len()) };
            self.header = None;
            self.begin(&header)?;
        }
        while !rest.is_empty() {
            let Some(run) = self.runs.front_mut() else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes follow its last block"));
            };
            let room = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            self.file.write_all_at(now, run.start)?;
            run.start += now.len() as u64;
            if run.is_empty() {
                self.runs.pop_front();
            }
            rest = later;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A file of blocks that are each filled with one byte.
    fn file(blocks: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&filled(blocks)).unwrap();
        file
    }

    fn filled(blocks: &[u8]) -> Vec<u8> {
        blocks.iter().flat_map(|byte| [*byte; BLOCK as usize]).collect()
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    /// Applies changes in pieces of several sizes, twice, and returns a byte for each block.
    fn apply(below: &[u8], whole: u32, changes: &[(u32, u8)], limit_block: Option<u32>) -> Vec<u8> {
        let header = IncrementalHeader::new(whole, changes.iter().map(|(block, _)| *block)).unwrap();
        let bytes: Vec<u8> = changes.iter().map(|(_, byte)| *byte).collect();
        let incremental = [header.to_bytes(), filled(&bytes)].concat();
        let mut results = Vec::new();
        for piece in [1, 7, 8192, 100_000] {
            let file = file(below);
            for _ in 0..2 {
                let mut writer = BlockWriter::new(file.try_clone().unwrap(), incremental.len() as u64, limit_block);
                incremental.chunks(piece).for_each(|piece| writer.write_all(piece).unwrap());
            }
            results.push(content(&file));
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
        let result: Vec<u8> = results[0].iter().copied().step_by(BLOCK as usize).collect();
        assert_eq!(filled(&result), results[0]);
        result
    }

    #[test]
    fn e02_e10_blocks_come_to_their_places() {
        assert_eq!(apply(&[1, 2, 3], 3, &[], None), [1, 2, 3]);
        assert_eq!(apply(&[1, 2, 3], 3, &[(1, 9)], None), [1, 9, 3]);
        assert_eq!(apply(&[1, 2, 3], 2, &[], None), [1, 2]);
        assert_eq!(apply(&[1, 2, 3], 6, &[(4, 8), (5, 9)], None), [1, 2, 3, 0, 8, 9]);
        assert_eq!(apply(&[], 2, &[(1, 7)], None), [0, 7]);
        assert_eq!(apply(&[1, 2], 0, &[], None), [0u8; 0]);
    }

    #[test]
    fn e01_what_was_cut_away_does_not_come_back() {
        assert_eq!(apply(&[1, 2, 3, 4], 4, &[(3, 9)], Some(1)), [1, 0, 0, 9]);
        assert_eq!(apply(&[1, 2, 3, 4], 4, &[], Some(0)), [0, 0, 0, 0]);
        assert_eq!(apply(&[1, 2, 3, 4], 5, &[(0, 8)], Some(7)), [8, 2, 3, 4, 0]);
    }

    #[test]
    fn e11_what_is_no_incremental_file_is_refused() {
        let header = IncrementalHeader::new(3, [1]).unwrap().to_bytes();
        for (content, size) in [
            (b"short".to_vec(), 5),
            (header.clone(), 12),
            (header.clone(), header.len() as u64),
            ([&header[..], &filled(&[1, 2])].concat(), header.len() as u64 + 2 * BLOCK),
            (vec![7; 9000], 9000),
        ] {
            let mut writer = BlockWriter::new(file(&[1, 2, 3]), size, None);
            let error = writer.write_all(&content).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
