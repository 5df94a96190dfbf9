//! What a restore would do, decided before anything is done: which backup, along which timelines, with which WAL.
//!
//! Everything here is computed from a [`Catalogue`] without reading anything else, so each rule can be tested with
//! made-up archives. What only the content of WAL can prove (is there a transaction after that time?) is left to
//! `reach`, which narrows the plan.
//!
//! The rules are the server's own. A backup serves a path of timelines if it ended before the path left its timeline.
//! Each segment is looked for on the newest timeline that has begun by then, because the first segment of a timeline
//! holds a copy of its parent's last bytes. `latest` means the highest timeline of the archive on which a backup fits.

mod error;
mod report;
#[cfg(test)]
pub(crate) mod tests;

use pgark_postgres::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId};
use pgark_repository::{Backup, BackupId, RepositoryError, UnreadableBackup, WalInventory, WholeSegment};

pub use error::PlanError;
pub(crate) use error::what_is_missing;
pub(crate) use report::BackupJson;
pub use report::PlanJson;

use crate::catalogue::Catalogue;
use crate::target::{RecoveryTarget, Target, TargetTimeline};

/// What is asked of a plan.
#[derive(Clone, Debug)]
pub struct Request {
    pub target: Target,
    /// The backup to use, where the user chose one.
    pub backup: Option<BackupId>,
}

/// What a restore will do.
#[derive(Clone, Debug)]
pub struct RestorePlan {
    pub repository: String,
    pub cluster: String,
    pub backup: Backup,
    /// The backups on which it builds, the nearest first.
    pub chain: Vec<Backup>,
    pub target: Target,
    /// The timeline on which recovery ends.
    pub timeline: TimelineId,
    /// Whether the server, told to follow the latest timeline, would find the same one.
    pub timeline_is_latest: bool,
    /// The timelines that are followed, with where each begins; the last one is `timeline`.
    pub path: Vec<PathStep>,
    pub segment_size: SegmentSize,
    /// The WAL that is there without a gap from the backup's start on, up to the end of the archive.
    pub segments: Vec<PlannedSegment>,
    /// How many of them the target needs.
    pub needed: usize,
    /// The first segment that is not there, and what is known to lie behind it: then there is a gap.
    pub missing: SegmentName,
    pub behind_gap: Option<BehindGap>,
    /// The position up to which WAL is there.
    pub reachable: Lsn,
    /// Where recovery will stop, once WAL has proven it.
    pub stop: Option<StopPoint>,
    /// The last transaction that ended in this WAL, once it has been looked for.
    pub last_transaction: Option<StopPoint>,
    /// What the user should know besides.
    pub notes: Vec<String>,
    /// Older backups that serve too, newest first; only where the WAL has to tell which one does.
    pub older: Vec<BackupId>,
}

/// A timeline of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStep {
    pub timeline: TimelineId,
    pub begin: Lsn,
}

/// An archived segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedSegment {
    pub name: SegmentName,
    pub stored_size: u64,
}

/// What shows that more was written than the archive has without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BehindGap {
    /// The next segment that is archived; the missing one itself, where it lacks a piece.
    Segment(SegmentName),
    /// Where another timeline left that of the missing segment.
    Switch(Lsn),
}

/// A record that WAL was searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopPoint {
    /// Where the record begins.
    pub lsn: Lsn,
    /// Its time, in microseconds since 1970.
    pub time: Option<i64>,
    pub segment: SegmentName,
}

impl RestorePlan {
    /// The segment that is missing where more was written.
    pub fn gap(&self) -> Option<SegmentName> {
        self.behind_gap.map(|_| self.missing)
    }

    /// The segments that the target needs.
    pub fn needed_segments(&self) -> &[PlannedSegment] {
        self.segments.get(..self.needed).unwrap_or(&self.segments)
    }

    /// Bytes of the files of all backups that are read.
    pub fn raw_bytes(&self) -> u64 {
        self.chain.iter().chain([&self.backup]).map(|backup| backup.totals.raw_size).sum()
    }

    /// How many segments hold everything up to (and not including) `end`.
    pub fn segments_before(&self, end: Lsn) -> usize {
        let bytes = end.bytes_since(self.segment_size.start_of(self.backup.start_lsn)).unwrap_or(0);
        usize::try_from(bytes.div_ceil(self.segment_size.bytes())).unwrap_or(usize::MAX).min(self.segments.len())
    }
}

/// Plans a restore.
pub fn plan(catalogue: &Catalogue, request: &Request) -> Result<RestorePlan, PlanError> {
    let candidates = candidates(catalogue, request)?;
    let choice = choose(catalogue, request, &candidates)?;
    if request.target.timeline == TargetTimeline::Latest {
        check_histories(catalogue, choice.backup.timeline)?;
    }
    let mut plan = lay_out(catalogue, &request.target, &choice)?;
    if request.backup.is_none() && matches!(request.target.stop, RecoveryTarget::Xid(_) | RecoveryTarget::Name(_)) {
        let older = candidates.iter().skip_while(|backup| backup.id != choice.backup.id).skip(1);
        plan.older = older.filter(|backup| leaves(choice.path, backup)).map(|backup| backup.id.clone()).collect();
    }
    Ok(plan)
}

/// The backups that may serve at all, newest first.
fn candidates<'c>(catalogue: &'c Catalogue, request: &Request) -> Result<Vec<&'c Backup>, PlanError> {
    let finished = &catalogue.backups.finished;
    if let Some(id) = &request.backup {
        let Some(backup) = catalogue.backup(id) else {
            if let Some(unreadable) = catalogue.backups.unreadable.iter().find(|unreadable| unreadable.id == *id) {
                return Err(cannot_be_read(unreadable));
            }
            if catalogue.backups.unfinished.iter().any(|unfinished| unfinished.id == *id) {
                return Err(PlanError::Unfinished { id: id.clone() });
            }
            let known = finished.iter().map(|backup| backup.id.clone()).collect();
            return Err(PlanError::UnknownBackup { id: id.clone(), known });
        };
        catalogue.chain_below(backup).map_err(|missing| PlanError::BrokenChain { id: id.clone(), missing })?;
        return Ok(vec![backup]);
    }
    let whole: Vec<&Backup> = finished.iter().rev().filter(|backup| catalogue.chain_below(backup).is_ok()).collect();
    if let (true, Some(unreadable)) = (whole.is_empty(), catalogue.backups.unreadable.last()) {
        return Err(cannot_be_read(unreadable));
    }
    if whole.is_empty() {
        if let Some((id, Err(missing))) = finished.last().map(|last| (last.id.clone(), catalogue.chain_below(last))) {
            return Err(PlanError::BrokenChain { id, missing });
        }
        let (cluster, repository) = (catalogue.cluster.clone(), catalogue.repository.clone());
        return Err(PlanError::NoBackup { cluster, repository, unfinished: catalogue.backups.unfinished.len() });
    }
    Ok(whole)
}

fn cannot_be_read(backup: &UnreadableBackup) -> PlanError {
    let is_newer = matches!(*backup.error, RepositoryError::NewerFormat { .. });
    PlanError::Unreadable { id: backup.id.clone(), reason: backup.error.to_string(), is_newer }
}

/// A backup and the path on which it serves.
struct Choice<'c> {
    backup: &'c Backup,
    path: &'c TimelineHistory,
}

fn choose<'c>(catalogue: &'c Catalogue, request: &Request, candidates: &[&'c Backup]) -> Result<Choice<'c>, PlanError> {
    let newest = catalogue.newest_timeline();
    let paths: Vec<&TimelineHistory> = match request.target.timeline {
        TargetTimeline::Number(number) => match catalogue.histories.get(&number) {
            Some(history) if number <= newest => vec![history],
            _ if number <= newest => return Err(PlanError::MissingHistory { missing: number, newest }),
            _ => return Err(PlanError::UnknownTimeline { timeline: number, newest }),
        },
        TargetTimeline::Latest if !catalogue.histories.contains_key(&newest) => {
            return Err(PlanError::MissingHistory { missing: newest, newest });
        }
        TargetTimeline::Latest => catalogue.histories.values().rev().collect(),
        // The newest backup in time decides.
        TargetTimeline::Current => {
            for backup in candidates {
                let Some(path) = catalogue.histories.get(&backup.timeline) else {
                    return Err(PlanError::MissingHistory { missing: backup.timeline, newest });
                };
                if leaves(path, backup) && is_early_enough(&request.target, backup) {
                    return Ok(Choice { backup, path });
                }
            }
            Vec::new()
        }
    };
    for path in &paths {
        let fits = |backup: &&&Backup| leaves(path, backup) && is_early_enough(&request.target, backup);
        if let Some(backup) = candidates.iter().find(fits) {
            return Ok(Choice { backup, path });
        }
    }
    Err(refuse(catalogue, request, candidates, paths.first().copied()))
}

/// Says why no backup serves.
fn refuse(
    catalogue: &Catalogue,
    request: &Request,
    candidates: &[&Backup],
    path: Option<&TimelineHistory>,
) -> PlanError {
    let on_path = |backup: &&&Backup| match (request.target.timeline, path) {
        (TargetTimeline::Number(_), Some(path)) => leaves(path, backup),
        _ => catalogue.histories.values().any(|path| leaves(path, backup)),
    };
    // The earliest moment that any of them can reach.
    match (candidates.iter().filter(on_path).min_by_key(|backup| backup.stop_time), candidates.first()) {
        (Some(earliest), _) => PlanError::TooEarly {
            target: request.target.to_string(),
            backup: earliest.id.clone(),
            stop_time: earliest.stop_time,
            stop_lsn: earliest.stop_lsn,
            is_forced: request.backup.is_some(),
        },
        (None, Some(backup)) => {
            let timeline = path.map_or(backup.timeline, TimelineHistory::timeline);
            let left = path.and_then(|path| path.switch_point(backup.timeline));
            PlanError::NotOnPath {
                backup: backup.id.clone(),
                backup_timeline: backup.timeline,
                stop_lsn: backup.stop_lsn,
                timeline,
                left,
                is_forced: request.backup.is_some(),
            }
        }
        (None, None) => PlanError::NoBackup {
            cluster: catalogue.cluster.clone(),
            repository: catalogue.repository.clone(),
            unfinished: catalogue.backups.unfinished.len(),
        },
    }
}

/// Whether the path still follows the backup's timeline where the backup ended.
fn leaves(path: &TimelineHistory, backup: &Backup) -> bool {
    let holds_start = path.contains(backup.timeline, backup.start_lsn);
    let is_on_path = |timeline: TimelineId| path.path().iter().any(|(step, _, _)| *step == timeline);
    let holds_stop = match path.switch_point(backup.stop_timeline) {
        Some(switch) => backup.stop_lsn <= switch,
        None => is_on_path(backup.stop_timeline),
    };
    holds_start && holds_stop
}

/// Whether the backup is consistent before the target. A transaction or a name can only be found in WAL.
fn is_early_enough(target: &Target, backup: &Backup) -> bool {
    match &target.stop {
        RecoveryTarget::Time(time) => backup.stop_time <= time.timestamp(),
        RecoveryTarget::Lsn(lsn) => backup.stop_lsn <= *lsn,
        RecoveryTarget::EndOfArchive | RecoveryTarget::Immediate | RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) => {
            true
        }
    }
}

/// The server looks for histories in the order of their numbers and stops at the first that is missing; the number
/// would then be given away a second time.
fn check_histories(catalogue: &Catalogue, from: TimelineId) -> Result<(), PlanError> {
    let newest = catalogue.newest_timeline();
    let mut between = (from.get() + 1..=newest.get()).filter_map(TimelineId::new);
    match between.find(|timeline| !catalogue.histories.contains_key(timeline)) {
        Some(missing) => Err(PlanError::MissingHistory { missing, newest }),
        None => Ok(()),
    }
}

/// Finds the WAL along the path, and checks that it reaches as far as can be known without reading it.
fn lay_out(catalogue: &Catalogue, target: &Target, choice: &Choice<'_>) -> Result<RestorePlan, PlanError> {
    let Choice { backup, path } = *choice;
    let segment_size = SegmentSize::new(backup.server.wal_segment_size.into())
        .map_err(|source| PlanError::SegmentSize { id: backup.id.clone(), source })?;
    let steps: Vec<PathStep> =
        path.path().into_iter().map(|(timeline, begin, _)| PathStep { timeline, begin }).collect();
    let found = contiguous(&catalogue.wal, &steps, backup.start_lsn, segment_size);
    let mut plan = RestorePlan {
        repository: catalogue.repository.clone(),
        cluster: catalogue.cluster.clone(),
        backup: backup.clone(),
        chain: catalogue.chain_below(backup).unwrap_or_default().into_iter().cloned().collect(),
        target: target.clone(),
        timeline: path.timeline(),
        timeline_is_latest: path.timeline() == catalogue.newest_timeline(),
        path: used_steps(&steps, backup),
        segment_size,
        needed: found.segments.len(),
        missing: found.missing,
        behind_gap: behind_gap(catalogue, &found, segment_size),
        segments: found.segments,
        reachable: found.reachable,
        stop: None,
        last_transaction: None,
        notes: notes(catalogue, path, backup, segment_size),
        older: Vec::new(),
    };
    if plan.reachable < backup.stop_lsn {
        return Err(PlanError::BackupLacksWal {
            id: backup.id.clone(),
            missing: plan.missing,
            stop_lsn: backup.stop_lsn,
        });
    }
    match &target.stop {
        RecoveryTarget::Immediate => plan.needed = plan.segments_before(backup.stop_lsn),
        RecoveryTarget::Lsn(lsn) if *lsn >= plan.reachable => {
            return Err(PlanError::BeyondArchive {
                lsn: *lsn,
                reachable: plan.reachable,
                missing: plan.missing,
                behind_gap: plan.behind_gap,
            });
        }
        RecoveryTarget::Lsn(lsn) => plan.needed = plan.segments_before(lsn.saturating_add(1)),
        RecoveryTarget::EndOfArchive => {
            if let Some(behind) = plan.behind_gap {
                return Err(PlanError::Gap { missing: plan.missing, behind, reachable: plan.reachable });
            }
        }
        RecoveryTarget::Time(_) | RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) => {}
    }
    Ok(plan)
}

/// The part of the path that the restore really walks.
fn used_steps(steps: &[PathStep], backup: &Backup) -> Vec<PathStep> {
    steps.iter().copied().skip_while(|step| step.timeline != backup.timeline).collect()
}

struct Contiguous {
    segments: Vec<PlannedSegment>,
    missing: SegmentName,
    /// The next segment that is there; the missing one itself, where it lacks a piece.
    next: Option<SegmentName>,
    reachable: Lsn,
}

fn contiguous(wal: &WalInventory, steps: &[PathStep], start: Lsn, size: SegmentSize) -> Contiguous {
    let archived = &wal.segments;
    // The last segment may be there in pieces. Of the first one of a timeline they must hold more than its parent's.
    let open = |name: &SegmentName, begin: Lsn| {
        let open = wal.open.get(name)?;
        let end = name.start(size).saturating_add(open.covered().into());
        (end > begin.max(name.start(size))).then_some((end, open.stored_size()))
    };
    let mut segments = Vec::new();
    let mut number = start.as_u64() / size.bytes();
    loop {
        let (name, begin) = source_of(steps, number, size);
        if let Some(&WholeSegment { stored_size, .. }) = archived.get(&name) {
            segments.push(PlannedSegment { name, stored_size });
            number += 1;
            continue;
        }
        let mut reachable = name.start(size);
        // The first segment of a timeline that is not archived yet: its parent's holds everything up to the switch.
        let parent = steps.iter().rev().find(|step| step.timeline < name.timeline);
        if let Some((end, stored_size)) = open(&name, begin) {
            segments.push(PlannedSegment { name, stored_size });
            reachable = end;
        } else if let Some(parent) = parent.filter(|_| begin > reachable) {
            let name = SegmentName { timeline: parent.timeline, ..name };
            if let Some(&WholeSegment { stored_size, .. }) = archived.get(&name) {
                segments.push(PlannedSegment { name, stored_size });
                reachable = begin;
            } else if let Some((end, stored_size)) = open(&name, Lsn::ZERO) {
                segments.push(PlannedSegment { name, stored_size });
                reachable = end.min(begin);
            }
        }
        let later = archived
            .keys()
            .filter(|later| later.number(size) > number && source_of(steps, later.number(size), size).0 == **later);
        // A piece that is missing is a gap as well, with the rest of its own segment behind it.
        let holed = segments.last().map(|last| last.name).into_iter().chain([name]);
        let mut holed = holed.filter(|name| wal.open.get(name).is_some_and(|open| open.hole().is_some()));
        let next = later.min_by_key(|later| later.number(size)).copied().or(holed.next());
        return Contiguous { segments, missing: name, next, reachable };
    }
}

/// What shows that more was written: later segments, or a timeline that left this one further behind.
fn behind_gap(catalogue: &Catalogue, found: &Contiguous, size: SegmentSize) -> Option<BehindGap> {
    let left = catalogue.histories.values().filter_map(|history| history.switch_point(found.missing.timeline));
    let left = left.filter(|switch| *switch > found.missing.end(size)).max();
    found.next.map(BehindGap::Segment).or(left.map(BehindGap::Switch))
}

/// The name under which the server looks for a segment first, and where its timeline begins.
fn source_of(steps: &[PathStep], number: u64, size: SegmentSize) -> (SegmentName, Lsn) {
    let has_begun = |step: &&PathStep| step.begin.as_u64() / size.bytes() <= number;
    // The first step begins at zero.
    let step = steps.iter().rev().find(has_begun).or(steps.first());
    let (timeline, begin) = step.map_or((TimelineId::FIRST, Lsn::ZERO), |step| (step.timeline, step.begin));
    (SegmentName::from_number(timeline, number, size), begin)
}

fn notes(catalogue: &Catalogue, path: &TimelineHistory, backup: &Backup, size: SegmentSize) -> Vec<String> {
    let passed_over = catalogue.backups.unreadable.iter().filter(|unreadable| unreadable.id > backup.id);
    let mut notes: Vec<String> =
        passed_over.map(|other| format!("the backup {} was passed over: {}", other.id, other.error)).collect();
    let followed: Vec<TimelineId> = path.path().into_iter().map(|(timeline, _, _)| timeline).collect();
    for (timeline, _, end) in path.path() {
        let Some(end) = end else { continue };
        let goes_on =
            catalogue.wal.segments.keys().any(|segment| segment.timeline == timeline && segment.start(size) > end);
        if goes_on && backup.stop_lsn <= end {
            notes.push(format!(
                "timeline {timeline} goes on behind {end}, where it is left here: --target-timeline {timeline}"
            ));
        }
    }
    for history in catalogue.histories.values() {
        let timeline = history.timeline();
        let has_wal = catalogue.wal.segments.keys().any(|segment| segment.timeline == timeline);
        if followed.contains(&timeline) || !has_wal || !leaves(history, backup) {
            continue;
        }
        let from = history.entries().last();
        let origin = from
            .map(|entry| format!(", which left timeline {} at {}", entry.timeline, entry.switch_lsn))
            .unwrap_or_default();
        notes.push(format!(
            "timeline {timeline}{origin}, is another branch that this backup can follow: --target-timeline {timeline}"
        ));
    }
    if let Some(words) = &backup.damaged_pages {
        let files = match backup.damaged_files.as_slice() {
            [] => String::new(),
            files => format!(" (in {})", files.join(", ")),
        };
        notes.push(format!(
            "the source had damaged pages when this backup was taken, and they are in it{files}: {words}"
        ));
    }
    let left_out = backup.files_left_out();
    if !left_out.is_empty() {
        notes.push(format!(
            "configuration files lay outside of the data directory and are not in the backup: {}",
            left_out.join(", ")
        ));
    }
    for reason in &catalogue.unread {
        notes.push(format!(
            "what only another repository holds is not in this plan ({reason}); while it does not answer, recovery stops \
             where the others end, unless --repository chooses one"
        ));
    }
    if !catalogue.others.is_empty() {
        let others = catalogue.others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "other clusters are stored under the same name; choose one with --system-identifier: {others}"
        ));
    }
    notes
}
