//! From which backups every moment since `since` is restored, and which WAL that needs.
//!
//! For each timeline that was written since then, an anchor is looked for: the newest backup on it that ended before
//! `since`. A timeline that has none began later, or was not backed up by then: its moments are restored from a backup
//! of an ancestor that ended before the timeline began, which is in or before its lowest segment. The parent is not known,
//! so every lower timeline is asked, and a backup that ended in that very segment counts besides an earlier one. All WAL behind an anchor, on its timeline and on higher ones, is needed.
//!
//! On one timeline backups are ordered by position: clocks jump, positions do not.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pgark_postgres::{Lsn, SegmentName, TimelineId};

use super::{CLOCK_TOLERANCE, Stock, before};
use crate::backup::Backup;
use crate::backup_id::BackupId;

/// What is found; see the module's words.
#[derive(Default)]
pub(super) struct Anchors<'c> {
    /// Backups behind which all WAL is needed.
    backups: Vec<&'c Backup>,
    /// Those among them that ended before `since`.
    opening: BTreeSet<&'c BackupId>,
    /// For each timeline the position behind which all of its backups count as later than `since`, whatever their
    /// times say.
    behind: BTreeMap<TimelineId, Lsn>,
    /// Timelines of which all WAL is needed.
    whole: BTreeSet<TimelineId>,
}

/// Where a timeline was left for another one, as far as segments tell: not before `sure`, and not behind `possible`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Limit {
    sure: Lsn,
    possible: Lsn,
}

const NO_LIMIT: Limit = Limit { sure: Lsn::MAX, possible: Lsn::MAX };

/// The search for anchors.
struct Search<'s, 'c> {
    stock: &'s Stock<'c>,
    timelines: BTreeSet<TimelineId>,
    since: Timestamp,
    /// Whether the first backup of a timeline is enough where none ended before `since`.
    first_is_enough: bool,
    asked: BTreeSet<(TimelineId, Limit)>,
    found: Anchors<'c>,
}

impl<'c> Anchors<'c> {
    /// What every moment since then needs.
    pub(super) fn of_every_moment(stock: &Stock<'c>, since: Timestamp) -> Self {
        Search::new(stock, since, true).run()
    }

    /// What a backup needs that began then and has not said where: the WAL behind backups that had ended.
    pub(super) fn of_a_running_backup(stock: &Stock<'c>, since: Timestamp) -> Self {
        Search::new(stock, since, false).run()
    }

    /// Whether the first moments are restored from this backup.
    pub(super) fn begin_with(&self, backup: &Backup) -> bool {
        self.opening.contains(&backup.id)
    }

    /// Whether the backup lies behind an anchor of its timeline.
    pub(super) fn lead_to(&self, backup: &Backup) -> bool {
        self.behind.get(&backup.stop_timeline).is_some_and(|anchor| backup.stop_lsn > *anchor)
    }

    /// Whether the segment is needed.
    pub(super) fn need(&self, name: &SegmentName) -> bool {
        let is_behind = |anchor: &&Backup| {
            let size = anchor.segment_size();
            name.timeline >= anchor.timeline && name.number(size) >= anchor.wal.first.number(size)
        };
        self.backups.iter().any(is_behind) || self.whole.contains(&name.timeline)
    }
}

impl<'s, 'c> Search<'s, 'c> {
    fn new(stock: &'s Stock<'c>, since: Timestamp, first_is_enough: bool) -> Self {
        let (timelines, asked, found) = (stock.timelines(), BTreeSet::new(), Anchors::default());
        Self { stock, timelines, since, first_is_enough, asked, found }
    }

    fn run(mut self) -> Anchors<'c> {
        for timeline in self.live() {
            if !self.ask(timeline, NO_LIMIT) {
                self.found.whole.insert(timeline);
            }
        }
        self.found
    }

    /// The timelines that have moments since `since`.
    fn live(&self) -> BTreeSet<TimelineId> {
        let wal = &self.stock.contents.wal;
        let is_written = before(self.since, CLOCK_TOLERANCE);
        let written = wal.iter().filter(|(_, segment)| segment.stored >= is_written).map(|(name, _)| name.timeline);
        let backups = &self.stock.countable;
        let backed_up = backups.iter().filter(|backup| backup.stop_time > self.since);
        let newest = backups.iter().max_by_key(|backup| backup.stop_time);
        let highest = backups.iter().max_by_key(|backup| (backup.stop_timeline, backup.stop_lsn));
        written.chain(backed_up.chain(newest).chain(highest).map(|backup| backup.stop_timeline)).collect()
    }

    /// Looks for what the moments of a timeline need that lie before `limit`. Says whether anything was found.
    fn ask(&mut self, timeline: TimelineId, limit: Limit) -> bool {
        if !self.asked.insert((timeline, limit)) {
            return false;
        }
        let on_it = self.stock.countable.iter().filter(|backup| backup.stop_timeline == timeline);
        let mut backups: Vec<&'c Backup> = on_it.filter(|backup| backup.stop_lsn <= limit.possible).copied().collect();
        backups.sort_by_key(|backup| backup.stop_lsn);
        let perhaps = backups.split_off(backups.partition_point(|backup| backup.stop_lsn <= limit.sure));
        let mut is_found = !perhaps.is_empty();
        for backup in perhaps {
            self.add(backup, limit);
        }
        let before_window = backups.iter().take_while(|backup| backup.stop_time <= self.since).count();
        if let Some(anchor) = before_window.checked_sub(1).and_then(|index| backups.get(index)) {
            self.add(anchor, limit);
            return true;
        }
        match backups.first() {
            // All of its backups are later. What was before the first of them is restored from an ancestor's.
            Some(first) if self.first_is_enough => {
                self.add(first, limit);
                is_found = true;
            }
            _ if !self.first_is_enough => drop(self.found.whole.insert(timeline)),
            _ => {}
        }
        let limit = self.begin_of(timeline).map_or(limit, |begin| begin.before(limit));
        let parents: Vec<TimelineId> = self.timelines.range(..timeline).copied().collect();
        for parent in parents {
            is_found |= self.ask(parent, limit);
        }
        is_found
    }

    fn add(&mut self, anchor: &'c Backup, limit: Limit) {
        self.found.backups.push(anchor);
        if anchor.stop_time <= self.since {
            self.found.opening.insert(&anchor.id);
        }
        if limit == NO_LIMIT {
            self.found.behind.insert(anchor.stop_timeline, anchor.stop_lsn);
        }
    }

    /// Where a timeline began: in its lowest segment.
    fn begin_of(&self, timeline: TimelineId) -> Option<Limit> {
        let size = self.stock.countable.first().map(|backup| backup.segment_size())?;
        let first = self.stock.contents.wal.keys().find(|name| name.timeline == timeline)?;
        Some(Limit { sure: first.start(size), possible: first.end(size) })
    }
}

impl Limit {
    /// Both limits together.
    fn before(self, other: Self) -> Self {
        Self { sure: self.sure.min(other.sure), possible: self.possible.min(other.possible) }
    }
}
