//! The rules that keep backups, each on its own; what any of them keeps is kept.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::anchors::Anchors;
use super::{KeepReason, RetentionPolicy, Stock};
use crate::backup::Backup;
use crate::backup_id::BackupId;

pub(super) struct Rules<'r, 'c> {
    pub(super) stock: &'r Stock<'c>,
    pub(super) policy: &'r RetentionPolicy,
    pub(super) anchors: &'r Anchors<'c>,
    pub(super) running: Option<&'r Anchors<'c>>,
    /// Backups on which one builds that runs.
    pub(super) parents: BTreeMap<&'r BackupId, &'r BackupId>,
    /// Every moment since then is promised.
    pub(super) promised: Timestamp,
}

type Reasons<'c> = BTreeMap<&'c BackupId, Vec<KeepReason>>;

impl<'c> Rules<'_, 'c> {
    /// The backups that are kept, with all reasons.
    pub(super) fn reasons(&self) -> Reasons<'c> {
        let mut kept: Reasons<'c> = BTreeMap::new();
        let calendar = self.calendar();
        let last = self.last_restorable();
        for stored in &self.stock.contents.backups {
            let backup = &stored.backup;
            let mut reasons = Vec::new();
            reasons.extend(stored.hold.clone().map(|reason| KeepReason::Held { reason }));
            if !self.stock.consolidated.contains(&backup.id) {
                reasons.extend(self.full(backup));
                reasons.extend(self.window(backup));
            }
            reasons.extend(self.parents.get(&backup.id).map(|&id| KeepReason::ParentOf { id: id.clone() }));
            reasons.extend(calendar.get(&backup.id).into_iter().flatten().cloned());
            if reasons.is_empty() && last.contains(&&backup.id) {
                reasons.push(KeepReason::LastRestorable);
            }
            // Only what would go otherwise is tried to be deleted, so only there a lock is news.
            if reasons.is_empty() {
                reasons.extend(stored.locked.clone().map(|words| KeepReason::Locked { words }));
            }
            if !reasons.is_empty() {
                kept.insert(&backup.id, reasons);
            }
        }
        self.keep_parents(&mut kept);
        kept
    }

    /// A backup that cannot be restored is kept as long as one in its place would be, but it takes nobody's place.
    fn full(&self, backup: &Backup) -> Option<KeepReason> {
        let keep = self.policy.full;
        let newer = |is_newer: fn(&Backup, &Backup) -> bool| {
            self.stock.countable_full().filter(|other| other.id != backup.id && is_newer(other, backup)).count()
        };
        // A server's clock may have jumped, and a timeline may have been left for an older one: by either order.
        let by_time = newer(|other, backup| other.stop_time > backup.stop_time);
        let by_position = newer(|other, backup| position(other) > position(backup));
        (by_time.min(by_position) < keep as usize).then_some(KeepReason::Full { keep })
    }

    fn window(&self, backup: &Backup) -> Option<KeepReason> {
        let since = self.promised;
        let is_inside = backup.stop_time > since || self.anchors.lead_to(backup);
        if is_inside && self.policy.window.is_some() {
            return Some(KeepReason::InWindow { since });
        }
        if self.anchors.begin_with(backup) {
            return Some(KeepReason::WindowBegins { since });
        }
        let is_base = self.running.is_some_and(|running| running.begin_with(backup));
        // Without a window, what lies inside is among the newest full backups, or builds on one.
        is_base.then_some(KeepReason::BackupRuns).or(is_inside.then_some(KeepReason::InWindow { since }))
    }

    fn calendar(&self) -> BTreeMap<&'c BackupId, Vec<KeepReason>> {
        let mut chosen: Reasons<'c> = BTreeMap::new();
        let RetentionPolicy { daily, weekly, monthly, yearly, .. } = *self.policy;
        self.last_of(daily, |date| date.to_string(), |period| KeepReason::Daily { period }, &mut chosen);
        self.last_of(weekly, week, |period| KeepReason::Weekly { period }, &mut chosen);
        let month = |date: Date| format!("{:04}-{:02}", date.year(), date.month());
        self.last_of(monthly, month, |period| KeepReason::Monthly { period }, &mut chosen);
        self.last_of(yearly, |date| format!("{:04}", date.year()), |period| KeepReason::Yearly { period }, &mut chosen);
        chosen
    }

    /// Chooses the last backup of each of the newest `keep` periods that have one.
    fn last_of(
        &self,
        keep: u32,
        period_of: impl Fn(Date) -> String,
        reason: impl Fn(String) -> KeepReason,
        chosen: &mut Reasons<'c>,
    ) {
        let mut last: BTreeMap<String, &'c Backup> = BTreeMap::new();
        for backup in &self.stock.countable {
            let period = period_of(TimeZone::UTC.to_datetime(backup.stop_time).date());
            let best = last.entry(period).or_insert(backup);
            if (best.stop_time, position(best)) < (backup.stop_time, position(backup)) {
                *best = backup;
            }
        }
        for (period, backup) in last.into_iter().rev().take(keep as usize) {
            chosen.entry(&backup.id).or_default().push(reason(period));
        }
    }

    /// The newest by time, and the newest by position.
    fn last_restorable(&self) -> Vec<&'c BackupId> {
        let backups = &self.stock.countable;
        let newest = backups.iter().max_by_key(|backup| backup.stop_time);
        let highest = backups.iter().max_by_key(|backup| position(backup));
        newest.into_iter().chain(highest).map(|backup| &backup.id).collect()
    }

    fn keep_parents(&self, kept: &mut Reasons<'c>) {
        let children: Vec<&'c BackupId> = kept.keys().copied().collect();
        for id in children {
            let stored = self.stock.by_id.get(id);
            let mut parent = stored.and_then(|stored| stored.backup.parent.as_ref());
            // A parent that was kept already has its own parents kept by its own turn.
            while let Some((&parent_id, stored)) = parent.and_then(|parent| self.stock.by_id.get_key_value(parent)) {
                let reasons = kept.entry(parent_id).or_default();
                let is_new = reasons.is_empty();
                if is_new {
                    reasons.push(KeepReason::ParentOf { id: id.clone() });
                }
                parent = stored.backup.parent.as_ref().filter(|_| is_new);
            }
        }
    }
}

fn position(backup: &Backup) -> impl Ord {
    (backup.stop_timeline, backup.stop_lsn)
}

/// The ISO week, as `2026-W47`.
fn week(date: Date) -> String {
    let week = date.iso_week_date();
    format!("{:04}-W{:02}", week.year(), week.week())
}
