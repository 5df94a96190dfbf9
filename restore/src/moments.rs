//! From which moment to which the cluster can be restored, as the plans themselves and the WAL's own records say.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgark_postgres::{Lsn, SegmentName, TimelineId, WalEvent};
use pgark_repository::{Backup, BackupId};
use serde::Serialize;

use crate::archive::Archive;
use crate::catalogue::Catalogue;
use crate::plan::{PlanError, Request, RestorePlan, plan};
use crate::reach::{ReachError, recent_transaction, stop_point, walk_events};
use crate::target::{RecoveryTarget, Target, TargetTimeline};

/// An unbroken stretch of moments on the way to the end of one timeline.
#[derive(Debug, Serialize)]
pub(crate) struct Window {
    pub(crate) timeline: TimelineId,
    /// The backups in it; each moment needs one that ended before it.
    pub(crate) backups: Vec<BackupId>,
    /// The end of the first backup.
    pub(crate) from: Timestamp,
    pub(crate) from_lsn: Lsn,
    /// The last transaction: every `--target-time` before it can be reached. Nothing where none ended in the last
    /// segments, or they cannot be read.
    pub(crate) last_transaction: Option<Timestamp>,
    /// Where the WAL ends.
    pub(crate) to_lsn: Lsn,
    /// Why the last transaction is not known.
    pub(crate) unreadable: Option<String>,
    /// The first segment that is missing, where more was written.
    pub(crate) gap_at: Option<SegmentName>,
}

/// A named restore point.
#[derive(Debug, Serialize)]
pub(crate) struct RestorePoint {
    pub(crate) name: String,
    pub(crate) time: Option<Timestamp>,
    pub(crate) timeline: TimelineId,
    pub(crate) lsn: Lsn,
}

/// The way from a window's first backup to its end.
pub(crate) struct Reachable {
    pub(crate) window: Window,
    plan: RestorePlan,
}

/// Plans a restore to the end of each timeline from each backup, and asks the WAL for the last transaction.
pub(crate) async fn reachable(catalogue: &Catalogue, archive: &Archive) -> Vec<Reachable> {
    let mut found = Vec::new();
    for plans in windows(catalogue) {
        let Some(first) = plans.first() else { continue };
        let (last_transaction, unreadable) = match recent_transaction(archive, first).await {
            Ok(point) => (point.and_then(|point| Timestamp::from_microsecond(point.time?).ok()), None),
            Err(error) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
        };
        let window = Window {
            timeline: first.timeline,
            backups: plans.iter().map(|plan| plan.backup.id.clone()).collect(),
            from: first.backup.stop_time,
            from_lsn: first.backup.stop_lsn,
            last_transaction,
            to_lsn: first.reachable,
            unreadable,
            gap_at: first.gap(),
        };
        found.push(Reachable { window, plan: first.clone() });
    }
    found
}

/// The plans of each window, that of the oldest backup first. Plans that end in the same place share one.
///
/// A way that ends before its timeline begins is a window of the timelines before it. Only where it ends at a gap that
/// no other way has, as it does when the first segment of a timeline was lost, it is one of its own.
pub(crate) fn windows(catalogue: &Catalogue) -> Vec<Vec<RestorePlan>> {
    let mut windows: BTreeMap<(TimelineId, Lsn), Vec<RestorePlan>> = BTreeMap::new();
    let mut end_at_gaps = Vec::new();
    for timeline in catalogue.histories.keys() {
        for backup in &catalogue.backups.finished {
            // A refusal says that this backup does not lead there.
            let Ok(plan) = plan_without_target(catalogue, backup, *timeline) else { continue };
            if plan.path.last().is_some_and(|step| step.begin < plan.reachable) {
                windows.entry((*timeline, plan.reachable)).or_default().push(plan);
            } else if plan.behind_gap.is_some() {
                end_at_gaps.push(plan);
            }
        }
    }
    let named = windows.values().flatten().filter_map(|plan| Some((plan.gap()?, plan.timeline)));
    let mut named: BTreeMap<SegmentName, TimelineId> = named.collect();
    for plan in end_at_gaps {
        if *named.entry(plan.missing).or_insert(plan.timeline) == plan.timeline {
            windows.entry((plan.timeline, plan.reachable)).or_default().push(plan);
        }
    }
    let mut windows: Vec<_> = windows.into_values().collect();
    windows.iter_mut().for_each(|plans| plans.sort_by_key(|plan| plan.backup.stop_lsn));
    windows
}

/// Plans a restore from a backup as far as the WAL goes without a gap. With the end of the archive as its target it would
/// be refused where there is one.
pub(crate) fn plan_without_target(
    catalogue: &Catalogue,
    backup: &Backup,
    timeline: TimelineId,
) -> Result<RestorePlan, PlanError> {
    let timeline = TargetTimeline::Number(timeline);
    let target = Target { stop: RecoveryTarget::Immediate, timeline, ..Target::end_of_archive() };
    plan(catalogue, &Request { target, backup: Some(backup.id.clone()) })
}

/// Reads all WAL of the windows for the restore points in it.
pub(crate) async fn restore_points(
    archive: &Archive,
    reachable: &[Reachable],
) -> Result<Vec<RestorePoint>, ReachError> {
    let mut points = BTreeMap::new();
    for way in reachable {
        walk_events(archive, &way.plan, |event, segment| {
            if let WalEvent::RestorePoint { name, .. } = event {
                let at = stop_point(event, segment);
                let time = at.time.and_then(|time| Timestamp::from_microsecond(time).ok());
                let (name, timeline) = (String::from_utf8_lossy(name).into_owned(), segment.timeline);
                points.insert((timeline, at.lsn), RestorePoint { name, time, timeline, lsn: at.lsn });
            }
        })
        .await?;
    }
    Ok(points.into_values().collect())
}
