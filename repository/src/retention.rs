//! Retention: what is kept, what may go, and why. A plan is computed from what is stored, the policy and a moment;
//! nothing is read here and no clock is asked. `pgark-agent expire` prints it and carries it out.
//!
//! It works without any private key: from the commit marks, which are plain, and from names, sizes and times of objects.
//! Which timeline left which other one is not known then (histories may be encrypted), only that a child has a higher
//! number than its parent and begins at its lowest segment. So where several timelines may be the parent, what each of
//! them would need is kept. Whatever is unclear is kept: a backup too many costs money, a missing one costs the data.

mod anchors;
mod reason;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use pgark_postgres::{SegmentName, TimelineId};

pub use self::reason::{KeepReason, LeftoverFate, Refusal, WalReason};

use self::anchors::Anchors;
use self::rules::Rules;
use crate::backup::Backup;
use crate::backup_id::BackupId;

/// How far clocks of servers, hosts and stores may be apart before a plan relies on their order.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60 * 60);

/// What is to be kept: the union of all rules. Zero and `None` mean that a rule is not used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// So many of the newest full backups, with the incremental ones that came after the oldest of them.
    pub full: u32,
    /// Every moment of this time, up to now, can be restored.
    pub window: Option<Duration>,
    /// The last backup of each of so many days that have one; days and all other periods are those of UTC.
    pub daily: u32,
    /// The same for weeks, which begin on Monday.
    pub weekly: u32,
    /// The same for months.
    pub monthly: u32,
    /// The same for years.
    pub yearly: u32,
    /// How long nothing may have been written to an unfinished backup before it counts as interrupted.
    pub orphan_grace: Duration,
}

impl RetentionPolicy {
    /// Whether any rule says what may be deleted.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.full > 0 || self.window.is_some()
    }
}

/// What a repository holds of one cluster with one system identifier, as far as retention looks at it.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Finished backups.
    pub backups: Vec<StoredBackup>,
    /// Backups whose commit mark is there and cannot be read, with the reason.
    pub unreadable: BTreeMap<BackupId, String>,
    /// Folders without a commit mark.
    pub leftovers: Vec<Leftover>,
    /// Archived WAL by segment.
    pub wal: BTreeMap<SegmentName, StoredSegment>,
}

/// A finished backup in the store.
#[derive(Debug, Clone)]
pub struct StoredBackup {
    /// Its commit mark.
    pub backup: Backup,
    /// Bytes of all of its objects.
    pub bytes: u64,
    /// Why an object of it is not as the commit mark says, which a listing shows.
    pub fault: Option<String>,
    /// Why it is held, where it is.
    pub hold: Option<String>,
    /// What the store said that does not let it be deleted yet.
    pub locked: Option<String>,
}

/// A backup's folder without a commit mark: of a backup that runs, that was interrupted, or that was being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The backup's id.
    pub id: BackupId,
    /// When it was claimed. `None` where the claim is gone, which is created first and deleted before everything but
    /// the commit mark.
    pub claimed: Option<Timestamp>,
    /// The backup that it builds on.
    pub parent: Option<BackupId>,
    /// When its newest object was stored.
    pub last_written: Timestamp,
    /// Bytes of all of its objects.
    pub bytes: u64,
}

/// Everything that is stored under a segment's name: the segment, its pieces, a partial one, a backup's note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredSegment {
    /// Whether the whole segment is among it.
    pub is_whole: bool,
    /// How many objects.
    pub objects: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// When the newest of them was stored, which is not before its WAL was written.
    pub stored: Timestamp,
}

/// What an expiry would do.
#[derive(Debug, Clone)]
pub struct RetentionPlan {
    /// The moment from which windows are counted back: never later than the newest thing that is stored.
    pub now: Timestamp,
    /// Every moment since then can be restored, as far as backups go back; `None` keeps everything.
    pub since: Option<Timestamp>,
    /// Why no backup and no WAL is deleted although a policy would have it so.
    pub refusal: Option<Refusal>,
    /// Each finished backup, oldest first, with the reasons to keep it. One without a reason is deleted.
    pub backups: Vec<PlannedBackup>,
    /// Each folder without a commit mark.
    pub leftovers: Vec<PlannedLeftover>,
    /// Each segment with the reason to keep it. One without a reason is deleted.
    pub wal: BTreeMap<SegmentName, PlannedSegment>,
}

/// A finished backup in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBackup {
    /// Its id.
    pub id: BackupId,
    /// When it ended.
    pub stop_time: Timestamp,
    /// Bytes of all of its objects.
    pub bytes: u64,
    /// Why it does not count as a backup that can be restored.
    pub fault: Option<String>,
    /// Why it is kept; nothing if it is not.
    pub reasons: Vec<KeepReason>,
}

/// A folder without a commit mark in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLeftover {
    /// The id of its backup.
    pub id: BackupId,
    /// Bytes of all of its objects.
    pub bytes: u64,
    /// What becomes of it.
    pub fate: LeftoverFate,
}

/// A segment in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedSegment {
    /// Objects under its name.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Why it is kept; nothing if it is not.
    pub reason: Option<WalReason>,
}

/// Neighbouring segments of one timeline that are kept for one reason, or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalStretch {
    /// The first segment.
    pub first: SegmentName,
    /// The last segment.
    pub last: SegmentName,
    /// How many.
    pub segments: u64,
    /// Objects under their names.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Why they are kept; nothing if they are not.
    pub reason: Option<WalReason>,
}

/// Plans an expiry at the moment `clock`.
#[must_use]
pub fn plan_retention(contents: &Contents, policy: &RetentionPolicy, clock: Timestamp) -> RetentionPlan {
    let now = contents.newest_moment().map_or(clock, |newest| newest.min(clock));
    let leftovers: Vec<PlannedLeftover> = contents.leftovers.iter().map(|left| left.plan(policy, now)).collect();
    let stock = Stock::new(contents);
    let (since, refusal) = match stock.promised_since(policy, now) {
        Ok(since) => (since, None),
        Err(refusal) => (None, Some(refusal)),
    };
    let Some(promised) = since else {
        let backups = stock.plan(|_| vec![KeepReason::Everything]);
        let wal = stock.plan_wal(|_| Some(WalReason::Everything));
        return RetentionPlan { now, since, refusal, backups, leftovers, wal };
    };
    let anchors = Anchors::of_every_moment(&stock, promised);
    let claims = contents.leftovers.iter().zip(&leftovers).filter(|(_, planned)| planned.fate.is_running());
    let running = claims.filter_map(|(left, _)| left.claimed).min();
    let running = running.map(|claimed| Anchors::of_a_running_backup(&stock, before(claimed, CLOCK_TOLERANCE)));
    let parents = contents.leftovers.iter().zip(&leftovers).filter(|(_, planned)| planned.fate.is_running());
    let parents = parents.filter_map(|(left, _)| Some((left.parent.as_ref()?, &left.id))).collect();
    let running = running.as_ref();
    let kept = Rules { stock: &stock, policy, anchors: &anchors, running, parents, promised }.reasons();
    let wal = stock.plan_wal(|name| {
        let needs = |anchors: &Anchors<'_>, reason| anchors.need(name).then_some(reason);
        let moments = needs(&anchors, WalReason::Moments { since: promised });
        let running = || running.and_then(|running| needs(running, WalReason::BackupRuns));
        moments.or_else(|| stock.consistency_of(kept.keys(), name)).or_else(running)
    });
    let backups = stock.plan(|id| kept.get(id).cloned().unwrap_or_default());
    RetentionPlan { now, since, refusal, backups, leftovers, wal }
}

impl RetentionPlan {
    /// The backups that are deleted, oldest first.
    pub fn deleted_backups(&self) -> impl Iterator<Item = &PlannedBackup> {
        self.backups.iter().filter(|backup| backup.reasons.is_empty())
    }

    /// The leftovers that are deleted.
    pub fn deleted_leftovers(&self) -> impl Iterator<Item = &PlannedLeftover> {
        self.leftovers.iter().filter(|left| !left.fate.is_running())
    }

    /// Whether what is stored under a segment's name is deleted.
    #[must_use]
    pub fn deletes(&self, segment: &SegmentName) -> bool {
        self.wal.get(segment).is_some_and(|planned| planned.reason.is_none())
    }

    /// Bytes that carrying out the plan frees.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        let wal = self.wal.values().filter(|segment| segment.reason.is_none()).map(|segment| segment.bytes);
        let backups = self.deleted_backups().map(|backup| backup.bytes);
        wal.chain(backups).chain(self.deleted_leftovers().map(|left| left.bytes)).sum()
    }

    /// The WAL in stretches, for people.
    #[must_use]
    pub fn wal_stretches(&self) -> Vec<WalStretch> {
        let mut stretches: Vec<WalStretch> = Vec::new();
        for (name, planned) in &self.wal {
            let PlannedSegment { objects, bytes, reason } = planned.clone();
            match stretches.last_mut() {
                Some(last) if last.last.timeline == name.timeline && last.reason == reason => {
                    last.last = *name;
                    last.segments += 1;
                    last.objects += objects;
                    last.bytes += bytes;
                }
                _ => stretches.push(WalStretch { first: *name, last: *name, segments: 1, objects, bytes, reason }),
            }
        }
        stretches
    }
}

impl Contents {
    /// The newest moment of which anything stored tells. A clock that ran away must not make everything old.
    fn newest_moment(&self) -> Option<Timestamp> {
        let backups = self.backups.iter().map(|stored| stored.backup.stop_time);
        let leftovers = self.leftovers.iter().map(|left| left.last_written);
        backups.chain(leftovers).chain(self.wal.values().map(|segment| segment.stored)).max()
    }
}

impl Leftover {
    fn plan(&self, policy: &RetentionPolicy, now: Timestamp) -> PlannedLeftover {
        let until = self.last_written.checked_add(policy.orphan_grace).unwrap_or(Timestamp::MAX);
        let fate = match self.claimed {
            None => LeftoverFate::FinishDeletion,
            Some(_) if until > now => LeftoverFate::Running { until },
            Some(_) => LeftoverFate::DeleteInterrupted { last_written: self.last_written },
        };
        PlannedLeftover { id: self.id.clone(), bytes: self.bytes, fate }
    }
}

/// The contents with what follows from them at once.
struct Stock<'c> {
    contents: &'c Contents,
    by_id: BTreeMap<&'c BackupId, &'c StoredBackup>,
    /// Why a backup cannot be restored, or should not be relied on.
    faults: BTreeMap<&'c BackupId, String>,
    /// Those without a fault that nothing stands in for.
    countable: Vec<&'c Backup>,
    /// Backups from which, with their chains, full ones were made that can be restored.
    consolidated: BTreeSet<&'c BackupId>,
}

impl<'c> Stock<'c> {
    fn new(contents: &'c Contents) -> Self {
        let by_id = contents.backups.iter().map(|stored| (&stored.backup.id, stored)).collect();
        let faults = BTreeMap::new();
        let mut stock = Self { contents, by_id, faults, countable: Vec::new(), consolidated: BTreeSet::new() };
        stock.faults = contents.backups.iter().filter_map(|one| Some((&one.backup.id, stock.fault(one)?))).collect();
        let backups = contents.backups.iter().map(|stored| &stored.backup);
        stock.countable = backups.filter(|backup| !stock.faults.contains_key(&backup.id)).collect();
        stock.consolidated =
            stock.countable.iter().filter_map(|backup| Some(&backup.consolidated.as_ref()?.from)).collect();
        stock.countable.retain(|backup| !stock.consolidated.contains(&backup.id));
        stock
    }

    fn fault(&self, stored: &StoredBackup) -> Option<String> {
        for id in self.chain(&stored.backup.id) {
            match self.by_id.get(id) {
                None => return Some(format!("its parent {id} is missing")),
                Some(link) if link.fault.is_some() => return link.fault.clone(),
                Some(_) => {}
            }
        }
        let backup = &stored.backup;
        if backup.damaged_pages.is_some() {
            return Some("the source had damaged pages".to_owned());
        }
        let size = backup.segment_size();
        let is_whole = |timeline: u32, number: u64| {
            let name = TimelineId::new(timeline).map(|timeline| SegmentName::from_number(timeline, number, size));
            name.and_then(|name| self.contents.wal.get(&name)).is_some_and(|segment| segment.is_whole)
        };
        let mut timelines = backup.timeline.get()..=backup.stop_timeline.get();
        let mut numbers = backup.wal.first.number(size)..=backup.wal.last.number(size);
        let missing = numbers.find(|number| !timelines.clone().any(|timeline| is_whole(timeline, *number)))?;
        let name = SegmentName::from_number(TimelineId::new(timelines.next()?)?, missing, size);
        Some(format!("its WAL segment {name} is missing"))
    }

    /// A backup and those that it builds on, as far as they are known.
    fn chain<'s>(&'s self, id: &'s BackupId) -> impl Iterator<Item = &'s BackupId> {
        let mut seen = BTreeSet::new();
        std::iter::successors(Some(id), |id| self.by_id.get(*id).and_then(|stored| stored.backup.parent.as_ref()))
            .take_while(move |id| seen.insert(*id))
    }

    /// The moment since which the policy promises every moment; nothing if it limits nothing, and an error if nothing
    /// may be deleted.
    fn promised_since(&self, policy: &RetentionPolicy, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
        if let Some((id, reason)) = self.contents.unreadable.first_key_value() {
            return Err(Refusal::Unreadable { id: id.clone(), reason: reason.clone() });
        }
        if !policy.is_limited() {
            return Ok(None);
        }
        let mut full: Vec<Timestamp> = self.countable_full().map(|backup| backup.stop_time).collect();
        if full.is_empty() {
            let newest = self.faults.last_key_value();
            return Err(newest.map_or(Refusal::NoBackup, |(id, fault)| Refusal::NothingToRestore {
                newest: (*id).clone(),
                fault: fault.clone(),
            }));
        }
        if let Some(window) = policy.window {
            return Ok(Some(before(now, window)));
        }
        // Without a window, that is since the oldest of the full backups that are kept by their number.
        full.sort_unstable_by(|one, other| other.cmp(one));
        full.truncate(policy.full as usize);
        Ok(full.last().copied())
    }

    fn countable_full(&self) -> impl Iterator<Item = &'c Backup> {
        self.countable.iter().copied().filter(|backup| backup.parent.is_none())
    }

    fn timelines(&self) -> BTreeSet<TimelineId> {
        let wal = self.contents.wal.keys().map(|segment| segment.timeline);
        let backups = self.contents.backups.iter().map(|stored| &stored.backup);
        wal.chain(backups.flat_map(|backup| [backup.timeline, backup.stop_timeline])).collect()
    }

    fn plan_wal(&self, reason: impl Fn(&SegmentName) -> Option<WalReason>) -> BTreeMap<SegmentName, PlannedSegment> {
        let planned = |name: &SegmentName, stored: &StoredSegment| PlannedSegment {
            objects: stored.objects,
            bytes: stored.bytes,
            reason: reason(name),
        };
        self.contents.wal.iter().map(|(name, stored)| (*name, planned(name, stored))).collect()
    }

    fn plan(&self, reasons: impl Fn(&BackupId) -> Vec<KeepReason>) -> Vec<PlannedBackup> {
        let planned = |stored: &StoredBackup| PlannedBackup {
            id: stored.backup.id.clone(),
            stop_time: stored.backup.stop_time,
            bytes: stored.bytes,
            fault: self.faults.get(&stored.backup.id).cloned(),
            reasons: reasons(&stored.backup.id),
        };
        self.by_id.values().map(|stored| planned(stored)).collect()
    }

    /// Whether the segment makes one of these backups consistent: it lies between its start and its stop.
    fn consistency_of<'i>(&self, ids: impl Iterator<Item = &'i &'c BackupId>, name: &SegmentName) -> Option<WalReason>
    where
        'c: 'i,
    {
        let mut backups = ids.filter_map(|id| self.by_id.get(*id)).map(|stored| &stored.backup);
        backups
            .find(|backup| backup.has_own_segment(name))
            .map(|backup| WalReason::Consistency { id: backup.id.clone() })
    }
}

fn before(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_sub(by).unwrap_or(Timestamp::MIN)
}
