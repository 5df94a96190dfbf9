//! Archived WAL: segments, partial segments, backup history files and timeline histories.

mod history_note;
mod pieces;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use bytes::Bytes;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use pgark_postgres::{SegmentName, TimelineHistory, TimelineId, WalFileName};

use crate::cluster::{ClusterRepository, OpenedObject, read_failure};
use crate::compression::{WalCompressor, digest_of_note};
use crate::digest::RawDigest;
use crate::encryption::read_note;
use crate::error::{RepositoryError, Result};
use crate::keys::{ObjectKey, Sealing, wal_file_of, wal_piece_of};
use crate::store::Creation;

pub use self::pieces::{OpenSegment, PreparedPiece};
pub use self::place::WalPlace;

/// Bytes at the beginning of an encrypted object that surely hold its header.
pub(crate) const HEADER_BYTES: u64 = 16 << 10;
/// No history or backup history file is larger.
const SMALL_FILE_LIMIT: u64 = 16 << 20;

/// A file that is ready to be stored, in as many repositories as there are.
#[derive(Debug, Clone)]
pub struct PreparedWalFile {
    name: WalFileName,
    digest: RawDigest,
    content: Bytes,
}

impl PreparedWalFile {
    /// Digests and compresses a file, on up to `threads` threads. Blocking.
    ///
    /// # Errors
    /// When zstd fails.
    pub fn prepare(name: WalFileName, raw: &[u8], level: i32, threads: usize) -> io::Result<Self> {
        match name {
            WalFileName::History(timeline) => {
                let digest = RawDigest::of(raw);
                let content = history_note::with_note(timeline, raw, &digest).into();
                Ok(Self { name, digest, content })
            }
            // For people only: no recovery reads it.
            WalFileName::BackupHistory { .. } => {
                Ok(Self { name, digest: RawDigest::of(raw), content: Bytes::copy_from_slice(raw) })
            }
            WalFileName::Segment(_) | WalFileName::Partial(_) => {
                Self::read(&WalCompressor::new(level, threads), name, raw, raw.len() as u64)
            }
        }
    }

    /// Digests and compresses the `size` bytes of a segment while they are read. Blocking.
    ///
    /// # Errors
    /// When `input` fails or ends early, or zstd fails.
    pub fn read(compressor: &WalCompressor, segment: WalFileName, input: impl Read, size: u64) -> io::Result<Self> {
        let (digest, content) = compressor.compress(input, size)?;
        Ok(Self { name: segment, digest, content: content.into() })
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &WalFileName {
        &self.name
    }

    /// How many bytes are stored of it, but for encryption.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    /// What identifies its raw content.
    #[must_use]
    pub fn digest(&self) -> &RawDigest {
        &self.digest
    }
}

/// How storing a WAL file ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStored {
    /// It is new.
    New,
    /// The same content was there already, and is durable.
    AlreadyThere,
}

impl ClusterRepository {
    /// Creates an object of WAL, or settles what is there under its key.
    async fn create_wal_object(
        &self,
        key: &ObjectKey,
        name: WalFileName,
        digest: &RawDigest,
        content: &Bytes,
    ) -> Result<WalStored> {
        let bytes = match Sealing::of(key) {
            Sealing::Plain => content.clone(),
            Sealing::Age => self
                .recipients()
                .encrypt_bytes(content, digest)
                .map_err(|error| RepositoryError::Input(format!("encrypting {key} failed: {error}")))?,
        };
        match self.store().create(key, bytes).await? {
            Creation::Created => Ok(WalStored::New),
            Creation::Identical => Ok(WalStored::AlreadyThere),
            Creation::Different => {
                let size = self.store().size(key).await?.unwrap_or(0);
                self.compare_wal_file(key, size, name, digest).await
            }
        }
    }

    /// Settles whether an object that was there holds the same file, wholly.
    async fn compare_wal_file(
        &self,
        key: &ObjectKey,
        size: u64,
        name: WalFileName,
        expected: &RawDigest,
    ) -> Result<WalStored> {
        let digest = self.digest_of(key, size, name).await?;
        if digest != *expected {
            return Err(RepositoryError::Conflict { repository: self.name().to_owned(), key: key.clone() });
        }
        self.store().settle(key).await?;
        Ok(WalStored::AlreadyThere)
    }

    /// What an object of WAL holds, after a check that it is whole.
    pub(crate) async fn stored_digest(&self, key: &ObjectKey, name: &WalFileName) -> Result<RawDigest> {
        let size = self.store().size(key).await?.unwrap_or(0);
        self.digest_of(key, size, *name).await
    }

    async fn digest_of(&self, key: &ObjectKey, size: u64, name: WalFileName) -> Result<RawDigest> {
        match Sealing::of(key) {
            Sealing::Age if size == 0 => Err(self.store().damaged(key, "it is empty")),
            Sealing::Age => {
                let head = self.store().read_range(key, 0, size.min(HEADER_BYTES)).await?;
                let note = read_note(&head[..]).map_err(|error| self.store().damaged(key, error.to_string()))?;
                let Some((note, whole)) = note else {
                    return Err(self.store().damaged(key, "its header does not say what it holds"));
                };
                if whole != size {
                    let reason = format!("it has {size} bytes and should have {whole}");
                    return Err(self.store().damaged(key, reason));
                }
                Ok(note.digest)
            }
            Sealing::Plain => Ok(self.read_wal_object(key.clone(), name, io::sink()).await?.1),
        }
    }

    /// Whether a WAL file is in the repository, encrypted or not.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached: then nothing is known.
    pub async fn has_wal_file(&self, name: &WalFileName) -> Result<bool> {
        // Who asks mostly expects neither.
        let keys = self.wal_file_keys(name);
        let sizes = try_join_all(keys.iter().map(|key| self.store().size(key))).await?;
        Ok(sizes.iter().any(Option::is_some))
    }

    /// Under which keys a WAL file may be: in the form that is written here, and in the other one.
    fn wal_file_keys(&self, name: &WalFileName) -> [ObjectKey; 2] {
        let other = match self.sealing() {
            Sealing::Plain => Sealing::Age,
            Sealing::Age => Sealing::Plain,
        };
        [self.sealing(), other].map(|sealing| self.keys().wal_file(name, sealing))
    }

    /// Writes a WAL file's raw content to `output`, checked against the digest that was stored with
    /// it, and gives `output` back. `None` means that the store proved that it is not there.
    ///
    /// # Errors
    /// `Damaged`, `NoKey`, or when the store or `output` fails; `output` may hold a part then.
    pub async fn fetch_wal_file<W: Write + Send + 'static>(&self, name: &WalFileName, output: W) -> Result<Option<W>> {
        for key in self.wal_file_keys(name) {
            match self.open_object(&key).await {
                Ok(object) => {
                    return self.copy_wal_object(key, object, *name, output).await.map(|(output, _)| Some(output));
                }
                Err(RepositoryError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(crate) async fn read_wal_object<W: Write + Send + 'static>(
        &self,
        key: ObjectKey,
        name: WalFileName,
        output: W,
    ) -> Result<(W, RawDigest)> {
        let object = self.open_object(&key).await?;
        self.copy_wal_object(key, object, name, output).await
    }

    async fn copy_wal_object<W: Write + Send + 'static>(
        &self,
        key: ObjectKey,
        object: OpenedObject,
        name: WalFileName,
        output: W,
    ) -> Result<(W, RawDigest)> {
        let store = self.store().clone();
        let task = tokio::task::spawn_blocking(move || {
            let read = match name {
                WalFileName::Segment(_) | WalFileName::Partial(_) => copy_segment(object, output),
                WalFileName::History(timeline) => copy_history(timeline, object, output),
                WalFileName::BackupHistory { .. } => copy_small(object, output),
            };
            read.map_err(|failure| match failure {
                CopyFailure::Read(error) => read_failure(&store, &key, error),
                CopyFailure::Write(source) => {
                    RepositoryError::Io { operation: "write", path: name.to_string(), source }
                }
            })
        });
        task.await.unwrap_or_else(|error| Err(RepositoryError::Input(error.to_string())))
    }

    /// Everything that is archived, from one listing.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn wal_inventory(&self) -> Result<WalInventory> {
        let mut inventory = WalInventory::default();
        for listed in self.store().list(&self.keys().wal()).await? {
            match wal_file_of(&listed.key) {
                Some((WalFileName::Segment(segment), _)) => {
                    inventory
                        .segments
                        .insert(segment, WholeSegment { stored_size: listed.size, stored: listed.stored });
                }
                Some((WalFileName::History(timeline), _)) => {
                    inventory.histories.insert(timeline);
                }
                Some((WalFileName::Partial(_) | WalFileName::BackupHistory { .. }, _)) => {}
                None => {
                    if let Some((segment, piece, _)) = wal_piece_of(&listed.key) {
                        inventory.open.entry(segment).or_default().add(piece, listed.size);
                    }
                }
            }
        }
        // Pieces may outlive the whole segment for a moment, or for good where nobody may delete.
        let (segments, superseded) = (&inventory.segments, &mut inventory.superseded);
        inventory.open.retain(|segment, _| {
            let is_open = !segments.contains_key(segment);
            superseded.extend((!is_open).then_some(*segment));
            is_open
        });
        for (segment, open) in inventory.open.iter_mut().filter(|(_, open)| open.hole().is_some()) {
            // A listing is not of one moment: it may have missed the piece that has replaced the one it lacks.
            *open = self.open_segment(*segment).await?;
        }
        Ok(inventory)
    }

    /// Reads a timeline's history; timeline 1 has none and needs none.
    ///
    /// # Errors
    /// `Damaged` when it does not parse; or as [`ClusterRepository::fetch_wal_file`].
    pub async fn timeline_history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        if timeline.get() == 1 {
            return Ok(Some(TimelineHistory::first()));
        }
        let name = WalFileName::History(timeline);
        let Some(content) = self.fetch_wal_file(&name, Vec::new()).await? else { return Ok(None) };
        TimelineHistory::parse(timeline, &content)
            .map(Some)
            .map_err(|error| self.store().damaged(&self.keys().wal_file(&name, self.sealing()), error.to_string()))
    }
}

/// A segment that is archived whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeSegment {
    /// Its size in bytes, as stored.
    pub stored_size: u64,
    /// When it was stored, by the clock of the store.
    pub stored: Timestamp,
}

/// What is archived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WalInventory {
    /// Whole segments, in order of timeline and position.
    pub segments: BTreeMap<SegmentName, WholeSegment>,
    /// Segments of which there are only pieces.
    pub open: BTreeMap<SegmentName, OpenSegment>,
    /// Whole segments of which there are still pieces.
    pub superseded: BTreeSet<SegmentName>,
    /// Timelines whose history is there.
    pub histories: BTreeSet<TimelineId>,
}

impl WalInventory {
    /// Adds what another repository holds of the same cluster.
    pub fn merge(&mut self, other: Self) {
        for (segment, whole) in other.segments {
            self.segments.entry(segment).or_insert(whole);
        }
        for (segment, open) in other.open {
            let own = self.open.entry(segment).or_default();
            if own.covered() < open.covered() {
                *own = open;
            }
        }
        let segments = &self.segments;
        self.open.retain(|segment, _| !segments.contains_key(segment));
        self.superseded.extend(other.superseded);
        self.histories.extend(other.histories);
    }
}

enum CopyFailure {
    Read(io::Error),
    Write(io::Error),
}

fn copy_segment<W: Write>(mut object: impl Read, output: W) -> std::result::Result<(W, RawDigest), CopyFailure> {
    let damaged = |reason: &str| CopyFailure::Read(io::Error::new(io::ErrorKind::InvalidData, reason));
    // The note is small: what was read of it is put back in front for zstd, which skips it.
    let mut head = Vec::new();
    (&mut object).take(256).read_to_end(&mut head).map_err(CopyFailure::Read)?;
    // Frames that were cut off at their border are whole to zstd: only the note tells.
    let expected = digest_of_note(&head[..]).map_err(CopyFailure::Read)?;
    let expected = expected.ok_or_else(|| damaged("the note at its beginning cannot be read"))?;
    let decoder = zstd::Decoder::new(io::Cursor::new(head).chain(object)).map_err(CopyFailure::Read)?;
    // A byte more than there should be is enough to know.
    let (output, found) = copy(decoder.take(expected.size.saturating_add(1)), output)?;
    if expected != found {
        return Err(damaged("its content does not match its digest"));
    }
    Ok((output, found))
}

fn copy_history<W: Write>(
    timeline: TimelineId,
    object: impl Read,
    output: W,
) -> std::result::Result<(W, RawDigest), CopyFailure> {
    let (stored, _) = copy_small(object, Vec::new())?;
    let raw = history_note::without_note(timeline, stored)
        .map_err(|reason| CopyFailure::Read(io::Error::new(io::ErrorKind::InvalidData, reason)))?;
    copy(&raw[..], output)
}

fn copy_small<W: Write>(object: impl Read, output: W) -> std::result::Result<(W, RawDigest), CopyFailure> {
    let (output, found) = copy(object.take(SMALL_FILE_LIMIT + 1), output)?;
    if found.size > SMALL_FILE_LIMIT {
        let reason = format!("it has more than {SMALL_FILE_LIMIT} bytes");
        return Err(CopyFailure::Read(io::Error::new(io::ErrorKind::InvalidData, reason)));
    }
    Ok((output, found))
}

fn copy<W: Write>(mut input: impl Read, mut output: W) -> std::result::Result<(W, RawDigest), CopyFailure> {
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyFailure::Read(error)),
        };
        hasher.update(&buffer[..read]);
        output.write_all(&buffer[..read]).map_err(CopyFailure::Write)?;
        size += read as u64;
    }
    Ok((output, RawDigest { blake3: hasher.finalize().into(), size }))
}
