//! Reading a block map: from beginning to end, or one file of it.

use std::io::{self, Read, Seek, SeekFrom};

use super::{BlockHashes, BlockMapError, MAGIC, VERSION, block_hash, check_file};
use crate::RelationFile;

const HEADER_BYTES: u64 = 16;

/// A file in a block map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMapFile {
    /// The path below the data directory; always that of a [`RelationFile`].
    pub path: Vec<u8>,
    /// The hashes of its blocks.
    pub hashes: BlockHashes,
}

/// Reads a block map from its first byte to its last, holding one file at a time.
///
/// The map was complete if no item was an error; after an error nothing more is read.
#[derive(Debug)]
pub struct BlockMapReader<R> {
    reader: R,
    files: u64,
    /// Where the next file begins.
    position: u64,
    is_done: bool,
}

/// Where in a block map each file stands, in 16 bytes a file.
#[derive(Debug)]
pub struct BlockMapIndex {
    /// The hash of the path and the position in the map, sorted.
    files: Vec<(u64, u64)>,
}

impl<R: Read> BlockMapReader<R> {
    /// Reads the beginning of a map.
    pub fn new(reader: R) -> Result<Self, BlockMapError> {
        let mut record = RecordReader { reader, crc: 0, bytes: 0 };
        if record.array()? != *MAGIC {
            return Err(BlockMapError::Magic);
        }
        match u32::from_le_bytes(record.array()?) {
            VERSION => {}
            found => return Err(BlockMapError::Version { found }),
        }
        match u32::from_le_bytes(record.array()?) {
            found if found as usize == RelationFile::BLOCK_BYTES => {}
            found => return Err(BlockMapError::BlockBytes { found }),
        }
        Ok(Self { reader: record.reader, files: 0, position: HEADER_BYTES, is_done: false })
    }

    fn next_file(&mut self) -> Result<Option<BlockMapFile>, BlockMapError> {
        let (record, bytes) = Record::read(&mut self.reader)?;
        match record {
            Record::File(file) => {
                self.files += 1;
                self.position += bytes;
                Ok(Some(file))
            }
            Record::End { files } if files != self.files => {
                Err(BlockMapError::FileCount { expected: files, found: self.files })
            }
            Record::End { .. } => match self.reader.read_exact(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                Err(source) => Err(BlockMapError::Read { source }),
                Ok(()) => Err(BlockMapError::BytesAfterEnd),
            },
        }
    }
}

impl<R: Read> Iterator for BlockMapReader<R> {
    type Item = Result<BlockMapFile, BlockMapError>;

    /// Yields the files; after an error, nothing.
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let item = self.next_file().transpose();
        self.is_done = !matches!(item, Some(Ok(_)));
        item
    }
}

impl BlockMapIndex {
    /// Reads a whole map, which verifies it.
    pub fn read(map: impl Read) -> Result<Self, BlockMapError> {
        let mut reader = BlockMapReader::new(map)?;
        let mut files = Vec::new();
        let mut position = reader.position;
        while let Some(file) = reader.next() {
            files.push((block_hash(&file?.path), position));
            position = reader.position;
        }
        files.sort_unstable();
        if files.is_sorted_by(|(one, _), (next, _)| one < next) {
            Ok(Self { files })
        } else {
            Err(BlockMapError::Twice)
        }
    }

    /// Looks a file up in the map that the index was read from; nothing if it is not there.
    pub fn find(&self, mut map: impl Read + Seek, path: &[u8]) -> Result<Option<BlockHashes>, BlockMapError> {
        let Ok(at) = self.files.binary_search_by_key(&block_hash(path), |(hash, _)| *hash) else {
            return Ok(None);
        };
        map.seek(SeekFrom::Start(self.files[at].1)).map_err(|source| BlockMapError::Read { source })?;
        match Record::read(&mut map)?.0 {
            Record::File(file) => Ok((file.path == path).then_some(file.hashes)),
            Record::End { .. } => Err(BlockMapError::CutShort),
        }
    }
}

/// What follows the beginning of a map, again and again.
enum Record {
    File(BlockMapFile),
    End { files: u64 },
}

impl Record {
    /// Reads a record and returns it with its length.
    fn read(reader: impl Read) -> Result<(Self, u64), BlockMapError> {
        let mut record = RecordReader { reader, crc: 0, bytes: 0 };
        let path_bytes = u16::from_le_bytes(record.array()?);
        if path_bytes == 0 {
            let files = u64::from_le_bytes(record.array()?);
            return Ok((Self::End { files }, record.verify()?));
        }
        let path = record.vec(path_bytes.into())?;
        let blocks = u32::from_le_bytes(record.array()?);
        // Before memory is taken for so many.
        check_file(&path, blocks.into())?;
        let hashes = record.vec(8 * blocks as usize)?;
        let hashes = hashes.as_chunks().0.iter().map(|hash| u64::from_le_bytes(*hash)).collect();
        Ok((Self::File(BlockMapFile { path, hashes }), record.verify()?))
    }
}

/// Reads the parts of a record, and in the end the checksum over them.
struct RecordReader<R> {
    reader: R,
    crc: u32,
    bytes: u64,
}

impl<R: Read> RecordReader<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BlockMapError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn vec(&mut self, length: usize) -> Result<Vec<u8>, BlockMapError> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BlockMapError> {
        self.reader.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => BlockMapError::CutShort,
            _ => BlockMapError::Read { source },
        })?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Verifies the checksum and returns the length of the whole record.
    fn verify(mut self) -> Result<u64, BlockMapError> {
        let expected = self.crc;
        let found = u32::from_le_bytes(self.array()?);
        if found == expected { Ok(self.bytes) } else { Err(BlockMapError::Checksum { expected, found }) }
    }
}
