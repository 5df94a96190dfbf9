//! `global/pg_control`: what a cluster is and where its last checkpoint lies.
//!
//! ```text
//!   0 u64 system identifier      48 u32 timeline of the checkpoint   200 bool track_commit_timestamp
//!   8 u32 pg_control version    136 u64 minimum recovery end         216 u32 block size
//!  12 u32 catalogue version     144 u32 its timeline                 220 u32 blocks per relation file
//!  16 u32 state                 152 u64 backup start                 224 u32 WAL page size
//!  32 u64 last checkpoint       168 bool backup end required         228 u32 WAL segment size
//!  40 u64 its redo position     172 u32 wal_level, 180 … settings    252 u32 data checksum version
//! ```
//!
//! Then a nonce and the CRC-32C, at 288 up to version 17 and at 292 in version 18, which has one more field before the
//! nonce. The file may be read torn while the server runs: a wrong checksum is a reason to read again.

use thiserror::Error;

use crate::little_endian::{u32_at, u64_at};
use crate::{Lsn, SegmentSize, SegmentSizeError, SystemIdentifier, TimelineId};

/// Catalogue versions are fixed within a major version; the control version alone does not tell 13 to 16 apart.
const VERSIONS: [Version; 6] = [
    Version { major: 13, control: 1300, catalog: 202_007_201, crc_at: 288 },
    Version { major: 14, control: 1300, catalog: 202_107_181, crc_at: 288 },
    Version { major: 15, control: 1300, catalog: 202_209_061, crc_at: 288 },
    Version { major: 16, control: 1300, catalog: 202_307_071, crc_at: 288 },
    Version { major: 17, control: 1700, catalog: 202_406_281, crc_at: 288 },
    Version { major: 18, control: 1800, catalog: 202_506_291, crc_at: 292 },
];

struct Version {
    major: u32,
    control: u32,
    catalog: u32,
    crc_at: usize,
}

/// The content of `global/pg_control`, its checksum verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's own number.
    pub system_identifier: SystemIdentifier,
    /// The version of this file's layout.
    pub pg_control_version: u32,
    /// The version of the system catalogue, which is part of the names of tablespace folders.
    pub catalog_version: u32,
    /// What the cluster was doing when the file was written.
    pub state: ClusterState,
    /// The position of the last checkpoint record.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint begins.
    pub checkpoint_redo: Lsn,
    /// The timeline of the last checkpoint.
    pub checkpoint_timeline: TimelineId,
    /// The timeline before it, the same unless the checkpoint ended a recovery.
    pub checkpoint_previous_timeline: TimelineId,
    /// The position that recovery must reach before the cluster is consistent; zero on a primary.
    pub minimum_recovery_end: Lsn,
    /// The setting `wal_level`.
    pub wal_level: WalLevel,
    /// The setting `max_connections`.
    pub max_connections: u32,
    /// The setting `max_worker_processes`.
    pub max_worker_processes: u32,
    /// The setting `max_wal_senders`.
    pub max_wal_senders: u32,
    /// The setting `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// The setting `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// The size of a data block in bytes.
    pub block_size: u32,
    /// How many blocks one file of a relation has at most.
    pub blocks_per_relation_file: u32,
    /// The size of a WAL page in bytes.
    pub wal_block_size: u32,
    /// The size of a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
    major: u32,
}

/// What a cluster was doing when its control file was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting up.
    StartingUp,
    /// Shut down cleanly.
    ShutDown,
    /// Shut down cleanly while it was a standby or in recovery.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a standby.
    InArchiveRecovery,
    /// Running.
    InProduction,
}

/// How much the WAL contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Too little for an archive.
    Minimal,
    /// Enough for archives and standbys.
    Replica,
    /// Enough for logical decoding as well.
    Logical,
}

/// The bytes are not a control file that can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ControlFileError {
    /// The file ends before its checksum.
    #[error("pg_control is cut short: expected at least {expected} bytes, found {found}")]
    Short {
        /// The bytes needed.
        expected: usize,
        /// The bytes there are.
        found: usize,
    },
    /// The file is of a version that is not known.
    #[error("pg_control has version {control} and catalogue version {catalog}, which no release from 13 to 18 has")]
    UnknownVersion {
        /// The version of the file.
        control: u32,
        /// The version of the catalogue.
        catalog: u32,
    },
    /// The file is damaged, or was read while the server wrote it.
    #[error("pg_control has checksum {found:08x}, expected {expected:08x}")]
    Checksum {
        /// The checksum of the bytes.
        expected: u32,
        /// The checksum in the file.
        found: u32,
    },
    /// A field has a value that no server writes.
    #[error("pg_control has {field} {found}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u32,
    },
    /// The WAL segment size is impossible.
    #[error("pg_control has an impossible WAL segment size")]
    SegmentSize(#[source] SegmentSizeError),
}

impl ControlFileError {
    /// Tells whether a second reading may succeed, since the server writes the file in place.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Checksum { .. })
    }
}

impl ControlFile {
    /// Reads the file and verifies its checksum.
    pub fn parse(content: &[u8]) -> Result<Self, ControlFileError> {
        let short = |expected| ControlFileError::Short { expected, found: content.len() };
        let u32_of = |offset| u32_at(content, offset).ok_or_else(|| short(offset + 4));
        let u64_of = |offset| u64_at(content, offset).ok_or_else(|| short(offset + 8));

        let (control, catalog) = (u32_of(8)?, u32_of(12)?);
        let version = VERSIONS
            .iter()
            .find(|version| version.control == control && version.catalog == catalog)
            .ok_or(ControlFileError::UnknownVersion { control, catalog })?;
        let found = u32_of(version.crc_at)?;
        let expected = crc32c::crc32c(content.get(..version.crc_at).ok_or_else(|| short(version.crc_at))?);
        if found != expected {
            return Err(ControlFileError::Checksum { expected, found });
        }

        let timeline_of = |offset, field| {
            let number = u32_of(offset)?;
            TimelineId::new(number).ok_or(ControlFileError::Field { field, found: number })
        };
        let size_of = |offset, field| {
            let found = u32_of(offset)?;
            let possible = found.is_power_of_two() && (1024..=65536).contains(&found);
            if possible { Ok(found) } else { Err(ControlFileError::Field { field, found }) }
        };
        Ok(Self {
            system_identifier: SystemIdentifier::new(u64_of(0)?),
            pg_control_version: control,
            catalog_version: catalog,
            state: ClusterState::from_number(u32_of(16)?)?,
            checkpoint: Lsn::new(u64_of(32)?),
            checkpoint_redo: Lsn::new(u64_of(40)?),
            checkpoint_timeline: timeline_of(48, "checkpoint timeline")?,
            checkpoint_previous_timeline: timeline_of(52, "previous checkpoint timeline")?,
            minimum_recovery_end: Lsn::new(u64_of(136)?),
            wal_level: WalLevel::from_number(u32_of(172)?)?,
            max_connections: u32_of(180)?,
            max_worker_processes: u32_of(184)?,
            max_wal_senders: u32_of(188)?,
            max_prepared_transactions: u32_of(192)?,
            max_locks_per_transaction: u32_of(196)?,
            block_size: size_of(216, "block size")?,
            blocks_per_relation_file: u32_of(220)?,
            wal_block_size: size_of(224, "WAL page size")?,
            segment_size: SegmentSize::new(u32_of(228)?.into()).map_err(ControlFileError::SegmentSize)?,
            data_checksums: u32_of(252)? != 0,
            major: version.major,
        })
    }

    /// Returns the major version of the server that owns the cluster.
    pub const fn major(&self) -> u32 {
        self.major
    }
}

impl ClusterState {
    fn from_number(number: u32) -> Result<Self, ControlFileError> {
        Ok(match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            found => {
                return Err(ControlFileError::Field { field: "state", found });
            }
        })
    }
}

impl WalLevel {
    fn from_number(number: u32) -> Result<Self, ControlFileError> {
        Ok(match number {
            0 => Self::Minimal,
            1 => Self::Replica,
            2 => Self::Logical,
            found => {
                return Err(ControlFileError::Field { field: "wal_level", found });
            }
        })
    }
}

#[cfg(test)]
mod tests;
