//! A segment that is being received: its bytes in a file, and which of them are stored.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use pgark_postgres::{Lsn, SegmentName, SegmentSize};
use pgark_repository::WalPiece;

/// A piece is in memory while it is stored.
const LARGEST_PIECE: u32 = 4 << 20;
/// So many pieces of one level become one of the next, so that a slow segment has some dozens of pieces, not thousands.
const FAN_IN: usize = 16;

/// A stored piece.
#[derive(Debug, Clone, Copy)]
struct Stored {
    piece: WalPiece,
    level: u32,
}

/// A piece that is to be stored next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextPiece {
    pub(crate) piece: WalPiece,
    /// How many of the stored pieces remain beside it.
    keep: usize,
    level: u32,
}

/// A segment that is not stored as a whole yet.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) name: SegmentName,
    size: SegmentSize,
    bytes: Arc<Spooled>,
    pub(crate) received: u32,
    /// Everything below is in pieces.
    pub(crate) durable: u32,
    pieces: Vec<Stored>,
    pub(crate) piece_under_way: bool,
    pub(crate) segment_under_way: bool,
    pub(crate) is_stored: bool,
    /// Nothing more is to come although it is not full: the timeline ended in it.
    pub(crate) has_ended: bool,
    last_piece: Option<Instant>,
}

impl OpenSegment {
    pub(crate) fn begin(name: SegmentName, size: SegmentSize, folder: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            name,
            size,
            bytes: Arc::new(Spooled::create(folder, name)?),
            received: 0,
            durable: 0,
            pieces: Vec::new(),
            piece_under_way: false,
            segment_under_way: false,
            is_stored: false,
            has_ended: false,
            last_piece: None,
        })
    }

    /// Takes what belongs into this segment, and returns how much that was.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> anyhow::Result<usize> {
        let room = self.length() - self.received;
        let taken = bytes.len().min(room as usize);
        let part = &bytes[..taken];
        self.bytes.file.write_all_at(part, self.received.into()).with_context(|| self.bytes.failed("write"))?;
        self.received += u32::try_from(taken)?;
        Ok(taken)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.received == self.length()
    }

    /// Whether nothing is left to do for it.
    pub(crate) fn is_done(&self) -> bool {
        self.is_stored || (self.has_ended && self.durable == self.received)
    }

    /// How far it is in every repository.
    pub(crate) fn durable_lsn(&self) -> Lsn {
        let offset = if self.is_stored { self.length() } else { self.durable };
        self.name.start(self.size).saturating_add(offset.into())
    }

    /// When the next piece is due; `None` when there is nothing new, or something is under way.
    pub(crate) fn piece_due(&self, interval: Duration, bytes: u64, now: Instant) -> Option<Instant> {
        if self.piece_under_way || self.received == self.durable || self.is_complete() {
            return None;
        }
        match self.last_piece {
            Some(last) if u64::from(self.received - self.durable) < bytes && !self.has_ended => Some(last + interval),
            _ => Some(now),
        }
    }

    /// The piece with what is new, and perhaps with what several small ones hold.
    pub(crate) fn next_piece(&mut self) -> NextPiece {
        let (mut start, mut keep, mut level) = (self.durable, self.pieces.len(), 0);
        loop {
            let before =
                self.pieces[..keep].iter().rev().take(FAN_IN - 1).take_while(|stored| stored.level == level).count();
            let Some(first) = (before + 1 >= FAN_IN).then(|| self.pieces[keep - before].piece.start) else { break };
            if self.received - first > LARGEST_PIECE {
                break;
            }
            (start, keep, level) = (first, keep - before, level + 1);
        }
        let end = self.received.min(start + LARGEST_PIECE);
        self.piece_under_way = true;
        self.last_piece = Some(Instant::now());
        NextPiece { piece: WalPiece { start, end }, keep, level }
    }

    /// Notes that a piece is stored, and returns whether it replaces others.
    pub(crate) fn piece_stored(&mut self, next: NextPiece) -> bool {
        let replaces = next.keep < self.pieces.len();
        self.pieces.truncate(next.keep);
        self.pieces.push(Stored { piece: next.piece, level: next.level });
        self.durable = next.piece.end;
        self.piece_under_way = false;
        replaces
    }

    /// The pieces that hold everything up to [`Self::durable`].
    pub(crate) fn pieces(&self) -> Vec<WalPiece> {
        self.pieces.iter().map(|stored| stored.piece).collect()
    }

    /// What was received from offset `start` on.
    pub(crate) fn bytes_from(&self, start: u32) -> impl Read + Send + 'static {
        SpooledReader { spooled: Arc::clone(&self.bytes), offset: start.into() }
    }

    fn length(&self) -> u32 {
        // A segment has at most 1 GB.
        u32::try_from(self.size.bytes()).unwrap_or(u32::MAX)
    }
}

/// The bytes of a segment in a file, which goes away with this value.
#[derive(Debug)]
struct Spooled {
    file: File,
    path: PathBuf,
}

impl Spooled {
    fn create(folder: &Path, name: SegmentName) -> anyhow::Result<Self> {
        // A number of its own, because an earlier one of this segment may still be read.
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = folder.join(format!("{name}.{}.{count}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("create {}", path.display()))?;
        Ok(Self { file, path })
    }

    fn failed(&self, operation: &str) -> String {
        format!("{operation} {}", self.path.display())
    }
}

struct SpooledReader {
    spooled: Arc<Spooled>,
    offset: u64,
}

impl Read for SpooledReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.spooled.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // A file that stays is removed at the next start.
        let _ignored = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn open() -> (tempfile_folder::Folder, OpenSegment) {
        let folder = tempfile_folder::Folder::new();
        let name = SegmentName::containing(pgark_postgres::TimelineId::FIRST, Lsn::new(5 << 24), SegmentSize::DEFAULT);
        let segment = OpenSegment::begin(name, SegmentSize::DEFAULT, &folder.0).unwrap();
        (folder, segment)
    }

    mod tempfile_folder {
        pub(super) struct Folder(pub(super) std::path::PathBuf);

        impl Folder {
            pub(super) fn new() -> Self {
                let name = format!("pgark-open-segment-{}-{:?}", std::process::id(), std::thread::current().id());
                let path = std::env::temp_dir().join(name);
                std::fs::create_dir_all(&path).unwrap();
                Self(path)
            }
        }

        impl Drop for Folder {
            fn drop(&mut self) {
                std::fs::remove_dir_all(&self.0).unwrap();
            }
        }
    }

    #[test]
    fn many_small_pieces_become_few() {
        let (_folder, mut segment) = open();
        let mut stored = 0;
        for _ in 0..10_000 {
            segment.append(&[1; 100]).unwrap();
            let next = segment.next_piece();
            assert_eq!(next.piece.end, segment.received);
            stored += u64::from(next.piece.end - next.piece.start);
            segment.piece_stored(next);
            let pieces = segment.pieces();
            assert!(pieces.len() <= 4 * FAN_IN, "{}", pieces.len());
            assert_eq!(pieces[0].start, 0);
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start), "{pieces:?}");
        }
        assert!(stored < 5 * 1_000_000, "{stored} bytes were stored for 1,000,000");
    }

    /// What is received again after a restart is a large piece in front of the small ones.
    #[test]
    fn small_pieces_become_few_behind_a_large_one() {
        let (_folder, mut segment) = open();
        segment.append(&vec![1; 5 << 20]).unwrap();
        while segment.durable < segment.received {
            let next = segment.next_piece();
            segment.piece_stored(next);
        }
        for _ in 0..2000 {
            segment.append(&[1; 100]).unwrap();
            let next = segment.next_piece();
            segment.piece_stored(next);
            assert!(segment.pieces().len() <= 4 * FAN_IN + 2, "{}", segment.pieces().len());
        }
    }

    #[test]
    fn no_piece_is_larger_than_memory_allows() {
        let (_folder, mut segment) = open();
        assert_eq!(segment.append(&vec![1; 20 << 20]).unwrap(), 16 << 20);
        assert!(segment.is_complete());
        while segment.durable < segment.received {
            let next = segment.next_piece();
            assert!(next.piece.end - next.piece.start <= LARGEST_PIECE);
            segment.piece_stored(next);
        }
        assert_eq!(segment.pieces().len(), 4);
    }

    #[test]
    fn a_piece_is_due_after_the_interval_or_when_there_is_much() {
        let (_folder, mut segment) = open();
        let (interval, now) = (Duration::from_secs(1), Instant::now());
        let due = |segment: &OpenSegment| segment.piece_due(interval, 1000, now);
        assert_eq!(due(&segment), None);
        segment.append(&[1; 10]).unwrap();
        assert_eq!(due(&segment), Some(now));
        let next = segment.next_piece();
        assert_eq!(due(&segment), None);
        segment.piece_stored(next);
        segment.append(&[1; 10]).unwrap();
        assert!(due(&segment) > Some(now));
        segment.append(&[1; 1000]).unwrap();
        assert_eq!(due(&segment), Some(now));
    }
}
