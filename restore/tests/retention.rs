//! Random histories over months, expired again and again: whatever the policy promises can be restored by the plan.
//!
//! The model knows every moment at which something was written. Before and after each expiry each moment that is
//! promised is planned as a restore: what could be reached before can be reached after it. An expiry is killed at any of
//! its deletions now and then; the next one must end where the first would have.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use pgark_postgres::{Lsn, SegmentName, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId};
use pgark_repository::{
    Backup, BackupId, BackupKind, BackupList, Contents, Leftover, OpenSegment, RetentionPlan, RetentionPolicy,
    StoredBackup, StoredSegment, WalInventory, WalPiece, WholeSegment, plan_retention,
};
use pgark_restore::{Catalogue, RecoveryTarget, Request, Target, TargetTimeline, plan};
use proptest::prelude::*;

const SEGMENT: u64 = 16 << 20;
const SIZE: SegmentSize = SegmentSize::DEFAULT;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug)]
enum Step {
    /// So many KiB are written within so many minutes.
    Write {
        kib: u64,
        minutes: u64,
    },
    Idle {
        hours: u64,
    },
    /// A whole backup.
    Backup {
        incremental: bool,
        minutes: u64,
    },
    /// A backup begins; it ends, or is interrupted, some steps later.
    Begin,
    End,
    Interrupt,
    /// A standby takes over, perhaps without the last bytes.
    Promote {
        lost_kib: u64,
    },
    /// The old primary goes on for a while.
    SplitBrain {
        kib: u64,
    },
    /// A restore to an earlier moment goes on as a new timeline.
    TurnBack {
        moment: usize,
    },
    Hold {
        backup: usize,
    },
    Release {
        backup: usize,
    },
    /// Perhaps killed after so many deletions.
    Expire {
        killed_after: Option<usize>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    time: Timestamp,
    timeline: u32,
    lsn: u64,
}

#[derive(Clone)]
struct Running {
    id: BackupId,
    start: u64,
    timeline: u32,
    claimed: Timestamp,
}

/// The cluster, and the repository as a listing shows it.
#[derive(Clone)]
struct Model {
    now: Timestamp,
    timeline: u32,
    /// Where each timeline has got to.
    ends: BTreeMap<u32, u64>,
    /// Each timeline's ancestors and where they were left.
    ancestors: BTreeMap<u32, Vec<(u32, u64)>>,
    moments: Vec<Moment>,
    running: Option<Running>,
    contents: Contents,
    pieces: BTreeMap<SegmentName, u32>,
}

impl Model {
    fn new() -> Self {
        Self {
            now: "2026-01-31T22:00:00Z".parse().unwrap(),
            timeline: 1,
            ends: BTreeMap::from([(1, SEGMENT + 40)]),
            ancestors: BTreeMap::from([(1, Vec::new())]),
            moments: Vec::new(),
            running: None,
            contents: Contents::default(),
            pieces: BTreeMap::new(),
        }
    }

    fn end(&self) -> u64 {
        self.ends[&self.timeline]
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if let Some(running) = &self.running {
            let left = self.contents.leftovers.iter_mut().find(|left| left.id == running.id).unwrap();
            left.last_written = self.now;
        }
    }

    /// Writes on a timeline, and stores what is complete of it, and the rest as a piece.
    fn write(&mut self, timeline: u32, bytes: u64) {
        let end = self.ends.get_mut(&timeline).unwrap();
        let from = *end;
        *end += bytes.max(8);
        let end = *end;
        for number in from / SEGMENT..end / SEGMENT {
            self.store(timeline, number, None);
        }
        if !end.is_multiple_of(SEGMENT) {
            self.store(timeline, end / SEGMENT, Some((end % SEGMENT) as u32));
        }
        self.moments.push(Moment { time: self.now, timeline, lsn: end });
    }

    fn store(&mut self, timeline: u32, number: u64, piece: Option<u32>) {
        let name = name(timeline, number);
        let stored = StoredSegment { is_whole: piece.is_none(), objects: 1, bytes: 100, stored: self.now };
        self.contents.wal.insert(name, stored);
        match piece {
            Some(covered) => drop(self.pieces.insert(name, covered)),
            None => drop(self.pieces.remove(&name)),
        }
    }

    fn begin(&mut self) {
        if self.running.is_some() {
            return;
        }
        // Ids are unique, and the claim comes before the position.
        self.pass(Duration::from_secs(61));
        let id = BackupId::new(self.now, BackupKind::Full);
        let leftover =
            Leftover { id: id.clone(), claimed: Some(self.now), parent: None, last_written: self.now, bytes: 10 };
        self.contents.leftovers.push(leftover);
        self.running = Some(Running { id, start: self.end(), timeline: self.timeline, claimed: self.now });
        let timeline = self.timeline;
        self.write(timeline, 100);
    }

    /// Ends the backup; one whose server was promoted meanwhile has failed.
    fn finish(&mut self, incremental: bool) {
        let Some(running) = self.running.take() else { return };
        if running.timeline != self.timeline {
            return;
        }
        self.contents.leftovers.retain(|left| left.id != running.id);
        let timeline = self.timeline;
        self.write(timeline, 100);
        let stop = self.end();
        // A server tells the time after the position; and the last segment is completed.
        self.pass(Duration::from_secs(1));
        let rest = (SEGMENT - stop % SEGMENT) % SEGMENT;
        self.write(timeline, rest.max(8));
        let parent = incremental.then(|| self.contents.backups.last().map(|stored| stored.backup.id.clone())).flatten();
        let kind = if parent.is_some() { BackupKind::Incremental } else { BackupKind::Full };
        let id = BackupId::new(running.claimed, kind);
        let backup = backup(&id, parent, timeline, (running.start, stop), self.now);
        self.contents.backups.push(StoredBackup { backup, bytes: 1000, fault: None, hold: None, locked: None });
    }

    fn new_timeline(&mut self, from: u32, at: u64) {
        let mut ancestors = self.ancestors[&from].clone();
        ancestors.push((from, at));
        self.timeline = self.ancestors.len() as u32 + 1;
        self.ancestors.insert(self.timeline, ancestors);
        self.ends.insert(self.timeline, at);
        let timeline = self.timeline;
        self.write(timeline, 50);
    }

    fn catalogue(&self) -> Catalogue {
        let mut wal = WalInventory::default();
        for (name, segment) in &self.contents.wal {
            if segment.is_whole {
                let whole = WholeSegment { stored_size: segment.bytes, stored: segment.stored };
                wal.segments.insert(*name, whole);
            } else {
                let mut open = OpenSegment::default();
                open.add(WalPiece { start: 0, end: self.pieces[name] }, segment.bytes);
                wal.open.insert(*name, open);
            }
        }
        let history = |(timeline, ancestors): (&u32, &Vec<(u32, u64)>)| {
            let lines = ancestors.iter().map(|(ancestor, at)| format!("{ancestor}\t{}\tno reason\n", Lsn::new(*at)));
            let id = TimelineId::new(*timeline).unwrap();
            (id, TimelineHistory::parse(id, lines.collect::<String>().as_bytes()).unwrap())
        };
        wal.histories = self.ancestors.keys().skip(1).map(|timeline| TimelineId::new(*timeline).unwrap()).collect();
        let mut finished: Vec<Backup> = self.contents.backups.iter().map(|stored| stored.backup.clone()).collect();
        finished.sort_by(|one, other| one.id.cmp(&other.id));
        Catalogue {
            repository: "local".to_owned(),
            cluster: "main".to_owned(),
            system_identifier: SystemIdentifier::new(7),
            backups: BackupList { finished, ..BackupList::default() },
            wal,
            histories: self.ancestors.iter().map(history).collect(),
            others: Vec::new(),
            unread: Vec::new(),
            unreadable_histories: Vec::new(),
        }
    }

    /// Which of the moments since then can be restored.
    fn reachable(&self, since: Timestamp) -> Vec<Moment> {
        let catalogue = self.catalogue();
        let can = |moment: &&Moment| {
            let timeline = TargetTimeline::Number(TimelineId::new(moment.timeline).unwrap());
            let stop = RecoveryTarget::Lsn(Lsn::new(moment.lsn - 1));
            let target = Target { stop, timeline, ..Target::end_of_archive() };
            plan(&catalogue, &Request { target, backup: None }).is_ok()
        };
        self.moments.iter().filter(|moment| moment.time >= since).filter(can).copied().collect()
    }

    /// Carries a plan out in the agent's order, up to so many deletions.
    fn carry_out(&mut self, plan: &RetentionPlan, mut deletions: usize) {
        let mut may_go_on = || {
            let may = deletions > 0;
            deletions = deletions.saturating_sub(1);
            may
        };
        for planned in plan.backups.iter().rev().filter(|planned| planned.reasons.is_empty()) {
            if !may_go_on() {
                return;
            }
            self.contents.backups.retain(|stored| stored.backup.id != planned.id);
            let rest = Leftover {
                id: planned.id.clone(),
                claimed: None,
                parent: None,
                last_written: planned.stop_time,
                bytes: 10,
            };
            self.contents.leftovers.push(rest);
        }
        for (name, planned) in &plan.wal {
            if planned.reason.is_none() {
                if !may_go_on() {
                    return;
                }
                self.contents.wal.remove(name);
                self.pieces.remove(name);
            }
        }
        let running = self.running.as_ref().map(|running| running.id.clone());
        let gone: BTreeSet<&BackupId> = plan.deleted_leftovers().map(|left| &left.id).collect();
        self.contents.leftovers.retain(|left| {
            let goes = left.claimed.is_none() || (gone.contains(&left.id) && Some(&left.id) != running.as_ref());
            !goes || !may_go_on()
        });
    }

    fn expire(&mut self, policy: &RetentionPolicy, killed_after: Option<usize>) {
        let before = self.clone();
        let plan = plan_retention(&self.contents, policy, self.now);
        if let Some(deletions) = killed_after {
            self.carry_out(&plan, deletions);
            self.check(&before, policy, plan.since);
            let again = plan_retention(&self.contents, policy, self.now);
            self.carry_out(&again, usize::MAX);
        } else {
            self.carry_out(&plan, usize::MAX);
        }
        self.check(&before, policy, plan.since);
        let mut at_once = before.clone();
        at_once.carry_out(&plan, usize::MAX);
        assert_eq!(self.ids(), at_once.ids(), "a killed expiry ended elsewhere");
        assert_eq!(self.contents.wal, at_once.contents.wal, "a killed expiry left other WAL");
        // Nothing is left to do.
        let again = plan_retention(&self.contents, policy, self.now);
        assert_eq!(again.freed_bytes(), 0, "a second expiry found more: {again:?}");
    }

    fn ids(&self) -> BTreeSet<&BackupId> {
        self.contents.backups.iter().map(|stored| &stored.backup.id).collect()
    }

    /// Compares with what was there before.
    fn check(&self, before: &Self, policy: &RetentionPolicy, since: Option<Timestamp>) {
        let ids = self.ids();
        let Some(since) = since else {
            assert_eq!((ids, &self.contents.wal), (before.ids(), &before.contents.wal), "no policy limits anything");
            return;
        };
        // Every promised moment that could be restored can still be.
        let lost: Vec<Moment> = {
            let reachable = self.reachable(since);
            before.reachable(since).into_iter().filter(|moment| !reachable.contains(moment)).collect()
        };
        assert!(lost.is_empty(), "moments since {since} were lost: {lost:?}\nkept: {ids:?}");
        // The newest full backups, held ones and the last one are there.
        let mut full: Vec<_> = before.contents.backups.iter().filter(|one| one.backup.parent.is_none()).collect();
        full.sort_by_key(|stored| std::cmp::Reverse(stored.backup.stop_time));
        let held = before.contents.backups.iter().filter(|stored| stored.hold.is_some());
        for stored in full.iter().take(policy.full.max(1) as usize).copied().chain(held) {
            assert!(ids.contains(&stored.backup.id), "{} is gone", stored.backup.id);
        }
        let days: BTreeMap<String, &BackupId> = {
            let mut backups: Vec<_> = before.contents.backups.iter().collect();
            backups.sort_by_key(|stored| stored.backup.stop_time);
            backups.iter().map(|one| (one.backup.stop_time.to_string()[..10].to_owned(), &one.backup.id)).collect()
        };
        for (day, id) in days.iter().rev().take(policy.daily as usize) {
            assert!(ids.contains(id), "the last backup of {day}, {id}, is gone");
        }
        // Each one that is kept becomes consistent, and has what it builds on.
        let catalogue = self.catalogue();
        for stored in &self.contents.backups {
            let backup = &stored.backup;
            let parent = backup.parent.as_ref();
            assert!(parent.is_none_or(|parent| ids.contains(parent)), "the parent of {} is gone", backup.id);
            let timeline = TargetTimeline::Number(backup.stop_timeline);
            let target = Target { stop: RecoveryTarget::Immediate, timeline, ..Target::end_of_archive() };
            let planned = plan(&catalogue, &Request { target, backup: Some(backup.id.clone()) });
            assert!(planned.is_ok(), "{} cannot be restored: {}", backup.id, planned.unwrap_err());
        }
        // A backup that runs has its WAL.
        if let Some(running) = &self.running {
            let number = running.start / SEGMENT;
            let needed = before.contents.wal.keys().filter(|name| name.timeline.get() == running.timeline);
            for name in needed.filter(|name| name.number(SIZE) >= number) {
                assert!(self.contents.wal.contains_key(name), "{name} of the running {} is gone", running.id);
            }
        }
    }

    fn step(&mut self, step: &Step, policy: &RetentionPolicy) {
        let timeline = self.timeline;
        match *step {
            Step::Write { kib, minutes } => {
                self.pass(Duration::from_secs(minutes * 60));
                self.write(timeline, kib << 10);
            }
            Step::Idle { hours } => self.pass(HOUR * hours as u32),
            Step::Backup { incremental, minutes } => {
                if self.running.is_none() {
                    self.begin();
                    self.pass(Duration::from_secs(minutes * 60));
                    self.finish(incremental);
                } else {
                    // Beside the one that runs.
                    let other = self.running.take();
                    self.begin();
                    self.finish(false);
                    self.running = other;
                }
            }
            Step::Begin => self.begin(),
            Step::End => self.finish(false),
            Step::Interrupt => self.running = None,
            Step::Promote { lost_kib } => {
                let begin = self.ancestors[&timeline].last().map_or(SEGMENT, |(_, at)| *at) + 8;
                let at = self.end().saturating_sub(lost_kib << 10).max(begin);
                self.new_timeline(timeline, at);
            }
            Step::SplitBrain { kib } => {
                if let Some((old, _)) = self.ancestors[&timeline].last().copied() {
                    self.write(old, kib << 10);
                }
            }
            Step::TurnBack { moment } => {
                let since = self.now - DAY * 20;
                let reachable = self.reachable(since);
                if let Some(moment) = reachable.get(moment % reachable.len().max(1)) {
                    self.new_timeline(moment.timeline, moment.lsn);
                }
            }
            Step::Hold { backup } => self.hold(backup, Some("audit".to_owned())),
            Step::Release { backup } => self.hold(backup, None),
            Step::Expire { killed_after } => self.expire(policy, killed_after),
        }
    }

    fn hold(&mut self, backup: usize, hold: Option<String>) {
        let count = self.contents.backups.len().max(1);
        if let Some(stored) = self.contents.backups.get_mut(backup % count) {
            stored.hold = hold;
        }
    }
}

fn name(timeline: u32, number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId::new(timeline).unwrap(), number, SIZE)
}

fn backup(
    id: &BackupId,
    parent: Option<BackupId>,
    timeline: u32,
    (start, stop): (u64, u64),
    time: Timestamp,
) -> Backup {
    let stored = serde_json::json!({"name": "x", "stored_size": 1, "crc32": "00000000", "sha256": ""});
    let segment = |lsn: u64| name(timeline, lsn / SEGMENT).to_string();
    serde_json::from_value(serde_json::json!({
        "format": 1, "id": id, "kind": if parent.is_some() { "incremental" } else { "full" }, "parent": parent,
        "cluster": "main",
        "server": {
            "system_identifier": "7", "version_num": 150_001, "wal_segment_size": SEGMENT,
            "data_directory_mode": "0700", "data_directory": null, "data_checksums": false, "standby": false
        },
        "timeline": timeline, "start_lsn": Lsn::new(start).to_string(),
        "stop_timeline": timeline, "stop_lsn": Lsn::new(stop).to_string(),
        "start_time": time, "stop_time": time,
        "wal": {"first": segment(start), "last": segment(stop - 1)},
        "tablespaces": [], "parts": [], "manifest": stored, "index": stored,
        "totals": {"files": 0, "directories": 0, "raw_size": 0, "stored_size": 0},
        "recipients": [], "written_by": "test", "checksum": ""
    }))
    .unwrap()
}

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (prop_oneof![0..2_000_u64, 10_000..60_000_u64], 1..300_u64)
            .prop_map(|(kib, minutes)| Step::Write { kib, minutes }),
        3 => (1..60_u64).prop_map(|hours| Step::Idle { hours }),
        5 => (any::<bool>(), 1..90_u64).prop_map(|(incremental, minutes)| Step::Backup { incremental, minutes }),
        1 => Just(Step::Begin),
        1 => Just(Step::End),
        1 => Just(Step::Interrupt),
        1 => prop_oneof![Just(0), 0..30_000_u64].prop_map(|lost_kib| Step::Promote { lost_kib }),
        1 => (0..40_000_u64).prop_map(|kib| Step::SplitBrain { kib }),
        1 => any::<usize>().prop_map(|moment| Step::TurnBack { moment }),
        1 => any::<usize>().prop_map(|backup| Step::Hold { backup }),
        1 => any::<usize>().prop_map(|backup| Step::Release { backup }),
        3 => prop::option::of(0..30_usize).prop_map(|killed_after| Step::Expire { killed_after }),
    ];
    prop::collection::vec(step, 10..most)
}

fn policies() -> impl Strategy<Value = RetentionPolicy> {
    let window = prop::option::weighted(0.6, (1..15_u32).prop_map(|days| DAY * days));
    let few = || prop_oneof![2 => Just(0_u32), 1 => 1..4_u32];
    (0..4_u32, window, few(), few(), few(), few()).prop_map(|(full, window, daily, weekly, monthly, yearly)| {
        RetentionPolicy { full, window, daily, weekly, monthly, yearly, orphan_grace: DAY }
    })
}

fn run(cases: u32, most: usize) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&(policies(), steps(most)), |(policy, steps)| {
        let mut model = Model::new();
        for step in &steps {
            model.step(step, &policy);
        }
        model.expire(&policy, None);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn g02_g04_random_histories_keep_what_is_promised() {
    run(150, 120);
}

#[test]
#[ignore = "long: make soak"]
fn soak_g02_g04_random_histories_keep_what_is_promised() {
    run(6_000, 300);
}
