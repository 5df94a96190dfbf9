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

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, compress_bound};

use crate::digest::RawDigest;

/// Raw bytes of one frame; the last of a part or segment is shorter.
pub const FRAME_BYTES: usize = 4 << 20;

/// No frame of so many raw bytes is longer (zstd's own bound is 16 KiB above them).
pub(crate) const MAX_STORED_FRAME: usize = FRAME_BYTES + (64 << 10);

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

    /// Compresses `raw` (at most [`FRAME_BYTES`] for a part) into one frame.
    pub(crate) fn compress(&self, raw: &[u8]) -> io::Result<Vec<u8>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (mut compressor, mut buffer) = match idle {
            Some(idle) => idle,
            None => (self.context()?, Vec::new()),
        };
        buffer.clear();
        buffer.reserve(compress_bound(raw.len()));
        compressor.compress_to_buffer(raw, &mut buffer)?;
        let frame = buffer.as_slice().to_vec();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((compressor, buffer));
        Ok(frame)
    }

    fn context(&self) -> io::Result<Compressor<'static>> {
        let mut compressor = Compressor::new(self.level)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
        Ok(compressor)
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

/// Compresses a WAL segment: the note, then its frames, made by as many threads.
pub(crate) fn compress_segment(raw: &[u8], level: i32, digest: &RawDigest, threads: usize) -> io::Result<Vec<u8>> {
    let mut output = note(digest);
    let chunk = raw.len().div_ceil(threads.max(1)).max(1);
    let compressor = FrameCompressor::new(level);
    let frames: Vec<io::Result<Vec<u8>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = raw
            .chunks(chunk)
            .map(|chunk| {
                let compressor = &compressor;
                scope.spawn(move || compressor.compress(chunk))
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err(io::Error::other("a compression thread died"))))
            .collect()
    });
    for frame in frames {
        output.extend_from_slice(&frame?);
    }
    Ok(output)
}

fn note(digest: &RawDigest) -> Vec<u8> {
    let text = format!("{NOTE_TAG} {} {}", digest.hex(), digest.size);
    let mut note = NOTE_MAGIC.to_vec();
    note.extend_from_slice(&u32::try_from(text.len()).unwrap_or(NOTE_LIMIT).to_le_bytes());
    note.extend_from_slice(text.as_bytes());
    note
}

/// Puts the right digest into a note that was written with a digest of the same size.
pub(crate) fn with_digest(mut content: Vec<u8>, digest: &RawDigest) -> Vec<u8> {
    let note = note(digest);
    content[..note.len()].copy_from_slice(&note);
    content
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
        let digest = RawDigest::of(&raw);
        for threads in [1, 2, 5] {
            let stored = compress_segment(&raw, 1, &digest, threads).unwrap();
            assert_eq!(zstd::decode_all(&stored[..]).unwrap(), raw);
            assert_eq!(digest_of_note(&stored[..]).unwrap(), Some(digest.clone()));
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
