//! PostgreSQL's own formats, parsed into types that cannot be wrong.
//!
//! The crate is pure: it opens no file, reads no clock and prints nothing. Everything that arrives from disk or from
//! the network is checked here, once, and a short or hostile input gives an error, never a panic. Facts are those of
//! PostgreSQL 13 to 18 on little-endian machines.

#![warn(missing_docs)]

mod auto_conf;
mod backup_chain;
mod backup_label;
mod block_map;
mod control_file;
mod history;
mod incremental_file;
mod little_endian;
mod lsn;
mod major_version;
mod manifest;
mod page;
mod relation_file;
mod relative_path;
mod segment;
mod system_identifier;
mod tablespace_map;
mod text_serde;
mod timeline;
mod wal_page;
mod wal_record;

pub use auto_conf::{AutoConf, AutoConfError};
pub use backup_chain::{ChainError, ChainMember};
pub use backup_label::{BackupLabel, BackupLabelError, BackupMethod, BackupSource, IncrementalFrom};
pub use block_map::{
    BlockHashes, BlockMapError, BlockMapFile, BlockMapIndex, BlockMapReader, BlockMapWriter, block_hash,
};
pub use control_file::{ClusterState, ControlFile, ControlFileError, WalLevel};
pub use history::{HistoryEntry, HistoryError, TimelineHistory};
pub use incremental_file::{
    BlockRun, BlockSource, ChainFile, IncrementalFileError, IncrementalHeader, Reconstruction, ReconstructionError,
    incremental_path, reconstructed_path,
};
pub use lsn::{Lsn, LsnParseError};
pub use major_version::{KNOWN_MAJOR_VERSIONS, is_known_major_version};
pub use manifest::{
    ChecksumAlgorithm, ManifestChecksum, ManifestEditor, ManifestEnd, ManifestError, ManifestFile, ManifestReader,
    ManifestReplacement, WalRange, crc32c_from_hex, crc32c_to_hex,
};
pub use page::{PAGE_SIZE, PageChecker, PageRules, WrongPages, page_checksum};
pub use relation_file::{RelationFile, RelationFork};
pub use relative_path::{PathError, check_relative_path};
pub use segment::{SegmentName, SegmentSize, SegmentSizeError, WalFileName, WalFileNameError};
pub use system_identifier::{SystemIdentifier, SystemIdentifierParseError};
pub use tablespace_map::{TablespaceMap, TablespaceMapError};
pub use timeline::{TimelineId, TimelineParseError};
pub use wal_page::{SegmentHeader, WalPageError};
pub use wal_record::{RecordWalker, WalEndReason, WalEvent, WalRecordError};
