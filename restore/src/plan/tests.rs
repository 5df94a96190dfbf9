#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use pgark_command::TargetTime;
use pgark_postgres::SystemIdentifier;
use pgark_repository::{
    BackupKind, BackupList, OpenSegment, ServerFacts, StoredFile, Totals, WalInventory, WalPiece, WalRange,
    WholeSegment,
};
use proptest::prelude::*;

use super::*;
use crate::moments::windows;
use crate::target::TargetAction;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn lsn(segment: u64, offset: u64) -> Lsn {
    Lsn::new(segment * SIZE + offset)
}

fn segment(on: u32, number: u64) -> SegmentName {
    SegmentName::from_number(timeline(on), number, SegmentSize::DEFAULT)
}

fn whole(stored_size: u64) -> WholeSegment {
    WholeSegment { stored_size, stored: Timestamp::UNIX_EPOCH }
}

/// An archive in the making. Times are hours of one day.
struct Archive(Catalogue);

impl Archive {
    fn new() -> Self {
        Self(Catalogue {
            unreadable_histories: Vec::new(),
            repository: "local".to_owned(),
            cluster: "main".to_owned(),
            system_identifier: SystemIdentifier::new(7),
            backups: BackupList::default(),
            wal: WalInventory::default(),
            histories: BTreeMap::from([(TimelineId::FIRST, TimelineHistory::first())]),
            others: Vec::new(),
            unread: Vec::new(),
        })
    }

    fn wal(mut self, on: u32, numbers: std::ops::RangeInclusive<u64>) -> Self {
        self.0.wal.segments.extend(numbers.map(|number| (segment(on, number), whole(1000))));
        self
    }

    fn history(mut self, of: u32, ancestors: &[(u32, Lsn)]) -> Self {
        let text: String =
            ancestors.iter().map(|(ancestor, switch)| format!("{ancestor}\t{switch}\tno recovery target\n")).collect();
        let history = TimelineHistory::parse(timeline(of), text.as_bytes()).unwrap();
        self.0.histories.insert(timeline(of), history);
        self.0.wal.histories.insert(timeline(of));
        self
    }

    /// A backup that ends at this hour, from the beginning of a segment to the middle of it.
    fn backup(mut self, hour: u32, on: u32, number: u64) -> Self {
        self.0.backups.finished.push(backup(hour, on, number));
        self
    }

    fn plan(&self, target: Target) -> Result<RestorePlan, PlanError> {
        plan(&self.0, &Request { target, backup: None })
    }

    fn plan_with(&self, target: Target, hour: u32) -> Result<RestorePlan, PlanError> {
        plan(&self.0, &Request { target, backup: Some(id(hour)) })
    }
}

fn id(hour: u32) -> BackupId {
    format!("20261120T{hour:02}0000Z-full").parse().unwrap()
}

pub(crate) fn backup(hour: u32, on: u32, number: u64) -> Backup {
    let time = |minute: u32| format!("2026-11-20T{hour:02}:{minute:02}:00Z").parse().unwrap();
    let stored =
        StoredFile { name: "x".to_owned(), stored_size: 1, crc32: "00000000".to_owned(), sha256: String::new() };
    Backup {
        format: 1,
        id: id(hour),
        kind: BackupKind::Full,
        parent: None,
        consolidated: None,
        cluster: "main".to_owned(),
        server: ServerFacts {
            system_identifier: SystemIdentifier::new(7),
            version_num: 150_018,
            wal_segment_size: SIZE as u32,
            data_directory_mode: "0700".to_owned(),
            data_directory: None,
            files_outside: Vec::new(),
            data_checksums: false,
            standby: false,
        },
        timeline: timeline(on),
        start_lsn: lsn(number, 0x28),
        stop_timeline: timeline(on),
        stop_lsn: lsn(number, 8 * MIB),
        start_time: time(0),
        stop_time: time(10),
        wal: WalRange { first: segment(on, number), last: segment(on, number) },
        tablespaces: Vec::new(),
        parts: Vec::new(),
        manifest: stored.clone(),
        index: stored,
        block_map: None,
        totals: Totals::default(),
        recipients: Vec::new(),
        included: Vec::new(),
        annotations: BTreeMap::new(),
        damaged_pages: None,
        damaged_files: Vec::new(),
        written_by: "test".to_owned(),
        checksum: String::new(),
    }
}

fn target(stop: RecoveryTarget, on: TargetTimeline) -> Target {
    Target { stop, inclusive: true, timeline: on, action: TargetAction::Pause }
}

fn end() -> Target {
    Target::end_of_archive()
}

fn at(text: &str) -> Target {
    let time = TargetTime::parse(&format!("2026-11-20 {text}+00"), || None).unwrap();
    target(RecoveryTarget::Time(time), TargetTimeline::Latest)
}

fn position(lsn: Lsn) -> Target {
    target(RecoveryTarget::Lsn(lsn), TargetTimeline::Latest)
}

fn on(number: u32) -> Target {
    target(RecoveryTarget::EndOfArchive, TargetTimeline::Number(timeline(number)))
}

/// Backup, start of WAL, end of WAL that is needed, timeline.
fn summary(plan: &RestorePlan) -> (BackupId, SegmentName, SegmentName, u32) {
    let needed = plan.needed_segments();
    (plan.backup.id.clone(), needed.first().unwrap().name, needed.last().unwrap().name, plan.timeline.get())
}

/// Two backups on one timeline.
fn simple() -> Archive {
    Archive::new().wal(1, 1..=9).backup(2, 1, 2).backup(4, 1, 5)
}

/// Timeline 2 left timeline 1 in the middle of segment 6; the old primary went on to segment 7.
fn promoted() -> Archive {
    Archive::new().wal(1, 1..=7).history(2, &[(1, lsn(6, MIB))]).wal(2, 6..=9).backup(2, 1, 2)
}

#[test]
fn the_newest_backup_that_fits_is_chosen() {
    let archive = simple();
    assert_eq!(summary(&archive.plan(end()).unwrap()), (id(4), segment(1, 5), segment(1, 9), 1));
    assert_eq!(archive.plan(at("04:10")).unwrap().backup.id, id(4));
    assert_eq!(archive.plan(at("04:09:59")).unwrap().backup.id, id(2));
    assert_eq!(archive.plan(position(lsn(5, 8 * MIB))).unwrap().backup.id, id(4));
    let before = archive.plan(position(lsn(5, 8 * MIB - 1))).unwrap();
    assert_eq!(summary(&before), (id(2), segment(1, 2), segment(1, 5), 1));
    assert_eq!(archive.plan_with(end(), 2).unwrap().backup.id, id(2));
}

#[test]
fn an_immediate_recovery_needs_the_backups_own_wal_only() {
    let immediate = target(RecoveryTarget::Immediate, TargetTimeline::Current);
    assert_eq!(summary(&simple().plan(immediate).unwrap()), (id(4), segment(1, 5), segment(1, 5), 1));
}

#[test]
fn d18_a_target_before_the_end_of_the_backup_is_refused() {
    let archive = simple();
    for early in [at("02:09"), position(lsn(2, 1))] {
        let refused = archive.plan(early).unwrap_err();
        let PlanError::TooEarly { backup, is_forced: false, .. } = &refused else { panic!("{refused:?}") };
        assert_eq!(*backup, id(2));
        assert!(refused.hint().unwrap().contains("2026-11-20 02:10:00+00"));
    }
    let forced = archive.plan_with(at("03:00"), 4);
    assert!(matches!(forced, Err(PlanError::TooEarly { is_forced: true, .. })));
}

#[test]
fn d19_a_position_that_is_not_in_the_archive_is_refused() {
    let refused = simple().plan(position(lsn(10, 0))).unwrap_err();
    let expected =
        PlanError::BeyondArchive { lsn: lsn(10, 0), reachable: lsn(10, 0), missing: segment(1, 10), behind_gap: None };
    assert_eq!(refused, expected);
    assert!(simple().plan(position(lsn(9, SIZE - 1))).is_ok());
}

#[test]
fn d10_gaps_are_named() {
    let archive = Archive::new().wal(1, 1..=5).wal(1, 7..=9).backup(2, 1, 2);
    let refused = archive.plan(end()).unwrap_err();
    let next = BehindGap::Segment(segment(1, 7));
    let gap = PlanError::Gap { missing: segment(1, 6), behind: next, reachable: lsn(6, 0) };
    assert_eq!(refused, gap);
    assert!(refused.to_string().contains("000000010000000000000006 is missing"));
    let behind = archive.plan(position(lsn(8, 0))).unwrap_err();
    assert!(matches!(behind, PlanError::BeyondArchive { behind_gap: Some(found), .. } if found == next));
    // Before the gap everything can be reached, and a time may lie there.
    assert_eq!(summary(&archive.plan(position(lsn(5, 77))).unwrap()).2, segment(1, 5));
    let timed = archive.plan(at("05:00")).unwrap();
    assert_eq!((timed.needed_segments().len(), timed.behind_gap), (4, Some(next)));
    // A newer backup makes the gap harmless.
    assert_eq!(archive.backup(6, 1, 8).plan(end()).unwrap().backup.id, id(6));
}

#[test]
fn d11_a_backup_without_its_own_wal_is_refused() {
    let refused = Archive::new().wal(1, 3..=9).backup(2, 1, 2).plan(end()).unwrap_err();
    let missing = PlanError::BackupLacksWal { id: id(2), missing: segment(1, 2), stop_lsn: lsn(2, 8 * MIB) };
    assert_eq!(refused, missing);
}

#[test]
fn a_promotion_is_followed_and_the_shared_segment_is_the_childs() {
    let plan = promoted().plan(end()).unwrap();
    assert_eq!(summary(&plan), (id(2), segment(1, 2), segment(2, 9), 2));
    let names: Vec<SegmentName> = plan.segments.iter().map(|segment| segment.name).collect();
    assert_eq!(names[3..6], [segment(1, 5), segment(2, 6), segment(2, 7)]);
    assert_eq!(
        plan.path,
        [PathStep { timeline: timeline(1), begin: Lsn::ZERO }, PathStep { timeline: timeline(2), begin: lsn(6, MIB) },]
    );
    // The old primary's own end is another branch, and can be asked for.
    let old = promoted().plan(on(1)).unwrap();
    assert_eq!(summary(&old), (id(2), segment(1, 2), segment(1, 7), 1));
    assert!(old.notes[0].contains("--target-timeline 2"), "{:?}", old.notes);
}

#[test]
fn a_switch_at_a_boundary_needs_nothing_of_the_parent_behind_it() {
    let archive = Archive::new().wal(1, 1..=5).history(2, &[(1, lsn(6, 0))]).wal(2, 6..=7).backup(2, 1, 2);
    let names: Vec<SegmentName> = archive.plan(end()).unwrap().segments.iter().map(|segment| segment.name).collect();
    assert_eq!(names[3..], [segment(1, 5), segment(2, 6), segment(2, 7)]);
}

#[test]
fn a_new_timeline_without_wal_is_reachable_up_to_its_switch() {
    let archive = Archive::new().wal(1, 1..=6).history(2, &[(1, lsn(6, MIB))]).backup(2, 1, 2);
    let plan = archive.plan(end()).unwrap();
    assert_eq!((plan.reachable, plan.timeline), (lsn(6, MIB), timeline(2)));
    assert_eq!(plan.segments.last().unwrap().name, segment(1, 6));
    assert!(archive.plan(position(lsn(6, MIB - 1))).is_ok());
    assert!(matches!(archive.plan(position(lsn(6, MIB))), Err(PlanError::BeyondArchive { .. })));
}

#[test]
fn d16_a_hole_in_the_histories_is_refused_by_name() {
    let archive = Archive::new().wal(1, 1..=9).history(3, &[(1, lsn(6, MIB))]).wal(3, 6..=9).backup(2, 1, 2);
    let refused = archive.plan(end()).unwrap_err();
    assert_eq!(refused, PlanError::MissingHistory { missing: timeline(2), newest: timeline(3) });
    assert!(refused.to_string().contains("00000002.history"));
    // Who names the timeline does not depend on the numbering.
    assert_eq!(archive.plan(on(3)).unwrap().timeline, timeline(3));
    // Nor does a backup behind the hole.
    assert_eq!(archive.backup(5, 3, 8).plan(end()).unwrap().backup.id, id(5));
}

#[test]
fn a_timeline_that_has_wal_but_no_history_is_refused_by_name() {
    let archive = Archive::new().wal(1, 1..=9).wal(2, 6..=9).backup(2, 1, 2);
    let missing = PlanError::MissingHistory { missing: timeline(2), newest: timeline(2) };
    assert_eq!(archive.plan(end()).unwrap_err(), missing);
    assert_eq!(archive.plan(on(2)).unwrap_err(), missing);
    let unknown = PlanError::UnknownTimeline { timeline: timeline(7), newest: timeline(2) };
    assert_eq!(archive.plan(on(7)).unwrap_err(), unknown);
    assert_eq!(archive.plan(on(1)).unwrap().timeline, timeline(1));
}

#[test]
fn d20_siblings_take_the_highest_number_and_name_the_others() {
    let archive = Archive::new()
        .wal(1, 1..=9)
        .history(2, &[(1, lsn(4, MIB))])
        .wal(2, 4..=8)
        .history(3, &[(1, lsn(4, MIB))])
        .wal(3, 4..=6)
        .backup(2, 1, 2);
    let plan = archive.plan(at("06:00")).unwrap();
    assert_eq!(plan.timeline, timeline(3));
    let notes = plan.notes.join("\n");
    assert!(notes.contains("--target-timeline 1") && notes.contains("--target-timeline 2"), "{notes}");
    let second = target(at("06:00").stop, TargetTimeline::Number(timeline(2)));
    assert_eq!(summary(&archive.plan(second).unwrap()), (id(2), segment(1, 2), segment(2, 8), 2));
}

#[test]
fn d21_a_backup_behind_the_fork_is_not_a_child() {
    let archive = promoted().backup(4, 1, 7);
    // Timeline 2 does not contain the newer backup, so the older one serves.
    assert_eq!(archive.plan(end()).unwrap().backup.id, id(2));
    let refused = archive.plan_with(on(2), 4).unwrap_err();
    let expected = PlanError::NotOnPath {
        backup: id(4),
        backup_timeline: timeline(1),
        stop_lsn: lsn(7, 8 * MIB),
        timeline: timeline(2),
        left: Some(lsn(6, MIB)),
        is_forced: true,
    };
    assert_eq!(refused, expected);
    assert!(refused.to_string().contains("left timeline 1 at"));
    // Its own branch can be followed, and with nothing said the backup decides.
    assert_eq!(archive.plan_with(on(1), 4).unwrap().timeline, timeline(1));
    assert_eq!(archive.plan_with(end(), 4).unwrap().timeline, timeline(1));
}

#[test]
fn a_backup_that_runs_across_the_fork_serves_the_old_branch_only() {
    let archive = Archive::new().wal(1, 1..=7).history(2, &[(1, lsn(6, MIB))]).wal(2, 6..=9).backup(4, 1, 6);
    assert_eq!(archive.plan(end()).unwrap().timeline, timeline(1));
    assert!(matches!(archive.plan(on(2)), Err(PlanError::NotOnPath { .. })));
}

#[test]
fn current_is_the_timeline_of_the_backup() {
    let current = target(RecoveryTarget::EndOfArchive, TargetTimeline::Current);
    assert_eq!(summary(&promoted().plan(current.clone()).unwrap()), (id(2), segment(1, 2), segment(1, 7), 1));
    assert_eq!(promoted().backup(6, 2, 8).plan(current).unwrap().timeline, timeline(2));
}

#[test]
fn backups_that_do_not_count_are_refused_with_advice() {
    let none = Archive::new().wal(1, 1..=3).plan(end()).unwrap_err();
    assert!(matches!(none, PlanError::NoBackup { .. }));
    let mut archive = simple();
    archive.0.backups.unfinished.push(pgark_repository::UnfinishedBackup { id: id(7), started: None });
    assert_eq!(archive.plan_with(end(), 7).unwrap_err(), PlanError::Unfinished { id: id(7) });
    let unknown = archive.plan_with(end(), 8).unwrap_err();
    assert!(unknown.hint().unwrap().contains(id(4).as_str()));
    let mut incremental = backup(8, 1, 8);
    incremental.parent = Some(id(7));
    archive.0.backups.finished.push(incremental);
    assert_eq!(archive.plan(end()).unwrap().backup.id, id(4));
    let broken = PlanError::BrokenChain { id: id(8), missing: id(7) };
    assert_eq!(archive.plan_with(end(), 8).unwrap_err(), broken);
}

#[test]
fn a_name_may_lie_after_an_older_backup() {
    let named = target(RecoveryTarget::Name("x".to_owned()), TargetTimeline::Latest);
    let plan = simple().plan(named).unwrap();
    assert_eq!((plan.backup.id.clone(), plan.older), (id(4), vec![id(2)]));
}

fn pieces(ranges: &[(u32, u32)]) -> OpenSegment {
    let mut open = OpenSegment::default();
    ranges.iter().for_each(|&(start, end)| open.add(WalPiece { start, end }, 10));
    open
}

#[test]
fn pieces_count_up_to_their_first_hole() {
    let reachable = |ranges: &[(u32, u32)]| {
        let mut archive = Archive::new().wal(1, 2..=4).backup(1, 1, 2);
        archive.0.wal.open.insert(segment(1, 5), pieces(ranges));
        let found = archive.plan(target(RecoveryTarget::Immediate, TargetTimeline::Latest)).unwrap();
        // To the end of an archive that lacks something before it nobody is taken by surprise.
        let refused = archive.plan(end()).err();
        (found.segments.len(), found.reachable, refused)
    };
    let behind = BehindGap::Segment(segment(1, 5));
    let gap = |reachable| Some(PlanError::Gap { missing: segment(1, 5), behind, reachable });
    assert_eq!(reachable(&[(0, 500), (500, 900), (300, 700)]), (4, lsn(5, 900), None));
    assert_eq!(reachable(&[(0, 500), (501, 900)]), (4, lsn(5, 500), gap(lsn(5, 500))));
    assert_eq!(reachable(&[(1, 500)]), (3, lsn(5, 0), gap(lsn(5, 0))));
}

#[test]
fn b19_pieces_of_a_new_timeline_count_when_they_hold_more_than_its_parent() {
    let reachable = |of_parent: &[(u32, u32)], of_child: &[(u32, u32)]| {
        let mut archive = Archive::new().wal(1, 2..=4).backup(1, 1, 2).history(2, &[(1, lsn(5, 1000))]);
        archive.0.wal.open.insert(segment(1, 5), pieces(of_parent));
        archive.0.wal.open.insert(segment(2, 5), pieces(of_child));
        let plan = plan(&archive.0, &Request { target: Target::end_of_archive(), backup: None }).unwrap();
        (plan.segments.last().unwrap().name, plan.reachable)
    };
    assert_eq!(reachable(&[(0, 2000)], &[]), (segment(1, 5), lsn(5, 1000)));
    assert_eq!(reachable(&[(0, 800)], &[(0, 900)]), (segment(1, 5), lsn(5, 800)));
    assert_eq!(reachable(&[(0, 800)], &[(0, 1200)]), (segment(2, 5), lsn(5, 1200)));
}

proptest! {
    /// The WAL that is found is exactly the run of segments that a server would find, asked one after the other.
    #[test]
    fn the_contiguous_wal_is_what_a_server_would_find(
        archived in proptest::collection::btree_set((1u32..4, 1u64..12), 0..36),
        forks in (2u64..10, 0u64..3, 2u64..10, 0u64..3),
        start in 1u64..6,
    ) {
        let first = lsn(forks.0, forks.1 * MIB);
        let second = lsn(forks.2.max(forks.0), forks.3 * MIB).max(first);
        let history = TimelineHistory::parse(
            timeline(3),
            format!("1\t{first}\tx\n2\t{second}\tx\n").as_bytes(),
        ).unwrap();
        let steps: Vec<PathStep> =
            history.path().into_iter().map(|(timeline, begin, _)| PathStep { timeline, begin }).collect();
        let inventory: BTreeMap<SegmentName, WholeSegment> =
            archived.iter().map(|(on, number)| (segment(*on, *number), whole(1))).collect();
        let wal = WalInventory { segments: inventory.clone(), ..WalInventory::default() };
        let found = contiguous(&wal, &steps, lsn(start, 0x28), SegmentSize::DEFAULT);

        // The server: newest timeline that has begun, else the ones before it; never back to an older one.
        let mut expected = Vec::new();
        let mut current = 0;
        for number in start.. {
            let begun = [(3, second), (2, first), (1, Lsn::ZERO)];
            let choice = begun.iter().filter(|(on, begin)| begin.as_u64() / SIZE <= number && *on >= current);
            let Some((on, _)) = choice.clone().find(|(on, _)| inventory.contains_key(&segment(*on, number))) else { break };
            let newest = choice.clone().next().unwrap();
            expected.push(segment(*on, number));
            current = *on;
            // A parent's segment holds nothing of the path behind the switch.
            if on != &newest.0 {
                break;
            }
        }
        let names: Vec<SegmentName> = found.segments.iter().map(|segment| segment.name).collect();
        prop_assert!(expected.starts_with(&names) && expected.len() <= names.len() + 1, "{expected:?} {names:?}");
        prop_assert!(found.segments.iter().all(|segment| inventory.contains_key(&segment.name)));
        prop_assert!(!inventory.contains_key(&found.missing));
        prop_assert!(found.reachable >= found.missing.start(SegmentSize::DEFAULT));
        if let Some(next) = found.next {
            prop_assert!(inventory.contains_key(&next) && next.number(SegmentSize::DEFAULT) > found.missing.number(SegmentSize::DEFAULT));
        }
    }
}

#[test]
fn a37_a_timeline_that_was_left_far_behind_what_is_archived_of_it_has_a_gap() {
    let gaps = |archive: &Archive| -> Vec<(u32, Option<SegmentName>)> {
        let windows = windows(&archive.0);
        windows.iter().map(|plans| (plans[0].timeline.get(), plans[0].gap())).collect()
    };
    let left_at = |switch| Archive::new().wal(1, 1..=5).history(2, &[(1, switch)]).backup(2, 1, 2);
    let lost = left_at(lsn(9, MIB)).wal(2, 12..=13).backup(6, 2, 12);
    assert_eq!(gaps(&lost), [(1, Some(segment(1, 6))), (2, None)]);
    // So the end of its archive is not the end of what was written on it.
    let refused = lost.plan(Target { timeline: TargetTimeline::Number(timeline(1)), ..end() }).unwrap_err();
    let behind = BehindGap::Switch(lsn(9, MIB));
    assert_eq!(refused, PlanError::Gap { missing: segment(1, 6), behind, reachable: lsn(6, 0) });
    assert!(refused.to_string().contains("only at 0/9100000"), "{refused}");
    // What is left of the segment is in the first one of the next timeline.
    assert_eq!(gaps(&left_at(lsn(6, MIB)).wal(2, 6..=9)), [(1, None), (2, None)]);
    // When that one is lost, the first timeline's window does not tell; when it is only not archived yet, nothing is lost.
    let named = [(1, None), (2, Some(segment(2, 6)))];
    assert_eq!(gaps(&left_at(lsn(6, MIB)).wal(2, 7..=9)), named);
    assert_eq!(gaps(&left_at(lsn(6, MIB))), [(1, None)]);
    // Timelines that come after it do not repeat it.
    let all_of_the_second = left_at(lsn(6, MIB)).history(3, &[(1, lsn(6, MIB)), (2, lsn(7, MIB))]).wal(3, 7..=9);
    assert_eq!(gaps(&all_of_the_second), named);
}
