//! The segment that is being written, in pieces: what makes the last second of WAL survive its host.
//!
//! A piece holds a range of the segment's bytes, as its name says. Whoever streams WAL creates pieces, larger ones that
//! replace several smaller ones, and deletes all of them when the whole segment is stored. A writer that starts again
//! begins at the start of the segment, so pieces overlap. Where they do they must agree, byte for byte: the server may
//! have lost the end of its WAL in a crash and written another one. What is assembled ends with the last byte that all
//! pieces agree on, and at the first hole.

use std::io::{self, Read};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use pgark_postgres::{SegmentName, WalFileName};

use super::WalStored;
use crate::cluster::ClusterRepository;
use crate::compression::WalCompressor;
use crate::digest::RawDigest;
use crate::error::{ErrorKind, RepositoryError, Result};
use crate::keys::{Sealing, WalPiece, wal_piece_of};

/// How often pieces are listed again when one of them was replaced meanwhile.
const ATTEMPTS: usize = 5;

/// Pieces that are read at once: a host that died among many small commits has left many small ones.
const READ_AT_ONCE: usize = 16;

/// A piece that is ready to be stored.
#[derive(Debug, Clone)]
pub struct PreparedPiece {
    segment: SegmentName,
    piece: WalPiece,
    digest: RawDigest,
    content: Bytes,
}

impl PreparedPiece {
    /// Digests and compresses a range of a segment while it is read from `input`. Blocking.
    ///
    /// # Errors
    /// When `input` fails or ends early, or zstd fails.
    pub fn read(
        compressor: &WalCompressor,
        segment: SegmentName,
        piece: WalPiece,
        input: impl Read,
    ) -> io::Result<Self> {
        let (digest, content) = compressor.compress(input, piece.end.saturating_sub(piece.start).into())?;
        Ok(Self { segment, piece, digest, content: content.into() })
    }

    /// The segment that it is a piece of.
    #[must_use]
    pub fn segment(&self) -> SegmentName {
        self.segment
    }

    /// How many bytes are stored of it, but for encryption.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    /// Which bytes it holds.
    #[must_use]
    pub fn piece(&self) -> WalPiece {
        self.piece
    }
}

/// What a listing tells of a segment of which only pieces are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenSegment {
    /// The pieces, in order of their starts.
    pieces: Vec<WalPiece>,
    /// Stored bytes of all of them.
    stored_size: u64,
}

impl OpenSegment {
    /// Adds a piece.
    pub fn add(&mut self, piece: WalPiece, stored_size: u64) {
        let place = self.pieces.partition_point(|other| *other < piece);
        self.pieces.insert(place, piece);
        self.stored_size += stored_size;
    }

    /// How many bytes from the segment's start on are there without a hole.
    #[must_use]
    pub fn covered(&self) -> u32 {
        let extend =
            |covered: u32, piece: &WalPiece| if piece.start <= covered { covered.max(piece.end) } else { covered };
        self.pieces.iter().fold(0, extend)
    }

    /// Where the bytes stop although there are later ones: a piece between them is missing.
    #[must_use]
    pub fn hole(&self) -> Option<(u32, u32)> {
        let covered = self.covered();
        self.pieces.iter().find(|piece| piece.start > covered).map(|piece| (covered, piece.start))
    }

    /// Stored bytes of all pieces.
    #[must_use]
    pub fn stored_size(&self) -> u64 {
        self.stored_size
    }
}

impl ClusterRepository {
    /// Stores a piece; durable on return.
    ///
    /// # Errors
    /// `Conflict` when the same range is there with other bytes; or as
    /// [`ClusterRepository::store_wal_file`].
    pub async fn store_wal_piece(&self, piece: &PreparedPiece) -> Result<WalStored> {
        let key = self.keys().wal_piece(&piece.segment, piece.piece, self.sealing());
        self.create_wal_object(&key, WalFileName::Segment(piece.segment), &piece.digest, &piece.content).await
    }

    /// The pieces that are there of a segment, in order of their starts.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn wal_pieces(&self, segment: SegmentName) -> Result<Vec<(WalPiece, Sealing)>> {
        let (objects, _) = self.store().list_folder(&self.keys().wal_pieces(&segment)).await?;
        let mut pieces: Vec<_> = objects
            .iter()
            .filter_map(|object| wal_piece_of(&object.key).map(|(_, piece, sealing)| (piece, sealing)))
            .collect();
        pieces.sort_by_key(|(piece, _)| *piece);
        Ok(pieces)
    }

    /// The pieces that are there of a segment, with their sizes.
    pub(super) async fn open_segment(&self, segment: SegmentName) -> Result<OpenSegment> {
        let (objects, _) = self.store().list_folder(&self.keys().wal_pieces(&segment)).await?;
        let mut open = OpenSegment::default();
        for object in objects {
            if let Some((_, piece, _)) = wal_piece_of(&object.key) {
                open.add(piece, object.size);
            }
        }
        Ok(open)
    }

    /// Deletes a piece whose bytes are also in another object, or are not the server's any more.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn delete_wal_piece(&self, segment: SegmentName, piece: WalPiece, sealing: Sealing) -> Result<()> {
        self.store().delete(&self.keys().wal_piece(&segment, piece, sealing)).await
    }

    /// Puts the pieces of a segment together: its bytes from its start on, as far as they go. `None` when there are
    /// none, also because the whole segment has been stored meanwhile.
    ///
    /// # Errors
    /// `Damaged`, `NoKey`, or when the store fails.
    pub async fn assemble_segment(&self, segment: SegmentName) -> Result<Option<Vec<u8>>> {
        let mut attempt = 1;
        loop {
            match self.assemble_what_is_listed(segment).await {
                // It was deleted, so another one holds its bytes now.
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
                Ok(bytes) => return Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
                Err(error) => return Err(error),
            }
        }
    }

    async fn assemble_what_is_listed(&self, segment: SegmentName) -> Result<Vec<u8>> {
        let mut bytes: Vec<u8> = Vec::new();
        let pieces = self.wal_pieces(segment).await?;
        let mut reads = stream::iter(pieces)
            .map(|(piece, sealing)| async move {
                let length = (piece.end - piece.start) as usize;
                self.read_piece(segment, piece, sealing, length).await.map(|raw| (piece.start as usize, raw))
            })
            .buffered(READ_AT_ONCE);
        while let Some(read) = reads.next().await {
            let (start, raw) = read?;
            if start > bytes.len() {
                break;
            }
            let there = bytes.get(start..).unwrap_or_default();
            let agreed = there.iter().zip(&raw).take_while(|(one, other)| one == other).count();
            if agreed < there.len().min(raw.len()) {
                bytes.truncate(start + agreed);
                break;
            }
            bytes.extend_from_slice(raw.get(agreed..).unwrap_or_default());
        }
        Ok(bytes)
    }

    async fn read_piece(
        &self,
        segment: SegmentName,
        piece: WalPiece,
        sealing: Sealing,
        length: usize,
    ) -> Result<Vec<u8>> {
        let key = self.keys().wal_piece(&segment, piece, sealing);
        let output = Limited { bytes: Vec::new(), limit: length };
        let read = self.read_wal_object(key.clone(), WalFileName::Segment(segment), output).await;
        match read {
            Ok((output, _)) if output.bytes.len() == length => Ok(output.bytes),
            Ok((output, _)) => {
                Err(self.store().damaged(&key, format!("it holds {} bytes and not {length}", output.bytes.len())))
            }
            Err(RepositoryError::Io { .. }) => {
                Err(self.store().damaged(&key, format!("it holds more than {length} bytes")))
            }
            Err(error) => Err(error),
        }
    }
}

/// A piece in memory, never longer than its name says.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than its name says"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
