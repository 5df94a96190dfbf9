//! `backup.json`, the commit mark, and `started.json`, the claim: plain JSON with a format number.
//! `docs/repository-format.md` describes every field.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use pgark_postgres::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backup_id::{BackupId, BackupKind};
use crate::cluster::ClusterRepository;
use crate::error::{RepositoryError, Result};
use crate::keys::{ObjectKey, Sealing};

/// The newest format of `backup.json` that this program reads, and the one that it writes.
pub const BACKUP_FORMAT: u64 = 1;
/// What stands in the place of the checksum while it is computed.
const BLANK_CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// A commit mark has a line a part: even 100 TB stay far below.
const BACKUP_LIMIT: u64 = 256 << 20;

/// A finished backup: the content of `backup.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// [`BACKUP_FORMAT`] of the writer.
    pub format: u64,
    /// The id, also the name of its folder.
    pub id: BackupId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// The backup that an incremental one builds on.
    pub parent: Option<BackupId>,
    /// The chain from which it was made; nothing where the server sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consolidated: Option<Consolidated>,
    /// The cluster's name.
    pub cluster: String,
    /// What the server said.
    pub server: ServerFacts,
    /// The timeline of the start position.
    pub timeline: TimelineId,
    /// Where recovery has to begin.
    pub start_lsn: Lsn,
    /// The timeline of the stop position; another one only on a standby that followed a promotion.
    pub stop_timeline: TimelineId,
    /// Where the restored cluster becomes consistent.
    pub stop_lsn: Lsn,
    /// The server's clock before the backup began.
    pub start_time: Timestamp,
    /// The server's clock after the backup ended: no earlier moment can be reached with it.
    pub stop_time: Timestamp,
    /// The first and the last segment that the backup needs to become consistent.
    pub wal: WalRange,
    /// Tablespaces besides the default ones.
    pub tablespaces: Vec<Tablespace>,
    /// The parts in order.
    pub parts: Vec<Part>,
    /// PostgreSQL's manifest.
    pub manifest: StoredFile,
    /// The index.
    pub index: StoredFile,
    /// SHA-256, 64 hex digits, of the block map that the host of the agent keeps for the next incremental backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_map: Option<String>,
    /// Directories outside of the data directory that were taken along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub included: Vec<Included>,
    /// Sums.
    pub totals: Totals,
    /// Public keys that it was encrypted to; empty when it was not.
    pub recipients: Vec<String>,
    /// What the user wrote down with it.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The server's words when it found damaged pages in the source while it sent them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged_pages: Option<String>,
    /// Files in which it found them, below the data directory; of very many only the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged_files: Vec<String>,
    /// The program that wrote it.
    pub written_by: String,
    /// SHA-256, 64 hex digits, over the whole object with zeros in this place. The last field.
    pub checksum: String,
}

impl Backup {
    /// The content of `backup.json`; computes the checksum.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub(crate) fn seal(&mut self) -> Result<Bytes> {
        BLANK_CHECKSUM.clone_into(&mut self.checksum);
        let json = to_json(self)?;
        self.checksum = sha256_hex(&json);
        let text = String::from_utf8_lossy(&json);
        Ok(with_checksum(&text, BLANK_CHECKSUM, &self.checksum).into())
    }

    /// Configuration files of the server that it does not hold.
    #[must_use]
    pub fn files_left_out(&self) -> Vec<&str> {
        self.server.files_left_out(self.included.iter().map(|included| included.directory.as_str()))
    }

    /// The size of the segments of its WAL; the default one where `backup.json` says none that PostgreSQL has.
    pub(crate) fn segment_size(&self) -> SegmentSize {
        SegmentSize::new(self.server.wal_segment_size.into()).unwrap_or(SegmentSize::DEFAULT)
    }

    /// Whether the segment is of its own WAL, between its start and its stop, which makes it consistent. This is
    /// all that expiry leaves behind a backup that is kept for itself.
    #[must_use]
    pub fn has_own_segment(&self, segment: &SegmentName) -> bool {
        let size = self.segment_size();
        (self.timeline..=self.stop_timeline).contains(&segment.timeline)
            && (self.wal.first.number(size)..=self.wal.last.number(size)).contains(&segment.number(size))
    }

    /// The backup that the server sent, with the SHA-256 of its manifest: for what is known of it outside of the
    /// repository.
    #[must_use]
    pub fn as_sent(&self) -> (&BackupId, &str) {
        match &self.consolidated {
            Some(Consolidated { from, manifest_sha256 }) => (from, manifest_sha256),
            None => (&self.id, &self.manifest.sha256),
        }
    }

    /// Whether its parts, manifest and index are encrypted.
    #[must_use]
    pub fn sealing(&self) -> Sealing {
        if self.recipients.is_empty() { Sealing::Plain } else { Sealing::Age }
    }
}

/// Puts another value into the last field.
fn with_checksum(json: &str, from: &str, to: &str) -> String {
    match json.rfind(from) {
        Some(at) => format!("{}{to}{}", &json[..at], &json[at + from.len()..]),
        None => json.to_owned(),
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A value as indented JSON with a newline at its end.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Bytes> {
    let mut json = serde_json::to_vec_pretty(value)
        .map_err(|error| RepositoryError::Input(format!("writing JSON failed: {error}")))?;
    json.push(b'\n');
    Ok(json.into())
}

/// What the server said of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// The cluster's system identifier.
    pub system_identifier: SystemIdentifier,
    /// `server_version_num`, as 150020.
    pub version_num: u32,
    /// Bytes of a WAL segment.
    pub wal_segment_size: u32,
    /// Mode of the data directory, as `0700`.
    pub data_directory_mode: String,
    /// Where the data directory was, for messages.
    pub data_directory: Option<String>,
    /// Configuration files outside the data directory.
    #[serde(default)]
    pub files_outside: Vec<String>,
    /// Whether data pages have checksums.
    pub data_checksums: bool,
    /// Whether it was a standby.
    pub standby: bool,
}

impl ServerFacts {
    /// Configuration files that lie neither in the data directory nor in one of these.
    pub fn files_left_out<'a>(&'a self, included: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let included: Vec<&str> = included.into_iter().collect();
        let is_left_out = |file: &&str| !included.iter().any(|directory| Path::new(file).starts_with(directory));
        self.files_outside.iter().map(String::as_str).filter(is_left_out).collect()
    }

    /// The major version, as 15.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

/// The segments that a backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    /// The segment that holds the start position.
    pub first: SegmentName,
    /// The segment that holds the last byte before the stop position.
    pub last: SegmentName,
}

/// A tablespace besides the default ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it was; bytes that are not UTF-8 are shown as U+FFFD (the true ones are in
    /// `tablespace_map`).
    pub location: String,
    /// Whether it lies in the data directory itself (`allow_in_place_tablespaces`).
    pub in_place: bool,
}

/// The chain from which a full backup was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consolidated {
    /// The last backup of the chain.
    pub from: BackupId,
    /// SHA-256 over its manifest, 64 hex digits. The server knows this one: what it sends for an incremental backup that
    /// builds on it builds on this backup as well.
    pub manifest_sha256: String,
}

/// One part of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// Bytes of the tar archive.
    pub raw_size: u64,
    /// Bytes as stored.
    pub stored_size: u64,
    /// CRC-32 over the stored bytes, 8 hex digits.
    pub crc32: String,
}

/// An object of a backup besides its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Its name in the backup's folder.
    pub name: String,
    /// Bytes as stored.
    pub stored_size: u64,
    /// CRC-32 over the stored bytes, 8 hex digits.
    pub crc32: String,
    /// SHA-256 over the raw content, 64 hex digits.
    pub sha256: String,
}

/// A directory outside of the data directory, such as one with configuration, in a tar archive of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Included {
    /// Its absolute path on the host that took the backup.
    pub directory: String,
    /// Files in it.
    pub files: u64,
    /// Bytes of the tar archive.
    pub raw_size: u64,
    /// The archive; its names are relative to the directory.
    #[serde(flatten)]
    pub object: StoredFile,
}

/// Sums over a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of all files.
    pub raw_size: u64,
    /// Bytes stored: parts, included directories, manifest and index.
    pub stored_size: u64,
}

/// Who claimed a backup's id, and when: the content of `started.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// [`BACKUP_FORMAT`] of the writer.
    pub format: u64,
    /// The claimed id.
    pub id: BackupId,
    /// The host that takes the backup.
    pub host: String,
    /// The process that takes it.
    pub process: u32,
    /// The clock of that host.
    pub time: Timestamp,
    /// The program.
    pub written_by: String,
    /// The backup that it builds on, or is made from, which must not go meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<BackupId>,
}

/// A backup's folder that has no commit mark: one that runs, or that was interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedBackup {
    /// Its id.
    pub id: BackupId,
    /// Its claim, where it can be read.
    pub started: Option<Started>,
}

/// The backups of a cluster.
#[derive(Debug, Clone, Default)]
pub struct BackupList {
    /// Finished ones, oldest first.
    pub finished: Vec<Backup>,
    /// Folders without a commit mark.
    pub unfinished: Vec<UnfinishedBackup>,
    /// Those whose commit mark says nothing that could be relied on.
    pub unreadable: Vec<UnreadableBackup>,
}

/// A backup whose commit mark is damaged, belongs to another one, or was written by a newer pgark.
#[derive(Debug, Clone)]
pub struct UnreadableBackup {
    /// Its id.
    pub id: BackupId,
    /// Why: `Damaged` or `NewerFormat`.
    pub error: Arc<RepositoryError>,
}

impl ClusterRepository {
    /// Lists all backups. A commit mark that cannot be read is an error, never a missing backup: for those who delete.
    ///
    /// # Errors
    /// `Damaged`, `NewerFormat`, or when the store refuses or cannot be reached.
    pub async fn backups(&self) -> Result<BackupList> {
        let mut list = self.backups_where_readable().await?;
        let Some(UnreadableBackup { id, error }) = list.unreadable.pop() else { return Ok(list) };
        let damaged = || self.store().damaged(&self.keys().backup(&id), "it cannot be read");
        Err(Arc::into_inner(error).unwrap_or_else(damaged))
    }

    /// Lists all backups, also those with a commit mark that cannot be understood: for those who read.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn backups_where_readable(&self) -> Result<BackupList> {
        let (_, folders) = self.store().list_folder(&self.keys().backups()).await?;
        let mut ids: Vec<BackupId> = folders.iter().filter_map(|key| key.file_name().parse().ok()).collect();
        ids.sort();
        let mut list = BackupList::default();
        for id in ids {
            match self.backup(&id).await {
                Ok(backup) => list.finished.push(backup),
                Err(RepositoryError::NotFound { .. }) => {
                    let started = self.started(&id).await?;
                    list.unfinished.push(UnfinishedBackup { id, started });
                }
                Err(error @ (RepositoryError::Damaged { .. } | RepositoryError::NewerFormat { .. })) => {
                    list.unreadable.push(UnreadableBackup { id, error: Arc::new(error) });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(list)
    }

    /// Reads a backup's commit mark.
    ///
    /// # Errors
    /// `NotFound` when there is none; `Damaged`, `NewerFormat`, or when the store fails.
    pub async fn backup(&self, id: &BackupId) -> Result<Backup> {
        let key = self.keys().backup(id);
        let bytes = self.store().read(&key, BACKUP_LIMIT).await?;
        let backup: Backup = self.parse_json(&key, &bytes)?;
        let blank = with_checksum(&String::from_utf8_lossy(&bytes), &backup.checksum, BLANK_CHECKSUM);
        if sha256_hex(blank.as_bytes()) != backup.checksum {
            return Err(self.store().damaged(&key, "it does not match its own checksum"));
        }
        if backup.id != *id || backup.server.system_identifier != self.system_identifier() {
            let reason = format!(
                "it describes {} of system {}, not the backup it is stored as",
                backup.id, backup.server.system_identifier
            );
            return Err(self.store().damaged(&key, reason));
        }
        Ok(backup)
    }

    /// Reads a backup's claim; nothing where there is none, or none that can be read.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn started(&self, id: &BackupId) -> Result<Option<Started>> {
        let key = self.keys().started(id);
        match self.store().read(&key, 1 << 20).await {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(RepositoryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse_json<T: serde::de::DeserializeOwned>(&self, key: &ObjectKey, bytes: &[u8]) -> Result<T> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        let damaged = |error: serde_json::Error| self.store().damaged(key, error.to_string());
        let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format > BACKUP_FORMAT {
            return Err(RepositoryError::NewerFormat { key: key.clone(), found: format, known: BACKUP_FORMAT });
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }
}
