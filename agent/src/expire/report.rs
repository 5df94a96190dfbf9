//! A plan and its outcome, for people and for programs.

use std::io::{self, Write};

use jiff::Timestamp;
use pgark_command::{Align, Table, format_size, format_time, printable};
use pgark_postgres::{SegmentName, SystemIdentifier};
use pgark_repository::{BackupId, KeepReason, LeftoverFate, PlannedBackup, PlannedLeftover, WalReason, WalStretch};
use serde::Serialize;

use super::Expiry;
use super::carry_out::{LockedObject, Outcome};

/// How many locked objects are named to a person.
const NAMED: usize = 3;

#[derive(Serialize)]
pub(super) struct ExpireJson {
    pub(super) dry_run: bool,
    pub(super) repositories: Vec<PlaceJson>,
}

/// One cluster in one repository.
#[derive(Serialize)]
pub(super) struct PlaceJson {
    repository: String,
    cluster: String,
    system_identifier: SystemIdentifier,
    /// The moment from which windows are counted back.
    now: Timestamp,
    /// Every moment since then can be restored; nothing where no policy says so.
    since: Option<Timestamp>,
    /// Why nothing is deleted although a policy would have it so.
    refusal: Option<String>,
    backups: Vec<BackupJson>,
    unfinished: Vec<LeftoverJson>,
    wal: Vec<WalJson>,
    /// What carrying out the plan frees.
    planned_bytes: u64,
    /// What was done; nothing after `--dry-run`.
    done: Option<OutcomeJson>,
}

#[derive(Serialize)]
struct BackupJson {
    id: BackupId,
    action: &'static str,
    bytes: u64,
    stop_time: Timestamp,
    reasons: Vec<KeepReason>,
    fault: Option<String>,
}

#[derive(Serialize)]
struct LeftoverJson {
    id: BackupId,
    action: &'static str,
    bytes: u64,
    #[serde(flatten)]
    fate: LeftoverFate,
}

#[derive(Serialize)]
struct WalJson {
    action: &'static str,
    first: SegmentName,
    last: SegmentName,
    segments: u64,
    objects: u64,
    bytes: u64,
    reason: Option<WalReason>,
}

#[derive(Serialize)]
struct OutcomeJson {
    backups: Vec<BackupId>,
    unfinished: Vec<BackupId>,
    wal_objects: u64,
    freed_bytes: u64,
    locked: Vec<LockedObject>,
}

fn action(is_kept: bool) -> &'static str {
    if is_kept { "keep" } else { "delete" }
}

impl PlaceJson {
    pub(super) fn new(expiry: &Expiry, outcome: Option<&Outcome>) -> Self {
        let plan = &expiry.plan;
        let backup = |planned: &PlannedBackup| BackupJson {
            id: planned.id.clone(),
            action: action(!planned.reasons.is_empty()),
            bytes: planned.bytes,
            stop_time: planned.stop_time,
            reasons: planned.reasons.clone(),
            fault: planned.fault.clone(),
        };
        let leftover = |planned: &PlannedLeftover| LeftoverJson {
            id: planned.id.clone(),
            action: action(planned.fate.is_running()),
            bytes: planned.bytes,
            fate: planned.fate,
        };
        let wal = |stretch: WalStretch| WalJson {
            action: action(stretch.reason.is_some()),
            first: stretch.first,
            last: stretch.last,
            segments: stretch.segments,
            objects: stretch.objects,
            bytes: stretch.bytes,
            reason: stretch.reason,
        };
        Self {
            repository: expiry.place.name().to_owned(),
            cluster: expiry.place.cluster().to_owned(),
            system_identifier: expiry.place.system_identifier(),
            now: plan.now,
            since: plan.since,
            refusal: plan.refusal.as_ref().map(ToString::to_string),
            backups: plan.backups.iter().map(backup).collect(),
            unfinished: plan.leftovers.iter().map(leftover).collect(),
            wal: plan.wal_stretches().into_iter().map(wal).collect(),
            planned_bytes: plan.freed_bytes(),
            done: outcome.map(|outcome| OutcomeJson {
                backups: outcome.backups.clone(),
                unfinished: outcome.leftovers.clone(),
                wal_objects: outcome.wal_objects,
                freed_bytes: outcome.freed_bytes,
                locked: outcome.locked.clone(),
            }),
        }
    }
}

/// The plan: a line for each backup and for each stretch of WAL, with its reasons.
pub(super) fn write_plan(report: &mut impl Write, expiry: &Expiry) -> io::Result<()> {
    let Expiry { place, plan, .. } = expiry;
    writeln!(report, "repository {}, cluster {}, system {}", place.name(), place.cluster(), place.system_identifier())?;
    match (&plan.refusal, plan.since) {
        // Said as the error.
        (Some(_), _) if expiry.failure().is_some() => {}
        (Some(refusal), _) => writeln!(report, "{refusal}")?,
        (None, None) => writeln!(report, "nothing expires: [retention] has neither `full` nor `window`")?,
        (None, Some(since)) => writeln!(report, "every moment since {} is kept", format_time(since))?,
    }
    let columns = [("", Align::Left), ("what", Align::Left), ("size", Align::Right), ("why", Align::Left)];
    let mut table = Table::new(&columns);
    for backup in &plan.backups {
        let reasons: Vec<String> = backup.reasons.iter().map(ToString::to_string).collect();
        let why = if reasons.is_empty() { "no rule keeps it".to_owned() } else { reasons.join("; ") };
        let fault = backup.fault.as_ref().map(|fault| format!(" (it does not count: {fault})")).unwrap_or_default();
        let row = [backup.id.to_string(), format_size(backup.bytes), format!("{why}{fault}")];
        table.row(std::iter::once(action(!backup.reasons.is_empty()).to_owned()).chain(row));
    }
    for leftover in &plan.leftovers {
        let row = [leftover.id.to_string(), format_size(leftover.bytes), leftover.fate.to_string()];
        table.row(std::iter::once(action(leftover.fate.is_running()).to_owned()).chain(row));
    }
    for stretch in plan.wal_stretches() {
        let what = match stretch.first == stretch.last {
            true => format!("WAL {}", stretch.first),
            false => format!("WAL {} … {} ({})", stretch.first, stretch.last, stretch.segments),
        };
        let why = stretch.reason.as_ref().map_or("nothing that is kept needs it".to_owned(), ToString::to_string);
        let row = [what, format_size(stretch.bytes), why];
        table.row(std::iter::once(action(stretch.reason.is_some()).to_owned()).chain(row));
    }
    if !table.is_empty() {
        write!(report, "{table}")?;
    }
    Ok(())
}

/// What was done, or would be.
pub(super) fn write_outcome(report: &mut impl Write, expiry: &Expiry, outcome: Option<&Outcome>) -> io::Result<()> {
    match outcome {
        None => writeln!(report, "would free {}", format_size(expiry.plan.freed_bytes()))?,
        Some(outcome) => writeln!(report, "{}", sentence(outcome))?,
    }
    outcome.map_or(Ok(()), |outcome| write_locked(report, &outcome.locked))?;
    writeln!(report)?;
    report.flush()
}

/// An outcome in one sentence.
pub(crate) fn sentence(outcome: &Outcome) -> String {
    let count = |count: u64, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    let deleted: Vec<String> = [
        count(outcome.backups.len() as u64, "backup", "backups"),
        count(outcome.leftovers.len() as u64, "unfinished backup", "unfinished backups"),
        count(outcome.wal_objects, "object of WAL", "objects of WAL"),
    ]
    .into_iter()
    .flatten()
    .collect();
    match deleted.as_slice() {
        [] => "deleted nothing".to_owned(),
        deleted => format!("deleted {}, which frees {}", deleted.join(", "), format_size(outcome.freed_bytes)),
    }
}

fn write_locked(report: &mut impl Write, locked: &[LockedObject]) -> io::Result<()> {
    for LockedObject { lock, object } in locked.iter().take(NAMED) {
        writeln!(report, "locked {}: {}", printable(lock), printable(object))?;
    }
    match locked.len().checked_sub(NAMED) {
        Some(more @ 1..) => writeln!(report, "and {more} more objects are locked; the next expiry tries again"),
        _ => Ok(()),
    }
}
