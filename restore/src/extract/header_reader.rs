//! The header of an incremental file, which says where its blocks belong.

use std::io;

use pgark_postgres::IncrementalHeader;

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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Takes a file's bytes in pieces.
    fn taken(content: &[u8], size: u64, piece: usize) -> io::Result<Option<IncrementalHeader>> {
        let mut reader = HeaderReader::new(size);
        for mut bytes in content.chunks(piece) {
            if let Some(header) = reader.take(&mut bytes)? {
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    #[test]
    fn e11_what_is_no_incremental_file_is_refused() {
        let header = IncrementalHeader::new(3, [1]).unwrap();
        let (bytes, size) = (header.to_bytes(), header.to_bytes().len() as u64 + 8192);
        for piece in [1, 7, 100_000] {
            assert_eq!(taken(&bytes, size, piece).unwrap(), Some(header.clone()));
            assert_eq!(taken(&bytes[..bytes.len() - 1], size, piece).unwrap(), None);
            for (content, size) in [
                (b"short".to_vec(), 5),
                (bytes.clone(), 12),
                (bytes.clone(), bytes.len() as u64),
                (bytes.clone(), size + 8192),
                (vec![7; 9000], 9000),
            ] {
                let error = taken(&content, size, piece).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            }
        }
    }
}
