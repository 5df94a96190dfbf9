//! The WAL behind the backups: each segment is there and whole, and the records of one go on in the next.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use pgark_postgres::{RecordWalker, SegmentName, SegmentSize, TimelineId, WalEndReason, WalFileName};
use pgark_repository::{Backup, ClusterRepository, ErrorKind, RepositoryError, wal_piece_of};

use super::{Fault, Findings, full_text, lost, tells_of_damage};
use crate::archive::Archive;
use crate::catalogue::Catalogue;
use crate::fetch_wal::check_segment;
use crate::moments::{plan_without_target, windows};
use crate::plan::{PlanError, PlannedSegment, RestorePlan, what_is_missing};
use crate::reach::{ReachError, fetch_segment};

/// How many segments are fetched while one is looked at; each of them is in memory as a whole.
const AHEAD: usize = 2;

/// The ways from the chosen backups to the ends of the WAL, each from the oldest of its backups on.
pub(super) struct Ways {
    ways: Vec<RestorePlan>,
    served: BTreeSet<String>,
    /// Segments that are missing since they were expired.
    expired: BTreeSet<SegmentName>,
    /// Segments that are there in pieces.
    open: BTreeSet<SegmentName>,
}

/// A segment that restores need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needed {
    pub(super) stored_size: u64,
    /// When the newest backup before it ended: about when it was stored.
    pub(super) stored_after: Timestamp,
}

impl Ways {
    pub(super) fn new(catalogue: &Catalogue, backups: &[&Backup]) -> Self {
        let open = catalogue.wal.open.keys().copied().collect();
        let mut found = Self { ways: Vec::new(), served: BTreeSet::new(), expired: BTreeSet::new(), open };
        for mut plans in windows(catalogue) {
            // The longest way to this end shows most, whichever backups were chosen.
            if let Some(longest) = plans.first().filter(|plan| is_left_by_expiry(plan, catalogue)) {
                found.expired.insert(longest.missing);
            }
            plans.retain(|plan| backups.iter().any(|backup| backup.id == plan.backup.id));
            found.served.extend(plans.iter().map(|plan| plan.backup.id.to_string()));
            found.ways.extend(plans.into_iter().next());
        }
        found
    }

    /// Every segment on them.
    pub(super) fn segments(&self, backups: &[&Backup]) -> BTreeMap<SegmentName, Needed> {
        let mut needed = BTreeMap::new();
        for plan in &self.ways {
            for segment in &plan.segments {
                let stored_after = stored_after(segment.name, plan.segment_size, backups, plan.backup.stop_time);
                needed.insert(segment.name, Needed { stored_size: segment.stored_size, stored_after });
            }
        }
        needed
    }
}

fn stored_after(segment: SegmentName, size: SegmentSize, backups: &[&Backup], oldest: Timestamp) -> Timestamp {
    let start = segment.start(size);
    let before = backups.iter().filter(|backup| backup.stop_lsn <= start).map(|backup| backup.stop_time);
    before.max().unwrap_or(oldest)
}

/// What can be seen without reading a segment: histories, gaps, and backups that no WAL continues.
pub(super) fn verify_lists(
    repository: &ClusterRepository,
    catalogue: &Catalogue,
    backups: &[&Backup],
    ways: &Ways,
    findings: &mut Findings,
) {
    let history = |timeline: TimelineId, reason: String| Fault {
        backup: None,
        object: WalFileName::History(timeline).to_string(),
        reason,
        consequence: format!("nothing can be restored to timeline {timeline}, nor to the latest one"),
        damaged: true,
    };
    for (timeline, error) in &catalogue.unreadable_histories {
        if error.kind() == ErrorKind::Damaged {
            findings.add(history(*timeline, super::reason(error)));
        }
    }
    let known = |timeline: &TimelineId| catalogue.wal.histories.contains(timeline) || *timeline == TimelineId::FIRST;
    let oldest = backups.iter().map(|backup| backup.timeline).min().unwrap_or(TimelineId::FIRST);
    let timelines = (oldest.get()..=catalogue.newest_timeline().get()).filter_map(TimelineId::new);
    for missing in timelines.filter(|timeline| !known(timeline)) {
        findings.add(history(missing, "it is missing".to_owned()));
    }
    for plan in &ways.ways {
        let ends = plan.segments.last().map(|last| last.name).into_iter().chain([plan.missing]);
        let mut holes = ends.filter_map(|name| Some((name, catalogue.wal.open.get(&name)?.hole()?)));
        if let Some((segment, (from, to))) = holes.next() {
            let name = format!("{segment}.partial/{from:08X}-…");
            findings.add(wal_fault(plan, segment, name, format!("its bytes {from} to {to} are missing"), true));
        } else if let Some(behind) = plan.behind_gap.filter(|_| !ways.expired.contains(&plan.missing)) {
            let name = WalFileName::Segment(plan.missing).to_string();
            let reason = format!("it {}", what_is_missing(plan.missing, behind));
            findings.add(wal_fault(plan, plan.missing, name, reason, true));
        }
    }
    let served = |backup: &&&Backup| ways.served.contains(&backup.id.to_string());
    for backup in backups.iter().filter(|backup| !served(backup)) {
        // Without its history, which may only lack the key, nothing is known of a timeline.
        let unknown = |timeline: TimelineId| !catalogue.histories.contains_key(&timeline);
        if unknown(backup.stop_timeline) {
            continue;
        }
        if let Err(error) = plan_without_target(catalogue, backup, backup.stop_timeline) {
            let object = match error {
                PlanError::BrokenChain { .. } => repository.keys().backup(&backup.id),
                _ => repository.keys().wal(),
            };
            findings.add(Fault {
                backup: Some(backup.id.clone()),
                object: object.to_string(),
                reason: error.to_string(),
                consequence: lost(&backup.id),
                damaged: true,
            });
        }
    }
}

/// Whether a gap is what expiry leaves behind a backup that is kept for itself: it begins right behind the backup's own
/// WAL, a later backup serves what comes after it, and what comes before it are other backups' own segments only. Expiry
/// deletes the oldest first, so it never leaves others there.
fn is_left_by_expiry(plan: &RestorePlan, catalogue: &Catalogue) -> bool {
    let backups = &catalogue.backups.finished;
    let size = plan.segment_size;
    let is_own = |segment: &SegmentName| backups.iter().any(|backup| backup.has_own_segment(segment));
    let ends_here = |backup: &Backup| plan.segments.last().is_some_and(|last| last.name == backup.wal.last);
    let begins_later = |backup: &Backup| backup.wal.first.number(size) > plan.missing.number(size);
    backups.iter().any(ends_here)
        && backups.iter().any(begins_later)
        && plan.segments.iter().all(|segment| is_own(&segment.name))
}

/// Reads segments, and follows their records from each to the next.
pub(super) async fn verify(
    repository: &ClusterRepository,
    ways: &Ways,
    wants: &BTreeSet<SegmentName>,
    findings: &mut Findings,
) {
    let archive = Archive::of(repository.clone());
    let mut seen = BTreeSet::new();
    for plan in &ways.ways {
        Walk { repository, archive: &archive, plan, open: &ways.open, findings, walker: None }
            .run(wants, &mut seen)
            .await;
    }
}

/// One way from a backup to the end of its WAL.
struct Walk<'w> {
    repository: &'w ClusterRepository,
    archive: &'w Archive,
    plan: &'w RestorePlan,
    open: &'w BTreeSet<SegmentName>,
    findings: &'w mut Findings,
    /// Nothing at the start, and behind a fault.
    walker: Option<RecordWalker>,
}

impl Walk<'_> {
    async fn run(&mut self, wants: &BTreeSet<SegmentName>, seen: &mut BTreeSet<SegmentName>) {
        let last = self.plan.segments.len().saturating_sub(1);
        // What is not wanted now, or was on the way to the end of another timeline, is not fetched.
        let steps: Vec<(usize, PlannedSegment, bool)> = self
            .plan
            .segments
            .iter()
            .enumerate()
            .map(|(index, segment)| (index, *segment, wants.contains(&segment.name) && seen.insert(segment.name)))
            .collect();
        let (archive, plan) = (self.archive, self.plan);
        let mut fetched = stream::iter(steps)
            .map(|(index, segment, is_wanted)| async move {
                let bytes = match is_wanted {
                    true => Some(fetch_segment(archive, plan, segment.name).await),
                    false => None,
                };
                (index, segment, bytes)
            })
            .buffered(AHEAD);
        while let Some((index, segment, bytes)) = fetched.next().await {
            let Some(bytes) = bytes else {
                self.walker = None;
                continue;
            };
            self.findings.segments += 1;
            self.findings.stored_bytes += segment.stored_size;
            let walked = bytes.and_then(|bytes| self.segment(segment.name, &bytes, index == last));
            let Err(error) = walked else { continue };
            self.walker = None;
            let is_damage = match &error {
                ReachError::Repository(error) => tells_of_damage(error),
                _ => true,
            };
            let object = piece_in(&error).unwrap_or_else(|| WalFileName::Segment(segment.name).to_string());
            self.findings.add(wal_fault(self.plan, segment.name, object, reason(&error), is_damage));
            if !is_damage {
                // The store does not answer or the key is missing: so it will be with the next one.
                return;
            }
        }
    }

    fn segment(&mut self, name: SegmentName, bytes: &[u8], is_last: bool) -> Result<(), ReachError> {
        let place = (self.repository.name(), self.repository.system_identifier());
        if let Err(error) = check_segment(name, place.0, place.1, bytes, bytes.len() as u64) {
            self.fault(name, full_text(&error));
            self.walker = None;
            return Ok(());
        }
        let (size, start) = (self.plan.segment_size, name.start(self.plan.segment_size));
        let damaged = |source| ReachError::Damaged { segment: name, source: Box::new(source) };
        let walker = match &mut self.walker {
            Some(walker) => walker,
            none => {
                let walker = RecordWalker::new(size, self.plan.backup.server.major(), start).map_err(damaged)?;
                none.insert(walker)
            }
        };
        if self.open.contains(&name) {
            // What follows its pieces are zeros; up to there the server has sent nothing but records.
            let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            walker.feed(start, &bytes[..end]).map_err(damaged)?;
            if let Some(reason) = walker.end_reason().filter(|reason| **reason != WalEndReason::NoMoreBytes) {
                let reason = format!("its pieces hold no records from {} on: {reason}", walker.valid_until());
                self.fault(name, reason);
            }
            self.walker = None;
            return Ok(());
        }
        walker.feed(start, bytes).map_err(damaged)?;
        if let (Some(end), false) = (walker.end_of_valid(), is_last) {
            let reason = format!("its records end at {end}, before the next segment begins");
            self.fault(name, reason);
            self.walker = None;
        }
        Ok(())
    }

    fn fault(&mut self, segment: SegmentName, reason: String) {
        let object = WalFileName::Segment(segment).to_string();
        self.findings.add(wal_fault(self.plan, segment, object, reason, true));
    }
}

fn wal_fault(plan: &RestorePlan, segment: SegmentName, object: String, reason: String, damaged: bool) -> Fault {
    let from = segment.start(plan.segment_size);
    Fault {
        backup: None,
        object,
        reason,
        consequence: format!(
            "restores from {} and from backups after it can go on timeline {} no further than {from}",
            plan.backup.id, plan.timeline
        ),
        damaged,
    }
}

/// The piece of the open segment that an error is about, as the last two parts of its key.
fn piece_in(error: &ReachError) -> Option<String> {
    let ReachError::Repository(RepositoryError::Damaged { key, .. } | RepositoryError::NoKey { key, .. }) = error
    else {
        return None;
    };
    wal_piece_of(key)?;
    let mut parts = key.as_str().rsplit('/');
    let (piece, folder) = (parts.next()?, parts.next()?);
    Some(format!("{folder}/{piece}"))
}

fn reason(error: &ReachError) -> String {
    match error {
        ReachError::Repository(error) => super::reason(error),
        ReachError::Damaged { source, .. } => source.to_string(),
        ReachError::Vanished { .. } => "it is missing".to_owned(),
        other => other.to_string(),
    }
}
