//! How pgark keeps backups and WAL: the only code that knows keys, codecs and stores.
//!
//! Everything above talks to a [`ClusterRepository`]: one cluster's place in one repository, a local
//! directory or object storage. Objects are created once and never rewritten. This crate never prints,
//! never reads the environment and never talks to PostgreSQL. `docs/repository-format.md` describes
//! every object byte for byte.
#![warn(missing_docs)]

mod backup;
mod backup_id;
mod backup_reader;
mod backup_writer;
mod cluster;
mod compression;
mod copy;
mod digest;
mod encryption;
mod error;
mod hold;
mod index;
mod keys;
mod path_set;
mod probe;
mod proof;
mod retention;
mod store;
mod tar_header;
mod wal_archive;

pub use backup::{
    BACKUP_FORMAT, Backup, BackupList, Consolidated, Included, Part, ServerFacts, Started, StoredFile, Tablespace,
    Totals, UnfinishedBackup, UnreadableBackup, WalRange,
};
pub use backup_id::{BackupId, BackupIdError, BackupKind};
pub use backup_reader::{BackupObject, BackupObjectKind, PartReader};
pub use backup_writer::{
    BackupFacts, BackupTargets, BackupWriter, BackupWriterOptions, CheckedBackup, IncludedDirectory, ManifestWriter,
    Origin,
};
pub use cluster::{ClusterRepository, OpenedObject, Repository, read_failure};
pub use compression::{FRAME_BYTES, WalCompressor};
pub use digest::RawDigest;
pub use encryption::{Identities, Recipients, generate_key_pair};
pub use error::{ErrorKind, RepositoryError, Result};
pub use hold::Hold;
pub use index::{IndexLine, IndexReader, IndexedFile, IndexedMember, IndexedPart, WholeFile};
pub use keys::{ClusterKeys, ObjectKey, Sealing, WalPiece, backup_file_of, is_cluster_name, wal_file_of, wal_piece_of};
pub use path_set::PathSet;
pub use probe::{Probe, probe};
pub use proof::{PROOF_FORMAT, Proof, ProofKind, ProvenBackup, ReadSegments};
pub use retention::{
    Contents, KeepReason, Leftover, LeftoverFate, PlannedBackup, PlannedLeftover, PlannedSegment, Refusal,
    RetentionPlan, RetentionPolicy, StoredBackup, StoredSegment, WalReason, WalStretch, plan_retention,
};
pub use store::{
    Creation, Credentials, Deletion, ListedObject, ObjectReader, ObjectWriter, RepositoryOptions, Store, StoredObject,
};
pub use tar_header::{TAR_BLOCK, TarHeaderError, TarMember, tar_padding};
pub use wal_archive::{OpenSegment, PreparedPiece, PreparedWalFile, WalInventory, WalPlace, WalStored, WholeSegment};
