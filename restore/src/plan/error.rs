//! Why a target cannot be reached, and what to do about it.

use jiff::Timestamp;
use pgark_command::format_time;
use pgark_postgres::{Lsn, SegmentName, SegmentSizeError, TimelineId, WalFileName};
use pgark_repository::BackupId;
use thiserror::Error;

use super::BehindGap;

/// The target cannot be reached, or there is no backup for it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    #[error("the repository `{repository}` has no finished full backup of the cluster `{cluster}`")]
    NoBackup { cluster: String, repository: String, unfinished: usize },
    #[error("there is no backup {id}")]
    UnknownBackup { id: BackupId, known: Vec<BackupId> },
    #[error("{reason}")]
    Unreadable { id: BackupId, reason: String, is_newer: bool },
    #[error("the backup {id} was never finished")]
    Unfinished { id: BackupId },
    #[error("the backup {id} builds on {missing}, which is not there")]
    BrokenChain { id: BackupId, missing: BackupId },
    #[error("the backup {id} cannot be used")]
    SegmentSize {
        id: BackupId,
        #[source]
        source: SegmentSizeError,
    },
    #[error("timeline {timeline} is unknown; the newest one in the archive is {newest}")]
    UnknownTimeline { timeline: TimelineId, newest: TimelineId },
    #[error("the archive lacks {}, although it knows timeline {newest}", WalFileName::History(*.missing))]
    MissingHistory { missing: TimelineId, newest: TimelineId },
    #[error(
        "{target} lies before the end of {} {backup}, which ended at {} at position {stop_lsn}",
        if *.is_forced { "the backup" } else { "the oldest backup that could serve," },
        format_time(*.stop_time)
    )]
    TooEarly { target: String, backup: BackupId, stop_time: Timestamp, stop_lsn: Lsn, is_forced: bool },
    #[error(
        "timeline {timeline} does not contain the {}backup {backup}, which ended on timeline {backup_timeline} at \
         {stop_lsn}{}",
        if *.is_forced { "" } else { "newest " },
        left_at(*.left, *.timeline, *.backup_timeline)
    )]
    NotOnPath {
        backup: BackupId,
        backup_timeline: TimelineId,
        stop_lsn: Lsn,
        timeline: TimelineId,
        left: Option<Lsn>,
        is_forced: bool,
    },
    #[error("the backup {id} needs WAL up to {stop_lsn} to be consistent, and segment {missing} is not in the archive")]
    BackupLacksWal { id: BackupId, missing: SegmentName, stop_lsn: Lsn },
    #[error(
        "position {lsn} is {}; the latest reachable position is {reachable}: segment {missing} is not there",
        if .behind_gap.is_some() { "behind a gap in the archive" } else { "not in the archive" }
    )]
    BeyondArchive { lsn: Lsn, reachable: Lsn, missing: SegmentName, behind_gap: Option<BehindGap> },
    #[error(
        "the archive has a gap: segment {missing} {}; the latest reachable position is {reachable}",
        what_is_missing(*.missing, *.behind)
    )]
    Gap { missing: SegmentName, behind: BehindGap, reachable: Lsn },
}

/// How a segment is known to be missing; words that follow its name.
pub(crate) fn what_is_missing(missing: SegmentName, behind: BehindGap) -> String {
    match behind {
        BehindGap::Segment(next) if next == missing => "lacks a piece".to_owned(),
        BehindGap::Segment(next) => format!("is missing, but {next} is there"),
        BehindGap::Switch(switch) => {
            format!("is missing, but timeline {} was left by another only at {switch}", missing.timeline)
        }
    }
}

fn left_at(left: Option<Lsn>, timeline: TimelineId, backup_timeline: TimelineId) -> String {
    match left {
        Some(lsn) => format!("; the way to timeline {timeline} left timeline {backup_timeline} at {lsn}"),
        None => String::new(),
    }
}

impl PlanError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoBackup { unfinished: 0, .. } => {
                "take one with `pgark-agent backup`, or look into another repository with --repository".to_owned()
            }
            Self::NoBackup { .. } => {
                "only interrupted backups are there (`pgark-restore list`); take one with `pgark-agent backup`"
                    .to_owned()
            }
            Self::UnknownBackup { known, .. } => match known.last() {
                Some(newest) => format!("`pgark-restore list` shows all; the newest one is {newest}"),
                None => "take one with `pgark-agent backup`".to_owned(),
            },
            Self::Unfinished { .. } | Self::BrokenChain { .. } => {
                "choose another backup of `pgark-restore list`, or leave --backup out".to_owned()
            }
            Self::SegmentSize { .. } | Self::Unreadable { is_newer: true, .. } => return None,
            Self::Unreadable { .. } => "choose another backup of `pgark-restore list`".to_owned(),
            Self::UnknownTimeline { .. } => "`pgark-restore list` shows the timelines of the archive".to_owned(),
            Self::MissingHistory { missing, .. } => format!(
                "copy {} from the pg_wal directory of a server that has it into the archive with \
                 pgark-archive-command, or name another timeline with --target-timeline",
                WalFileName::History(*missing)
            ),
            Self::TooEarly { is_forced: true, .. } => {
                "leave --backup out to have a fitting one chosen, or choose a later target".to_owned()
            }
            Self::TooEarly { stop_time, .. } => {
                format!("choose a target after {}, or a backup of another repository", format_time(*stop_time))
            }
            Self::NotOnPath { backup_timeline, .. } => {
                format!("use --target-timeline {backup_timeline}, or a backup that ended before the timelines parted")
            }
            Self::BackupLacksWal { .. } => {
                "choose another backup with --backup, or bring the segment into the archive with pgark-archive-command"
                    .to_owned()
            }
            Self::BeyondArchive { behind_gap: None, .. } => {
                "if the server still runs, SELECT pg_switch_wal() sends its last segment to the archive; without a \
                 target, recovery goes to the end of the archive"
                    .to_owned()
            }
            Self::BeyondArchive { .. } | Self::Gap { .. } => {
                "bring the missing segment into the archive with pgark-archive-command, choose a target before the \
                 gap, or one after a newer backup"
                    .to_owned()
            }
        })
    }
}
