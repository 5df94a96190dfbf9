//! The raw bytes of a part: its frames are decompressed one by one, from the first on or only those that are asked for.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use pgark_repository::{FRAME_BYTES, IndexedPart, OpenedObject};

/// One frame at a time, in one buffer.
pub(crate) struct FrameReader {
    object: OpenedObject,
    lengths: Vec<u32>,
    raw_size: u64,
    /// The frame that is read next, and where the object stands.
    next: usize,
    decompressor: zstd::bulk::Decompressor<'static>,
    stored: Vec<u8>,
    raw: Vec<u8>,
    consumed: usize,
    fetched: u64,
}

impl FrameReader {
    pub(crate) fn new(object: OpenedObject, part: &IndexedPart) -> io::Result<Self> {
        Ok(Self {
            object,
            lengths: part.frames.clone(),
            raw_size: part.raw_size,
            next: 0,
            decompressor: zstd::bulk::Decompressor::new()?,
            stored: Vec::new(),
            raw: Vec::with_capacity(FRAME_BYTES),
            consumed: 0,
            fetched: 0,
        })
    }

    /// Goes to another place of the raw bytes; frames in between are not read.
    pub(crate) fn skip_to(&mut self, position: u64) -> io::Result<()> {
        let frame = usize::try_from(position / FRAME_BYTES as u64).map_err(io::Error::other)?;
        if self.next != frame + 1 || self.raw.is_empty() {
            let Some(before) = self.lengths.get(..frame) else {
                return Err(invalid(format!("it has no byte {position}")));
            };
            if self.next != frame {
                let offset = before.iter().map(|&length| u64::from(length)).sum();
                self.object.seek(SeekFrom::Start(offset))?;
                self.next = frame;
            }
            self.next_frame()?;
        }
        // Behind the end of the frame the next read fails.
        self.consumed = usize::try_from(position % FRAME_BYTES as u64).map_err(io::Error::other)?.min(self.raw.len());
        Ok(())
    }

    /// Gives back the memory of the frame as it is stored, where the next one will not follow soon.
    pub(crate) fn release_stored(&mut self) {
        self.stored = Vec::new();
    }

    /// Stored bytes that were read.
    pub(crate) fn fetched(&self) -> u64 {
        self.fetched
    }

    fn next_frame(&mut self) -> io::Result<()> {
        self.raw.clear();
        self.consumed = 0;
        let raw_left = self.raw_size.saturating_sub(self.next as u64 * FRAME_BYTES as u64);
        let Some(&length) = self.lengths.get(self.next) else {
            if raw_left > 0 {
                return Err(invalid(format!("its frames end {raw_left} bytes early")));
            }
            if self.object.read(&mut [0])? > 0 {
                return Err(invalid("bytes follow its last frame".to_owned()));
            }
            return Ok(());
        };
        // Data that does not compress grows by a little.
        if length as usize > FRAME_BYTES + FRAME_BYTES / 64 {
            return Err(invalid(format!("a frame of {length} bytes is longer than any")));
        }
        self.stored.resize(length as usize, 0);
        self.object.read_exact(&mut self.stored)?;
        self.fetched += u64::from(length);
        let expected = raw_left.min(FRAME_BYTES as u64);
        let found = self
            .decompressor
            .decompress_to_buffer(&self.stored, &mut self.raw)
            .map_err(|error| invalid(format!("a frame cannot be decompressed: {error}")))?;
        if found as u64 != expected {
            return Err(invalid(format!("a frame holds {found} bytes instead of {expected}")));
        }
        self.next += 1;
        Ok(())
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl BufRead for FrameReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.consumed == self.raw.len() {
            self.next_frame()?;
        }
        Ok(&self.raw[self.consumed..])
    }

    fn consume(&mut self, count: usize) {
        self.consumed = (self.consumed + count).min(self.raw.len());
    }
}

impl Read for FrameReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
