//! zstd: independent frames with content size and checksum, and the note in front of WAL objects.
//!
//! A compressed WAL object begins with a skippable frame (RFC 8878, 3.1.2), which every zstd reader
//! passes over:
//!
//! ```text
//! 5E 2A 4D 18 · length (u32, little-endian) · "pgark-raw-blake3 <64 hex digits> <size>"
//! ```

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::thread;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, compress_bound};

use crate::digest::RawDigest;

/// Raw bytes of one frame; the last of a part or segment is shorter.
pub const FRAME_BYTES: usize = 4 << 20;

/// No frame of so many raw bytes is longer (zstd's own bound is 16 KiB above them).
pub(crate) const MAX_STORED_FRAME: usize = FRAME_BYTES + (64 << 10);

/// So much memory at once is given back to the system when it is freed, whatever thread has taken it. Of smaller blocks
/// the allocator keeps some for each thread, and an object that grew among them would leave several times its size.
const GIVEN_BACK: usize = 32 << 20;

const NOTE_MAGIC: [u8; 4] = [0x5E, 0x2A, 0x4D, 0x18];
const NOTE_TAG: &str = "pgark-raw-blake3";
/// No sensible note is longer.
const NOTE_LIMIT: u32 = 200;

/// Compresses frames; keeps its contexts and their buffers for the next frame, since fresh memory of this size costs
/// more than its compression saves.
#[derive(Default)]
pub(crate) struct FrameCompressor {
    level: i32,
    idle: Mutex<Vec<(Compressor<'static>, Vec<u8>)>>,
}

impl FrameCompressor {
    pub(crate) fn new(level: i32) -> Self {
        Self { level, idle: Mutex::default() }
    }

    /// Compresses `raw` (at most [`FRAME_BYTES`]) into one frame.
    pub(crate) fn compress(&self, raw: &[u8]) -> io::Result<Vec<u8>> {
        let (mut compressor, mut buffer) = self.idle()?;
        buffer.clear();
        buffer.reserve(compress_bound(raw.len()));
        compressor.compress_to_buffer(raw, &mut buffer)?;
        let frame = buffer.as_slice().to_vec();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((compressor, buffer));
        Ok(frame)
    }

    /// Compresses `raw` (at most [`FRAME_BYTES`]) into one frame behind what `object` has, without a copy in between.
    fn append(&self, raw: &[u8], object: &mut Vec<u8>) -> io::Result<()> {
        let (mut compressor, buffer) = self.idle()?;
        let end = object.len() as u64;
        object.reserve(compress_bound(raw.len()));
        let mut output = io::Cursor::new(object);
        output.set_position(end);
        compressor.compress_to_buffer(raw, &mut output)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((compressor, buffer));
        Ok(())
    }

    fn idle(&self) -> io::Result<(Compressor<'static>, Vec<u8>)> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(idle) = idle {
            return Ok(idle);
        }
        let mut compressor = Compressor::new(self.level)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
        Ok((compressor, Vec::new()))
    }
}

/// Digests and compresses WAL while it is read, frame by frame, so that of the raw bytes only one frame for each thread
/// is in memory. Keeps its buffers for the next segment.
pub struct WalCompressor {
    frames: FrameCompressor,
    threads: usize,
    idle: Mutex<Vec<Vec<u8>>>,
}

impl WalCompressor {
    /// Compresses at this zstd level, on up to `threads` threads.
    #[must_use]
    pub fn new(level: i32, threads: usize) -> Self {
        Self { frames: FrameCompressor::new(level), threads: threads.max(1), idle: Mutex::default() }
    }

    /// Reads `size` bytes, and returns their digest and the object: the note, then the frames.
    pub(crate) fn compress(&self, mut input: impl Read, size: u64) -> io::Result<(RawDigest, Vec<u8>)> {
        // What is not written to costs nothing, and is cut off in the end.
        let mut object = Vec::with_capacity(GIVEN_BACK);
        // The digest must stand in front of what it is of.
        object.extend_from_slice(&note(&RawDigest { blake3: [0; 32], size }));
        let mut hasher = blake3::Hasher::new();
        let mut buffer = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let mut left = size;
        while left > 0 {
            let length = left.min((self.threads * FRAME_BYTES) as u64);
            buffer.clear();
            buffer.reserve_exact(usize::try_from(length).unwrap_or(0));
            (&mut input).take(length).read_to_end(&mut buffer)?;
            if buffer.len() as u64 != length {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{left} bytes are missing")));
            }
            self.append_frames(&buffer, &mut object, &mut hasher)?;
            left -= length;
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        let digest = RawDigest { blake3: hasher.finalize().into(), size };
        let note = note(&digest);
        object[..note.len()].copy_from_slice(&note);
        object.shrink_to_fit();
        Ok((digest, object))
    }

    fn append_frames(&self, raw: &[u8], object: &mut Vec<u8>, hasher: &mut blake3::Hasher) -> io::Result<()> {
        if self.threads == 1 {
            hasher.update(raw);
            return self.frames.append(raw, object);
        }
        let chunk = raw.len().div_ceil(self.threads);
        thread::scope(|scope| {
            let compress = |chunk| scope.spawn(move || self.frames.compress(chunk));
            let workers: Vec<_> = raw.chunks(chunk).map(compress).collect();
            hasher.update(raw);
            let died = |_| Err(io::Error::other("a compression thread died"));
            for worker in workers {
                object.extend_from_slice(&worker.join().unwrap_or_else(died)?);
            }
            Ok(())
        })
    }
}

impl std::fmt::Debug for WalCompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { frames, threads, idle: _ } = self;
        f.debug_struct("WalCompressor").field("level", &frames.level).field("threads", threads).finish_non_exhaustive()
    }
}

/// Decompresses one frame whose raw size is known; anything else is an error.
pub(crate) fn decompress_frame(stored: &[u8], raw_size: usize) -> io::Result<Vec<u8>> {
    if zstd::zstd_safe::find_frame_compressed_size(stored).ok() != Some(stored.len()) {
        return Err(damaged("the bytes are not one zstd frame"));
    }
    let raw = Decompressor::new()?.decompress(stored, raw_size)?;
    if raw.len() == raw_size { Ok(raw) } else { Err(damaged("a frame is shorter than the index says")) }
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn note(digest: &RawDigest) -> Vec<u8> {
    let text = format!("{NOTE_TAG} {} {}", digest.hex(), digest.size);
    let mut note = NOTE_MAGIC.to_vec();
    note.extend_from_slice(&u32::try_from(text.len()).unwrap_or(NOTE_LIMIT).to_le_bytes());
    note.extend_from_slice(text.as_bytes());
    note
}

/// Reads the note at the beginning of a compressed WAL object; `None` when there is none.
pub(crate) fn digest_of_note(mut input: impl Read) -> io::Result<Option<RawDigest>> {
    let mut head = [0; 8];
    if let Err(error) = input.read_exact(&mut head) {
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    }
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if head[..4] != NOTE_MAGIC || length > NOTE_LIMIT {
        return Ok(None);
    }
    let mut text = String::new();
    if input.take(u64::from(length)).read_to_string(&mut text).is_err() {
        return Ok(None);
    }
    let mut words = text.split(' ');
    let (tag, hex, size) = (words.next(), words.next(), words.next());
    Ok(match (tag, hex, size, words.next()) {
        (Some(NOTE_TAG), Some(hex), Some(size), None) => RawDigest::from_hex(hex, size),
        _ => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_segment_round_trips_through_a_plain_zstd_reader() {
        let raw: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for threads in [1, 2, 5] {
            let compressor = WalCompressor::new(1, threads);
            // The second one finds the buffers of the first.
            for size in [12_000_000, 5_000_000, 1, 0] {
                let (digest, stored) = compressor.compress(&raw[..], size as u64).unwrap();
                assert_eq!(zstd::decode_all(&stored[..]).unwrap(), raw[..size]);
                assert_eq!(digest, RawDigest::of(&raw[..size]));
                assert_eq!(digest_of_note(&stored[..]).unwrap(), Some(digest));
            }
        }
    }

    #[test]
    fn a_segment_that_ends_early_is_no_segment() {
        for threads in [1, 2] {
            let error = WalCompressor::new(1, threads).compress(&[1; 999][..], 1000).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn c18_a_frame_has_exactly_its_size_and_nothing_behind_it() {
        let mut frame = FrameCompressor::new(3).compress(&[5; 1000]).unwrap();
        assert_eq!(decompress_frame(&frame, 1000).unwrap(), [5; 1000]);
        assert!(decompress_frame(&frame, 999).is_err());
        assert!(decompress_frame(&frame, 1001).is_err());
        let twice = [frame.clone(), frame.clone()].concat();
        assert!(decompress_frame(&twice, 2000).is_err());
        frame.push(0);
        assert!(decompress_frame(&frame, 1000).is_err());
    }

    #[test]
    fn objects_without_a_note_have_no_digest() {
        for bytes in [&b""[..], b"\x5e\x2a\x4d\x18", &[0; 100], b"\x5e\x2a\x4d\x18\xff\xff\xff\xff"] {
            assert_eq!(digest_of_note(bytes).unwrap(), None);
        }
    }
}
