//! Where every object lives. The only place that builds or takes apart a key.
//!
//! ```text
//! <cluster>/check/probe
//! <cluster>/<system identifier>/backups/<backup id>/started.json
//!                                                  /parts/000001.tar.zst[.age]
//!                                                  /included/000001.tar.zst[.age]
//!                                                  /backup_manifest.zst[.age]
//!                                                  /index.jsonl.zst[.age]
//!                                                  /backup.json
//!                                                  /hold.json
//!                              /wal/<timeline>/<log>/<segment>.zst[.age]
//!                              /wal/<timeline>/<log>/<segment>.partial.zst[.age]
//!                              /wal/<timeline>/<log>/<segment>.partial/<start>-<end>.zst[.age]
//!                              /wal/<timeline>/<log>/<segment>.<offset>.backup[.age]
//!                              /wal/<timeline>.history[.age]
//!                              /proofs/<time>-<kind>-<8 hex digits>.json   (in the place of proofs only)
//! ```

use std::fmt;

use pgark_postgres::{SegmentName, SystemIdentifier, TimelineId, WalFileName};

use crate::backup_id::BackupId;

/// The name of an object below a repository's URL: ASCII letters, digits, `.`, `_`, `-` and `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Takes a key that a listing returned or that this module built.
    pub(crate) fn new(key: String) -> Self {
        Self(key)
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part behind the last slash.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The part behind a folder's key; all of it when it lies elsewhere.
    #[must_use]
    pub fn name_in(&self, folder: &Self) -> &str {
        self.0.strip_prefix(folder.as_str()).unwrap_or(&self.0).trim_start_matches('/')
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether an object is encrypted, which its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// The object is as zstd or the plain writer left it.
    Plain,
    /// The object is an age file around it.
    Age,
}

impl Sealing {
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Age => ".age",
        }
    }

    /// Reads the sealing from an object's name.
    #[must_use]
    pub fn of(key: &ObjectKey) -> Self {
        if key.as_str().ends_with(".age") { Self::Age } else { Self::Plain }
    }
}

/// Checks a cluster's name: one path component of harmless characters.
#[must_use]
pub fn is_cluster_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !name.starts_with('.')
}

/// The keys of one cluster with one system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKeys {
    prefix: String,
}

impl ClusterKeys {
    /// The keys below `<cluster>/<system identifier>`.
    #[must_use]
    pub fn new(cluster: &str, system_identifier: SystemIdentifier) -> Self {
        Self { prefix: format!("{cluster}/{system_identifier}") }
    }

    /// The folder that holds the folders of all system identifiers of a cluster.
    #[must_use]
    pub fn cluster(cluster: &str) -> ObjectKey {
        ObjectKey(cluster.to_owned())
    }

    /// The object that tells what a repository allows; it means nothing otherwise.
    #[must_use]
    pub fn probe(cluster: &str) -> ObjectKey {
        ObjectKey(format!("{cluster}/check/probe"))
    }

    /// The folder of everything that belongs to this system identifier.
    #[must_use]
    pub fn root(&self) -> ObjectKey {
        ObjectKey(self.prefix.clone())
    }

    /// The folder that holds a folder for each backup.
    #[must_use]
    pub fn backups(&self) -> ObjectKey {
        ObjectKey(format!("{}/backups", self.prefix))
    }

    /// The folder of one backup.
    #[must_use]
    pub fn backup_folder(&self, id: &BackupId) -> ObjectKey {
        ObjectKey(format!("{}/backups/{id}", self.prefix))
    }

    fn in_backup(&self, id: &BackupId, name: &str) -> ObjectKey {
        ObjectKey(format!("{}/backups/{id}/{name}", self.prefix))
    }

    /// The object that claims a backup's id.
    #[must_use]
    pub fn started(&self, id: &BackupId) -> ObjectKey {
        self.in_backup(id, "started.json")
    }

    /// The commit mark of a backup.
    #[must_use]
    pub fn backup(&self, id: &BackupId) -> ObjectKey {
        self.in_backup(id, "backup.json")
    }

    /// The object that holds a backup.
    #[must_use]
    pub fn hold(&self, id: &BackupId) -> ObjectKey {
        self.in_backup(id, "hold.json")
    }

    /// A part of a backup; numbers begin at 1.
    #[must_use]
    pub fn part(&self, id: &BackupId, number: u32, sealing: Sealing) -> ObjectKey {
        self.in_backup(id, &format!("parts/{number:06}.tar.zst{}", sealing.suffix()))
    }

    /// A directory outside of the data directory that was taken along with a backup.
    #[must_use]
    pub fn included(&self, id: &BackupId, number: u32, sealing: Sealing) -> ObjectKey {
        self.in_backup(id, &format!("included/{number:06}.tar.zst{}", sealing.suffix()))
    }

    /// PostgreSQL's own manifest of a backup.
    #[must_use]
    pub fn manifest(&self, id: &BackupId, sealing: Sealing) -> ObjectKey {
        self.in_backup(id, &format!("backup_manifest.zst{}", sealing.suffix()))
    }

    /// The index of a backup's files and frames.
    #[must_use]
    pub fn index(&self, id: &BackupId, sealing: Sealing) -> ObjectKey {
        self.in_backup(id, &format!("index.jsonl.zst{}", sealing.suffix()))
    }

    /// The folder of the proofs of drills and verifications, in a place that readers of backups may write to.
    #[must_use]
    pub fn proofs(&self) -> ObjectKey {
        ObjectKey(format!("{}/proofs", self.prefix))
    }

    /// A proof; `name` begins with its time, so that names sort as proofs were made.
    #[must_use]
    pub(crate) fn proof(&self, name: &str) -> ObjectKey {
        ObjectKey(format!("{}/proofs/{name}.json", self.prefix))
    }

    /// The folder of all archived WAL.
    #[must_use]
    pub fn wal(&self) -> ObjectKey {
        ObjectKey(format!("{}/wal", self.prefix))
    }

    /// The folder of one timeline's segments.
    #[must_use]
    pub fn timeline(&self, timeline: TimelineId) -> ObjectKey {
        ObjectKey(format!("{}/wal/{}", self.prefix, timeline.hex()))
    }

    /// The folder of the pieces of a segment that is being written.
    #[must_use]
    pub fn wal_pieces(&self, segment: &SegmentName) -> ObjectKey {
        ObjectKey(format!("{}/wal/{}/{:08X}/{segment}.partial", self.prefix, segment.timeline.hex(), segment.log))
    }

    /// One piece of a segment that is being written.
    #[must_use]
    pub fn wal_piece(&self, segment: &SegmentName, piece: WalPiece, sealing: Sealing) -> ObjectKey {
        let WalPiece { start, end } = piece;
        ObjectKey(format!("{}/{start:08X}-{end:08X}.zst{}", self.wal_pieces(segment), sealing.suffix()))
    }

    /// The object of one archived file.
    #[must_use]
    pub fn wal_file(&self, name: &WalFileName, sealing: Sealing) -> ObjectKey {
        let suffix = sealing.suffix();
        let folder =
            |segment: &SegmentName| format!("{}/wal/{}/{:08X}", self.prefix, segment.timeline.hex(), segment.log);
        ObjectKey(match name {
            WalFileName::Segment(segment) => {
                format!("{}/{segment}.zst{suffix}", folder(segment))
            }
            WalFileName::Partial(segment) => {
                format!("{}/{segment}.partial.zst{suffix}", folder(segment))
            }
            WalFileName::BackupHistory { segment, offset } => {
                format!("{}/{segment}.{offset:08X}.backup{suffix}", folder(segment))
            }
            WalFileName::History(timeline) => {
                format!("{}/wal/{}.history{suffix}", self.prefix, timeline.hex())
            }
        })
    }
}

/// Which bytes of its segment a piece holds: from `start` up to and without `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalPiece {
    /// The offset of the first byte.
    pub start: u32,
    /// The offset behind the last byte.
    pub end: u32,
}

/// Reads back the id of the backup that an object belongs to, and its name in the backup's folder; `None` for anything
/// else.
#[must_use]
pub fn backup_file_of(key: &ObjectKey) -> Option<(BackupId, &str)> {
    let (_, rest) = key.as_str().split_once("/backups/")?;
    let (id, name) = rest.split_once('/')?;
    Some((id.parse().ok()?, name))
}

/// Reads a piece and its segment back from an object's key; `None` for anything else.
#[must_use]
pub fn wal_piece_of(key: &ObjectKey) -> Option<(SegmentName, WalPiece, Sealing)> {
    let (folder, name) = key.as_str().rsplit_once('/')?;
    let segment = folder.rsplit('/').next()?.strip_suffix(".partial")?;
    let WalFileName::Segment(segment) = segment.parse().ok()? else { return None };
    let range = name.strip_suffix(Sealing::of(key).suffix())?.strip_suffix(".zst")?;
    let (start, end) = range.split_once('-')?;
    let offset = |text: &str| {
        let is_offset = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        u32::from_str_radix(text, 16).ok().filter(|_| is_offset)
    };
    let piece = WalPiece { start: offset(start)?, end: offset(end)? };
    (piece.start < piece.end && piece.end <= LARGEST_SEGMENT).then_some((segment, piece, Sealing::of(key)))
}

/// PostgreSQL has no larger segments.
const LARGEST_SEGMENT: u32 = 1 << 30;

/// Reads the archived file's name back from an object's key; `None` for anything else.
#[must_use]
pub fn wal_file_of(key: &ObjectKey) -> Option<(WalFileName, Sealing)> {
    let name = key.file_name();
    let (name, sealing) = match name.strip_suffix(".age") {
        Some(name) => (name, Sealing::Age),
        None => (name, Sealing::Plain),
    };
    let file: WalFileName = name.strip_suffix(".zst").unwrap_or(name).parse().ok()?;
    let compressed = matches!(file, WalFileName::Segment(_) | WalFileName::Partial(_));
    (compressed == name.ends_with(".zst")).then_some((file, sealing))
}
