//! Lists, plans and restores: everything of pgark that only reads the repository. The agent reads chains with it.
//!
//! A restore decides first and acts then. [`Catalogue`] is what the repository holds, [`plan`] chooses backup,
//! timelines and WAL without reading more, [`prove`] asks the WAL itself whether the target will be met, [`survey`]
//! proves the backup's lists, the destination is checked, and only [`extract`] writes.

mod archive;
mod base;
mod catalogue;
mod chain;
mod chain_files;
mod combine;
mod copies;
mod damage;
mod destination;
mod drill;
mod extract;
mod fetch_wal;
mod included;
mod judge;
mod late_segments;
mod list;
mod moments;
mod plan;
mod prefetch;
mod proofs;
mod reach;
mod recovery_settings;
mod shares;
mod show;
mod stored_object;
mod survey;
mod target;
mod verify;
mod wal;
mod windows;

/// For the fuzz targets only.
#[doc(hidden)]
pub mod fuzzed {
    pub use crate::extract::TarReader;
}

pub use archive::Archive;
pub use base::{BaseArguments, base};
pub use catalogue::{Catalogue, CatalogueError, Merged};
pub use chain::Chain;
pub use combine::{CombinedBackup, CombinedFiles, CombinedPiece};
pub use copies::Copies;
pub use destination::{
    Destination, DestinationError, DestinationRequest, PlacedTablespace, check as check_destination,
};
pub use drill::{DrillArguments, drill};
pub use extract::{DeltaFigures, ExtractError, Extraction, extract, look};
pub use fetch_wal::{FetchError, Fetched, fetch_wal, fetch_wal_for_standby, system_identifier_of};
pub use included::read_included;
pub use judge::judge;
pub use list::{ListArguments, list};
pub use plan::{BehindGap, PathStep, PlanError, PlanJson, PlannedSegment, Request, RestorePlan, StopPoint, plan};
pub use reach::{ReachError, last_transaction, prove};
pub use recovery_settings::{Archiving, RecoveryMode, RecoverySettings, RestoreCommand};
pub use show::{ShowArguments, show};
pub use survey::{Layout, Survey, survey};
pub use target::{RecoveryTarget, Target, TargetAction, TargetError, TargetOptions, TargetTimeline};
pub use verify::{VerifyArguments, verify};
pub use wal::{WalArguments, wal};
