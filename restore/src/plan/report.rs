//! A plan as text for people and as JSON for programs.

use std::fmt;

use jiff::Timestamp;
use pgark_command::{TargetTime, format_size, format_time, printable};
use pgark_postgres::{Lsn, SegmentName, SystemIdentifier, TimelineId};
use pgark_repository::{Backup, BackupId, BackupKind};
use serde::Serialize;

use super::{BehindGap, RestorePlan, StopPoint, what_is_missing};
use crate::target::RecoveryTarget;

impl fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backup = &self.backup;
        writeln!(
            f,
            "cluster     {} (system {}, PostgreSQL {})",
            self.cluster,
            backup.server.system_identifier,
            backup.server.major()
        )?;
        writeln!(f, "repository  {}", self.repository)?;
        writeln!(f, "backup      {}, ended {} at {}", backup.id, format_time(backup.stop_time), backup.stop_lsn)?;
        writeln!(
            f,
            "            {} files, {} ({} stored)",
            backup.totals.files,
            format_size(backup.totals.raw_size),
            format_size(backup.totals.stored_size)
        )?;
        for older in &self.chain {
            writeln!(f, "builds on   {} ({} stored)", older.id, format_size(older.totals.stored_size))?;
        }
        writeln!(f, "target      {}", self.target)?;
        if self.target.stop != RecoveryTarget::EndOfArchive {
            writeln!(f, "            then {}", self.target.action)?;
        }
        let path: Vec<String> = self
            .path
            .iter()
            .enumerate()
            .map(|(index, step)| match index {
                0 => step.timeline.to_string(),
                _ => format!("{} (from {})", step.timeline, step.begin),
            })
            .collect();
        writeln!(f, "timeline    {}", path.join(" → "))?;
        if let Some(stop) = &self.stop {
            writeln!(f, "stops at    {}", describe(stop))?;
        }
        let wal = WalJson::of(self);
        match (wal.first, wal.last) {
            (Some(first), Some(last)) => writeln!(
                f,
                "WAL         {first} … {last}: {} segments, {} ({} stored)",
                wal.segments,
                format_size(wal.raw_size),
                format_size(wal.stored_size)
            )?,
            _ => writeln!(f, "WAL         none")?,
        }
        write!(f, "reachable   up to {}", self.reachable)?;
        if let Some(last) = &self.last_transaction {
            write!(f, "; the last transaction ended {}", describe(last))?;
        }
        writeln!(f)?;
        if let Some(behind) = self.behind_gap {
            writeln!(f, "gap         segment {} {}", self.missing, what_is_missing(self.missing, behind))?;
        }
        for note in &self.notes {
            writeln!(f, "note        {}", printable(note))?;
        }
        Ok(())
    }
}

fn describe(point: &StopPoint) -> String {
    let time = point.time.and_then(|time| TargetTime::from_unix_microseconds(time).ok());
    match time {
        Some(time) => format!("{time} at {} in {}", point.lsn, point.segment),
        None => format!("{} in {}", point.lsn, point.segment),
    }
}

/// The fields of a plan in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct PlanJson {
    pub repository: String,
    pub cluster: String,
    pub system_identifier: SystemIdentifier,
    pub backup: BackupJson,
    /// The backups on which it builds, the nearest first.
    pub chain: Vec<BackupId>,
    pub target: TargetJson,
    pub timeline: TimelineId,
    pub timeline_path: Vec<StepJson>,
    pub wal: WalJson,
    /// The position up to which WAL is there.
    pub reachable_lsn: Lsn,
    pub gap: Option<GapJson>,
    pub stop: Option<PointJson>,
    pub last_transaction: Option<PointJson>,
    pub notes: Vec<String>,
}

/// A backup in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct BackupJson {
    pub id: BackupId,
    pub kind: BackupKind,
    /// The backup on which it builds.
    pub parent: Option<BackupId>,
    /// The newest backup of the chain from which it was made.
    pub consolidated_from: Option<BackupId>,
    pub postgresql_version: u32,
    pub timeline: TimelineId,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub start_time: Timestamp,
    pub stop_time: Timestamp,
    pub files: u64,
    pub raw_size: u64,
    pub stored_size: u64,
}

/// A target in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct TargetJson {
    pub kind: &'static str,
    pub value: Option<String>,
    pub inclusive: Option<bool>,
    pub action: Option<String>,
}

/// A timeline of the path in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct StepJson {
    pub timeline: TimelineId,
    pub begin_lsn: Lsn,
}

/// The WAL that is needed, in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct WalJson {
    pub first: Option<SegmentName>,
    pub last: Option<SegmentName>,
    pub segments: usize,
    pub raw_size: u64,
    pub stored_size: u64,
}

/// A gap in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct GapJson {
    pub missing: SegmentName,
    /// The next segment that is archived.
    pub next: Option<SegmentName>,
    /// Where another timeline left that of the missing segment.
    pub left_at_lsn: Option<Lsn>,
}

/// A record in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct PointJson {
    pub lsn: Lsn,
    pub time: Option<Timestamp>,
    pub segment: SegmentName,
}

impl GapJson {
    fn new(missing: SegmentName, behind: BehindGap) -> Self {
        let (next, left_at_lsn) = match behind {
            BehindGap::Segment(next) => (Some(next), None),
            BehindGap::Switch(switch) => (None, Some(switch)),
        };
        Self { missing, next, left_at_lsn }
    }
}

impl From<&RestorePlan> for PlanJson {
    fn from(plan: &RestorePlan) -> Self {
        let (kind, value) = match &plan.target.stop {
            RecoveryTarget::EndOfArchive => ("end", None),
            RecoveryTarget::Immediate => ("immediate", None),
            RecoveryTarget::Time(time) => ("time", Some(time.to_string())),
            RecoveryTarget::Lsn(lsn) => ("lsn", Some(lsn.to_string())),
            RecoveryTarget::Xid(xid) => ("xid", Some(xid.to_string())),
            RecoveryTarget::Name(name) => ("name", Some(name.clone())),
        };
        let has_action = plan.target.stop != RecoveryTarget::EndOfArchive;
        Self {
            repository: plan.repository.clone(),
            cluster: plan.cluster.clone(),
            system_identifier: plan.backup.server.system_identifier,
            backup: BackupJson::from(&plan.backup),
            chain: plan.chain.iter().map(|older| older.id.clone()).collect(),
            target: TargetJson {
                kind,
                value,
                inclusive: plan.target.stop.has_inclusivity().then_some(plan.target.inclusive),
                action: has_action.then(|| plan.target.action.to_string()),
            },
            timeline: plan.timeline,
            timeline_path: plan
                .path
                .iter()
                .map(|step| StepJson { timeline: step.timeline, begin_lsn: step.begin })
                .collect(),
            wal: WalJson::of(plan),
            reachable_lsn: plan.reachable,
            gap: plan.behind_gap.map(|behind| GapJson::new(plan.missing, behind)),
            stop: plan.stop.as_ref().map(PointJson::from),
            last_transaction: plan.last_transaction.as_ref().map(PointJson::from),
            notes: plan.notes.clone(),
        }
    }
}

impl From<&Backup> for BackupJson {
    fn from(backup: &Backup) -> Self {
        Self {
            id: backup.id.clone(),
            kind: backup.kind,
            parent: backup.parent.clone(),
            consolidated_from: backup.consolidated.as_ref().map(|made| made.from.clone()),
            postgresql_version: backup.server.version_num,
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            start_time: backup.start_time,
            stop_time: backup.stop_time,
            files: backup.totals.files,
            raw_size: backup.totals.raw_size,
            stored_size: backup.totals.stored_size,
        }
    }
}

impl WalJson {
    fn of(plan: &RestorePlan) -> Self {
        let needed = plan.needed_segments();
        Self {
            first: needed.first().map(|segment| segment.name),
            last: needed.last().map(|segment| segment.name),
            segments: needed.len(),
            raw_size: needed.len() as u64 * plan.segment_size.bytes(),
            stored_size: needed.iter().map(|segment| segment.stored_size).sum(),
        }
    }
}

impl From<&StopPoint> for PointJson {
    fn from(point: &StopPoint) -> Self {
        let time = point.time.and_then(|time| Timestamp::from_microsecond(time).ok());
        Self { lsn: point.lsn, time, segment: point.segment }
    }
}
