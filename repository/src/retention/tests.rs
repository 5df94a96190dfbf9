//! Hand-made histories and what is kept of them. Times are days of November 2026, positions are segments of 16 MiB.

#![allow(clippy::unwrap_used, reason = "tests")]

use pgark_postgres::SegmentSize;

use super::*;
use crate::backup::Consolidated;
use crate::backup_id::BackupKind;

const SEGMENT: u64 = 16 << 20;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A moment: day and hour.
fn at(day: i64, hour: i64) -> Timestamp {
    "2026-11-01T00:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_hours((day - 1) * 24 + hour)
}

fn id(day: i64, hour: i64, kind: BackupKind) -> BackupId {
    BackupId::new(at(day, hour), kind)
}

fn full(day: i64) -> BackupId {
    id(day, 0, BackupKind::Full)
}

fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId::new(timeline).unwrap(), number, SegmentSize::DEFAULT)
}

fn backup(id: BackupId, timeline: u32, number: u64, stop_time: Timestamp) -> Backup {
    let stored = serde_json::json!({"name": "x", "stored_size": 1, "crc32": "00000000", "sha256": ""});
    let lsn = |offset: u64| pgark_postgres::Lsn::new(number * SEGMENT + offset).to_string();
    let kind = if id.as_str().ends_with("full") { "full" } else { "incremental" };
    serde_json::from_value(serde_json::json!({
        "format": 1, "id": id, "kind": kind, "parent": null, "cluster": "main",
        "server": {
            "system_identifier": "7", "version_num": 150_001, "wal_segment_size": SEGMENT,
            "data_directory_mode": "0700", "data_directory": null, "data_checksums": false, "standby": false
        },
        "timeline": timeline, "start_lsn": lsn(0x28), "stop_timeline": timeline, "stop_lsn": lsn(0x1000),
        "start_time": stop_time, "stop_time": stop_time,
        "wal": {"first": segment(timeline, number).to_string(), "last": segment(timeline, number).to_string()},
        "tablespaces": [], "parts": [], "manifest": stored, "index": stored,
        "totals": {"files": 0, "directories": 0, "raw_size": 0, "stored_size": 0},
        "recipients": [], "written_by": "test", "checksum": ""
    }))
    .unwrap()
}

#[derive(Clone, Default)]
struct History(Contents);

impl History {
    /// WAL of a timeline that was stored on these days, ten segments a day: the first of day 2 is number 20.
    fn wal(mut self, timeline: u32, days: std::ops::RangeInclusive<i64>) -> Self {
        for day in days {
            for tenth in 0..10 {
                self = self.segment(timeline, day as u64 * 10 + tenth, at(day, tenth as i64));
            }
        }
        self
    }

    fn segment(mut self, timeline: u32, number: u64, stored: Timestamp) -> Self {
        let object = StoredSegment { is_whole: true, objects: 1, bytes: 100, stored };
        self.0.wal.insert(segment(timeline, number), object);
        self
    }

    /// A full backup that began at the start of this day.
    fn full(self, timeline: u32, day: i64) -> Self {
        self.add(backup(full(day), timeline, day as u64 * 10, at(day, 0)))
    }

    fn add(mut self, backup: Backup) -> Self {
        self.0.backups.push(StoredBackup { backup, bytes: 1000, fault: None, hold: None, locked: None });
        self
    }

    /// An incremental backup on this day at noon.
    fn incremental(self, day: i64, parent: BackupId) -> Self {
        let id = id(day, 12, BackupKind::Incremental);
        let mut backup = backup(id, 1, day as u64 * 10 + 5, at(day, 12));
        backup.parent = Some(parent);
        self.add(backup)
    }

    /// A full backup that was made of the chain of an incremental one.
    fn consolidated(self, from: &BackupId) -> Self {
        let stored = self.0.backups.iter().find(|stored| stored.backup.id == *from).unwrap();
        let mut made = stored.backup.clone();
        made.id = BackupId::new(from.start().unwrap() + Duration::from_secs(1), BackupKind::Full);
        made.parent = None;
        made.consolidated = Some(Consolidated { from: from.clone(), manifest_sha256: String::new() });
        self.add(made)
    }

    fn change(mut self, id: &BackupId, change: impl FnOnce(&mut StoredBackup)) -> Self {
        change(self.0.backups.iter_mut().find(|stored| stored.backup.id == *id).unwrap());
        self
    }

    fn leftover(mut self, day: i64, claimed: bool, last_written: Timestamp) -> Self {
        let claimed = claimed.then(|| at(day, 0));
        self.0.leftovers.push(Leftover { id: full(day), claimed, parent: None, last_written, bytes: 10 });
        self
    }

    fn plan(&self, policy: RetentionPolicy) -> RetentionPlan {
        plan_retention(&self.0, &policy, at(30, 12))
    }

    fn kept(&self, policy: RetentionPolicy) -> Vec<BackupId> {
        kept(&self.plan(policy))
    }
}

fn kept(plan: &RetentionPlan) -> Vec<BackupId> {
    plan.backups.iter().filter(|backup| !backup.reasons.is_empty()).map(|backup| backup.id.clone()).collect()
}

fn kept_wal(plan: &RetentionPlan, timeline: u32) -> Vec<u64> {
    let of = |(name, planned): (&SegmentName, &PlannedSegment)| {
        let is_kept = name.timeline.get() == timeline && planned.reason.is_some();
        is_kept.then(|| name.number(SegmentSize::DEFAULT))
    };
    plan.wal.iter().filter_map(of).collect()
}

fn policy() -> RetentionPolicy {
    RetentionPolicy { orphan_grace: DAY, ..RetentionPolicy::default() }
}

fn window(days: u32) -> RetentionPolicy {
    RetentionPolicy { window: Some(DAY * days), ..policy() }
}

fn newest(full: u32) -> RetentionPolicy {
    RetentionPolicy { full, ..policy() }
}

/// A backup a day from day 1 to day 30, with all WAL.
fn month() -> History {
    (1..=30).fold(History::default().wal(1, 1..=30), |history, day| history.full(1, day))
}

#[test]
fn without_a_policy_everything_is_kept() {
    let plan = month().plan(policy());
    assert_eq!(kept(&plan).len(), 30);
    assert_eq!((plan.freed_bytes(), plan.since, plan.refusal), (0, None, None));
}

#[test]
fn g02_a_window_keeps_the_backup_before_it_and_all_wal_since() {
    let plan = month().plan(window(7));
    // The window begins at day 23, 9:00, which is 7 days before the last segment: the backup of day 23 opens it.
    assert_eq!(kept(&plan), (23..=30).map(full).collect::<Vec<_>>());
    assert_eq!(kept_wal(&plan, 1), (230..=309).collect::<Vec<_>>());
    assert_eq!(plan.freed_bytes(), 22 * 1000 + 220 * 100);
    let reasons = |day: i64| plan.backups.iter().find(|backup| backup.id == full(day)).unwrap().reasons.clone();
    assert_eq!(reasons(23), [KeepReason::WindowBegins { since: at(23, 9) }]);
    assert_eq!(reasons(24), [KeepReason::InWindow { since: at(23, 9) }]);
}

#[test]
fn a_number_of_full_backups_keeps_every_moment_since_the_oldest_of_them() {
    let plan = month().plan(newest(3));
    assert_eq!(kept(&plan), [full(28), full(29), full(30)]);
    assert_eq!(kept_wal(&plan, 1), (280..=309).collect::<Vec<_>>());
    // Fewer than asked for: all.
    assert_eq!(month().kept(newest(100)).len(), 30);
}

#[test]
fn older_backups_keep_only_what_makes_them_consistent() {
    let policy = RetentionPolicy { full: 5, weekly: 2, monthly: 1, ..window(2) };
    let plan = month().plan(policy);
    // Day 29 is the Sunday of week 48, and day 30 the last of its week so far and of November.
    assert_eq!(kept(&plan), [26, 27, 28, 29, 30].map(full));
    let expected: Vec<u64> = [260, 270].into_iter().chain(280..=309).collect();
    assert_eq!(kept_wal(&plan, 1), expected);
}

#[test]
fn calendars_take_the_last_backup_of_each_period_that_has_one() {
    let history = [1, 2, 3, 9, 10, 20, 30].iter().fold(History::default().wal(1, 1..=30), |history, day| {
        let noon = backup(id(*day, 12, BackupKind::Full), 1, *day as u64 * 10 + 5, at(*day, 12));
        history.full(1, *day).add(noon)
    });
    let noon = |day: i64| id(day, 12, BackupKind::Full);
    let daily = history.kept(RetentionPolicy { daily: 3, ..newest(1) });
    assert_eq!(daily, [noon(10), noon(20), noon(30)]);
    // 1 November 2026 is a Sunday: the week of day 2 begins with it.
    let weekly = history.kept(RetentionPolicy { weekly: 10, ..newest(1) });
    assert_eq!(weekly, [noon(1), noon(3), noon(10), noon(20), noon(30)]);
    let yearly = history.kept(RetentionPolicy { monthly: 4, yearly: 4, ..newest(1) });
    assert_eq!(yearly, [noon(30)]);
}

#[test]
fn e12_what_a_running_backup_builds_on_stays() {
    let history = month().incremental(5, full(5)).leftover(30, true, at(30, 11));
    assert_eq!(history.kept(newest(1)), [full(29), full(30)]);
    let mut history = history;
    let child = id(5, 12, BackupKind::Incremental);
    history.0.leftovers[0].parent = Some(child.clone());
    let plan = history.plan(newest(1));
    assert_eq!(kept(&plan), [full(5), child.clone(), full(29), full(30)]);
    let reasons = &plan.backups.iter().find(|backup| backup.id == child).unwrap().reasons;
    assert_eq!(reasons[..], [KeepReason::ParentOf { id: full(30) }]);
    // Not when it has been interrupted.
    history.0.leftovers[0].last_written = at(28, 0);
    assert_eq!(history.kept(newest(1)), [full(30)]);
}

#[test]
fn e12_parents_stay_with_their_children_and_children_go_with_their_full_backup() {
    let first = id(2, 12, BackupKind::Incremental);
    let history = History::default().wal(1, 1..=30).full(1, 1).incremental(2, full(1)).incremental(3, first.clone());
    let history = history.full(1, 10).incremental(11, full(10)).full(1, 20);
    assert_eq!(history.kept(newest(1)), [full(20)]);
    assert_eq!(history.kept(newest(2)), [full(10), id(11, 12, BackupKind::Incremental), full(20)]);
    let second = id(3, 12, BackupKind::Incremental);
    let held = history.clone().change(&second, |stored| stored.hold = Some("audit".to_owned()));
    assert_eq!(held.kept(newest(1)), [full(1), first.clone(), second.clone(), full(20)]);
    // A chain with a hole cannot be restored and takes nobody's place.
    let mut broken = history;
    broken.0.backups.retain(|stored| stored.backup.id != first);
    assert!(
        broken
            .plan(newest(1))
            .backups
            .iter()
            .any(|backup| backup.fault.as_deref() == Some("its parent 20261102T120000Z-incr is missing"))
    );
    assert_eq!(broken.kept(newest(1)), [full(20)]);
}

#[test]
fn g06_what_cannot_be_restored_takes_nobodys_place() {
    type Fault = fn(&mut StoredBackup);
    let faults: [(&str, Fault); 2] = [
        ("its object 000001.tar.zst is missing", |stored| {
            stored.fault = Some("its object 000001.tar.zst is missing".to_owned());
        }),
        ("the source had damaged pages", |stored| stored.backup.damaged_pages = Some("page 7".to_owned())),
    ];
    for (words, fault) in faults {
        let history = month().change(&full(29), fault).change(&full(30), fault);
        let plan = history.plan(newest(2));
        assert_eq!(kept(&plan), [27, 28, 29, 30].map(full), "{words}");
        assert_eq!(kept_wal(&plan, 1), (270..=309).collect::<Vec<_>>());
        assert!(plan.backups.iter().any(|backup| backup.fault.as_deref() == Some(words)));
    }
    // Nor does one whose WAL is incomplete.
    let mut history = month();
    history.0.wal.remove(&segment(1, 300));
    assert_eq!(history.kept(newest(1)), [full(29), full(30)]);
    // A hold stops nothing else and counts like any other backup.
    let held = month().change(&full(5), |stored| stored.hold = Some("audit".to_owned()));
    let plan = held.plan(newest(1));
    assert_eq!(kept(&plan), [full(5), full(30)]);
    let expected: Vec<u64> = [50].into_iter().chain(300..=309).collect();
    assert_eq!(kept_wal(&plan, 1), expected);
}

#[test]
fn d11_the_last_backup_that_can_be_restored_stays_however_old_it_is() {
    let history = History::default().wal(1, 1..=30).full(1, 2).full(1, 3);
    let plan = history.plan(window(1));
    assert_eq!(kept(&plan), [full(3)]);
    assert_eq!(kept_wal(&plan, 1), (30..=309).collect::<Vec<_>>());
    let broken = history.change(&full(3), |stored| stored.fault = Some("broken".to_owned()));
    assert_eq!(broken.kept(window(1)), [full(2), full(3)]);
}

#[test]
fn f11_a_mark_that_cannot_be_read_keeps_everything() {
    let mut history = month();
    history.0.unreadable.insert(full(31), "it does not match its own checksum".to_owned());
    let plan = history.plan(newest(1));
    assert_eq!((kept(&plan).len(), plan.freed_bytes()), (30, 0));
    let refusal = plan.refusal.unwrap().to_string();
    assert!(refusal.contains("because backup 20261201T000000Z-full may need any of it"), "{refusal}");
}

#[test]
fn nothing_goes_while_no_full_backup_can_be_relied_on() {
    let fault = |stored: &mut StoredBackup| stored.fault = Some("broken".to_owned());
    let history =
        History::default().wal(1, 1..=30).full(1, 2).full(1, 3).change(&full(2), fault).change(&full(3), fault);
    let plan = history.plan(newest(1));
    assert_eq!((kept(&plan).len(), plan.freed_bytes()), (2, 0));
    assert!(matches!(plan.refusal, Some(Refusal::NothingToRestore { newest, .. }) if newest == full(3)));
    let plan = History::default().wal(1, 1..=30).plan(newest(1));
    assert_eq!((plan.freed_bytes(), plan.refusal), (0, Some(Refusal::NoBackup)));
}

#[test]
fn g05_interrupted_backups_go_after_their_grace_and_interrupted_deletions_at_once() {
    let history = month().leftover(28, true, at(28, 5)).leftover(29, true, at(30, 1)).leftover(27, false, at(30, 11));
    let plan = history.plan(policy());
    let fates: Vec<LeftoverFate> = plan.leftovers.iter().map(|left| left.fate).collect();
    assert_eq!(
        fates,
        [
            LeftoverFate::DeleteInterrupted { last_written: at(28, 5) },
            LeftoverFate::Running { until: at(31, 1) },
            LeftoverFate::FinishDeletion,
        ]
    );
    assert_eq!(plan.deleted_leftovers().count(), 2);
    // They go even where no backup can be restored: a first backup that fails every night must not fill the store.
    let plan = History::default().leftover(1, true, at(1, 1)).leftover(20, true, at(30, 1)).plan(newest(1));
    assert_eq!(plan.deleted_leftovers().map(|left| left.id.clone()).collect::<Vec<_>>(), [full(1)]);
}

#[test]
fn g02_a_backup_that_runs_keeps_its_wal() {
    // It runs since day 28; the backups of day 29 and 30 were begun later and are finished.
    let history = month().leftover(28, true, at(30, 11));
    let history = History(Contents {
        backups: history.0.backups,
        leftovers: history.0.leftovers,
        wal: history.0.wal,
        ..Contents::default()
    });
    let mut without_its_own = history;
    without_its_own.0.backups.retain(|stored| stored.backup.id != full(28));
    let plan = without_its_own.plan(newest(1));
    // The backup of day 27 ended before it began, so what it needs lies behind that one.
    assert_eq!(kept(&plan), [full(27), full(30)]);
    assert_eq!(kept_wal(&plan, 1), (270..=309).collect::<Vec<_>>());
    // Planned again after the others have gone, nothing more goes.
    let mut again = without_its_own.clone();
    again.0.backups.retain(|stored| [full(27), full(30)].contains(&stored.backup.id));
    assert_eq!(kept_wal(&again.plan(newest(1)), 1), (270..=309).collect::<Vec<_>>());
    // If none ended before it, all WAL stays.
    without_its_own.0.backups.retain(|stored| stored.backup.id == full(30));
    assert_eq!(kept_wal(&without_its_own.plan(newest(1)), 1), (10..=309).collect::<Vec<_>>());
}

#[test]
fn g04_after_a_promotion_the_window_reaches_back_to_the_parents_backup() {
    // Timeline 2 begins within segment 255; its first backup is of day 28.
    let history = (1..=24).fold(History::default().wal(1, 1..=25), |history, day| history.full(1, day));
    let history = (256..=309)
        .fold(history, |history, number| history.segment(2, number, at(number as i64 / 10, number as i64 % 10)));
    let history = history.segment(2, 255, at(26, 0)).full(2, 28).full(2, 29).full(2, 30);
    let plan = history.plan(window(7));
    // The window begins at day 23, 9:00.
    assert_eq!(kept(&plan), [23, 24, 28, 29, 30].map(full));
    assert_eq!((kept_wal(&plan, 1), kept_wal(&plan, 2)), ((230..=259).collect(), (255..=309).collect()));
    // Day 27 to 28 is restored from timeline 1, though that ended before.
    let plan = history.plan(window(3));
    assert_eq!(kept(&plan), [24, 28, 29, 30].map(full));
    assert_eq!(kept_wal(&plan, 1), (240..=259).collect::<Vec<_>>());
    // Once a backup of timeline 2 opens the window, timeline 1 is over.
    let plan = history.plan(window(2));
    assert_eq!(kept(&plan), [28, 29, 30].map(full));
    assert_eq!((kept_wal(&plan, 1), kept_wal(&plan, 2)), (vec![], (280..=309).collect()));
}

#[test]
fn a_backup_in_the_very_segment_of_the_promotion_counts() {
    // The only backup is in segment 20, and so is the promotion.
    let history = History::default().segment(1, 20, at(2, 0)).full(1, 2);
    let history = (20..=309)
        .fold(history, |history, number| history.segment(2, number, at(number as i64 / 10, number as i64 % 10)));
    let history = history.full(2, 28);
    let plan = history.plan(window(7));
    assert_eq!(kept(&plan), [full(2), full(28)]);
    assert_eq!((kept_wal(&plan, 1), kept_wal(&plan, 2).len()), (vec![20], 290));
}

#[test]
fn g04_the_wal_of_a_sibling_goes_when_its_moments_have_left_the_window() {
    // Timeline 2 left timeline 1 at segment 100 and was written on days 10 to 12 only; timeline 1 goes on.
    let sibling = |history: History, stored: i64| {
        (100..=120).fold(history, |history, number| history.segment(2, number, at(stored, 0)))
    };
    let plan = sibling(month(), 11).plan(window(7));
    assert_eq!((kept(&plan).len(), kept_wal(&plan, 2)), (8, vec![]));
    // Written within the window, it is restored from the backup before it began; the one of day 10 ended in the very
    // segment in which it did.
    let plan = sibling(month(), 29).plan(window(7));
    assert_eq!(kept(&plan)[..2], [full(9), full(10)]);
    assert_eq!((kept(&plan).len(), kept_wal(&plan, 2)), (10, (100..=120).collect()));
}

#[test]
fn g08_positions_order_the_backups_of_a_timeline_and_not_clocks() {
    // On day 25 the server's clock was a year behind.
    let behind = |stored: &mut StoredBackup| stored.backup.stop_time = at(25 - 365, 0);
    let history = month().change(&full(25), behind);
    let plan = history.plan(window(7));
    assert_eq!(kept(&plan), (23..=30).map(full).collect::<Vec<_>>());
    assert_eq!(kept_wal(&plan, 1), (230..=309).collect::<Vec<_>>());
    // The newest by position is kept like the newest by time.
    let history = month().change(&full(30), |stored| stored.backup.stop_time = at(-400, 0));
    assert_eq!(history.kept(newest(1)), [full(29), full(30)]);
}

#[test]
fn g08_a_clock_that_ran_away_makes_nothing_old() {
    let history = month();
    let plan = plan_retention(&history.0, &window(7), at(3000, 0));
    assert_eq!((plan.now, kept(&plan).len()), (at(30, 9), 8));
    let late = plan_retention(&history.0, &window(7), at(20, 0));
    assert_eq!((late.now, kept(&late).len()), (at(20, 0), 18));
}

#[test]
fn c08_a_locked_backup_stays_with_its_wal() {
    let plan = month().change(&full(5), |stored| stored.locked = Some("until 2026-12-01".to_owned())).plan(newest(1));
    assert_eq!(kept(&plan), [full(5), full(30)]);
    assert!(plan.wal[&segment(1, 50)].reason.is_some());
    assert!(plan.wal[&segment(1, 51)].reason.is_none());
}

#[test]
fn a_hostile_range_of_wal_takes_no_memory() {
    let history = month().change(&full(30), |stored| {
        stored.backup.wal.first = segment(1, 0);
        stored.backup.wal.last = segment(1, u64::MAX);
    });
    assert_eq!(history.kept(newest(1)).len(), 2);
}

#[test]
fn stretches_join_neighbours_of_one_fate() {
    let plan = month().change(&full(5), |stored| stored.hold = Some("audit".to_owned())).plan(newest(1));
    let shown: Vec<(u64, bool)> =
        plan.wal_stretches().iter().map(|stretch| (stretch.segments, stretch.reason.is_some())).collect();
    assert_eq!(shown, [(40, false), (1, true), (249, false), (10, true)]);
}

#[test]
fn e19_what_was_made_from_a_chain_stands_in_its_place() {
    let incremental = |day| id(day, 12, BackupKind::Incremental);
    let made = BackupId::new(at(3, 12) + Duration::from_secs(1), BackupKind::Full);
    let history = History::default().wal(1, 1..=5).full(1, 1).incremental(2, full(1)).incremental(3, incremental(2));
    let history = history.consolidated(&incremental(3)).incremental(4, made.clone());
    let newest = RetentionPolicy { full: 1, ..policy() };
    assert_eq!(history.kept(newest), [made.clone(), incremental(4)]);
    assert_eq!(kept_wal(&history.plan(newest), 1).first(), Some(&35));
    // Also in the window, where it is not the first.
    let window = RetentionPolicy { window: Some(4 * DAY), ..policy() };
    assert_eq!(history.kept(window), [full(1), incremental(2), made.clone(), incremental(4)]);
    // What still builds on the chain keeps it, and what cannot be restored stands for nothing.
    let later = history.clone().incremental(5, incremental(3));
    assert!(later.kept(newest).contains(&incremental(3)));
    let faulty = history.change(&made, |stored| stored.fault = Some("a part is missing".to_owned()));
    assert!(faulty.kept(newest).contains(&incremental(3)));
}
