//! WAL that a small writer makes: records of every size at every place, and what real servers write seldom.

use crate::wal_page::magic_of;
use crate::{Lsn, RecordWalker, SegmentSize, WalEndReason, WalEvent, WalRecordError};
use proptest::prelude::*;

const SEGMENT: usize = 1024 * 1024;
const PAGE: usize = 8192;
/// The position at which the log begins.
const BEGIN: usize = 3 * SEGMENT;

const CONTRECORD: u16 = 1;
const LONG: u16 = 2;
const OVERWRITE: u16 = 8;

const XLOG: u8 = 0;
const TRANSACTION: u8 = 1;
const HEAP: u8 = 10;

/// Lays records out on pages as a server does.
struct Writer {
    major: u32,
    timeline: u32,
    /// The log from `BEGIN` on.
    bytes: Vec<u8>,
    previous: usize,
}

impl Writer {
    fn new(major: u32) -> Self {
        Self { major, timeline: 1, bytes: Vec::new(), previous: BEGIN - 24 }
    }

    fn position(&self) -> usize {
        BEGIN + self.bytes.len()
    }

    fn page_header(&mut self, flags: u16, remaining: usize) {
        let position = self.position();
        let first = position.is_multiple_of(SEGMENT);
        let flags = if first { flags | LONG } else { flags };
        self.bytes.extend(magic_of(self.major).unwrap().to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(self.timeline.to_le_bytes());
        self.bytes.extend((position as u64).to_le_bytes());
        self.bytes.extend((remaining as u32).to_le_bytes());
        self.bytes.extend([0; 4]);
        if first {
            self.bytes.extend(7u64.to_le_bytes());
            self.bytes.extend((SEGMENT as u32).to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }

    fn encode(&self, manager: u8, info: u8, xid: u32, data: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend((24 + data.len() as u32).to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend((self.previous as u64).to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(data), &record);
        record.extend(checksum.to_le_bytes());
        record.extend(data);
        record
    }

    /// Writes a record over as many pages as it takes and returns where it begins and ends.
    fn record(&mut self, manager: u8, info: u8, xid: u32, data: &[u8]) -> (Lsn, Lsn) {
        let record = self.encode(manager, info, xid, data);
        self.write(&record, 0)
    }

    fn write(&mut self, record: &[u8], first_flags: u16) -> (Lsn, Lsn) {
        if self.position().is_multiple_of(PAGE) {
            self.page_header(first_flags, 0);
        }
        let start = self.position();
        let mut rest = record;
        loop {
            let room = PAGE - self.position() % PAGE;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.bytes.extend(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
            self.page_header(CONTRECORD, rest.len());
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = start;
        (Lsn::new(start as u64), Lsn::new(self.position() as u64))
    }

    /// Begins a record on this page and goes on as after a crash: the next page has others in its place.
    fn abandoned(&mut self) {
        if self.position().is_multiple_of(PAGE) {
            self.page_header(0, 0);
        }
        let record = self.encode(HEAP, 0, 0, &[1; 2 * PAGE]);
        let room = PAGE - self.position() % PAGE;
        self.bytes.extend(&record[..room]);
        let overwrite = self.encode(XLOG, 0xD0, 0, &[0xFF, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self.write(&overwrite, OVERWRITE);
    }

    fn commit(&mut self, xid: u32, time: i64) -> WalEvent {
        let data = [&[0xFF, 8][..], &time.to_le_bytes()].concat();
        let (start_lsn, end_lsn) = self.record(TRANSACTION, 0, xid, &data);
        WalEvent::Commit { xid, time, start_lsn, end_lsn }
    }

    fn switch_segment(&mut self) {
        self.record(XLOG, 0x40, 0, &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(SEGMENT), 0);
    }

    fn walk_from(&self, start: usize) -> (Vec<WalEvent>, RecordWalker) {
        let size = SegmentSize::new(SEGMENT as u64).unwrap();
        let mut walker = RecordWalker::new(size, self.major, Lsn::new(start as u64)).unwrap();
        let mut events = Vec::new();
        let mut wal = self.bytes.clone();
        wal.resize(wal.len().next_multiple_of(PAGE), 0);
        for (index, bytes) in wal.chunks(SEGMENT).enumerate() {
            let at = BEGIN + index * SEGMENT;
            if at + SEGMENT > start && walker.end_of_valid().is_none() {
                events.extend(walker.feed(Lsn::new(at as u64), bytes).unwrap());
            }
        }
        (events, walker)
    }

    fn walk(&self) -> (Vec<WalEvent>, RecordWalker) {
        self.walk_from(BEGIN)
    }
}

/// A prepared transaction's end, with every list that can stand before its xid.
fn prepared(major: u32, commit: bool, lists: usize, xid: u32) -> Vec<u8> {
    let statistics_bytes = if major >= 18 { 16 } else { 12 };
    let mut contents: u32 = 1 | 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7;
    let mut sizes = vec![4, 12];
    if major >= 15 {
        contents |= 1 << 8;
        sizes.push(statistics_bytes);
    }
    if commit {
        contents |= 1 << 3;
        sizes.push(16);
    }
    let mut main = 99i64.to_le_bytes().to_vec();
    main.extend(contents.to_le_bytes());
    main.extend([5; 8]);
    for size in sizes {
        main.extend((lists as u32).to_le_bytes());
        main.extend(vec![6; lists * size]);
    }
    main.extend(xid.to_le_bytes());
    main.extend(b"gid\0");
    main.extend([8; 16]);
    let mut data = vec![0xFD, 1, 0];
    if major >= 14 {
        data.extend([0xFC, 1, 2, 3, 4]);
    }
    data.push(0xFE);
    data.extend((main.len() as u32).to_le_bytes());
    data.extend(main);
    data
}

#[test]
fn prepared_transactions_are_named_by_their_own_xid() {
    for major in 13..=18 {
        for lists in [0, 1, 3, 5000] {
            let mut writer = Writer::new(major);
            let commit = writer.record(TRANSACTION, 0xB0, 0, &prepared(major, true, lists, 4711));
            let abort = writer.record(TRANSACTION, 0xC0, 0, &prepared(major, false, lists, 4712));
            let expected = vec![
                WalEvent::Commit { xid: 4711, time: 99, start_lsn: commit.0, end_lsn: commit.1 },
                WalEvent::Abort { xid: 4712, time: 99, start_lsn: abort.0, end_lsn: abort.1 },
            ];
            assert_eq!(writer.walk().0, expected, "{major} {lists}");
        }
    }
}

#[test]
fn a_valid_record_that_cannot_be_read_is_an_error() {
    let size = SegmentSize::new(SEGMENT as u64).unwrap();
    for (manager, info, data) in [
        (TRANSACTION, 0x00, &[][..]),
        (TRANSACTION, 0x00, &[0xFF, 4, 1, 2, 3, 4]),
        (TRANSACTION, 0x00, &[0xFF, 9, 1, 2, 3, 4, 5, 6, 7, 8]),
        (TRANSACTION, 0x20, &[0x00, 1, 2, 3]),
        (TRANSACTION, 0x30, &[0xFF, 8, 1, 2, 3, 4, 5, 6, 7, 8]),
        (TRANSACTION, 0xB0, &[0xFF, 16, 1, 2, 3, 4, 5, 6, 7, 8, 0x12, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]),
        (XLOG, 0x70, &[0xFF, 8, 1, 2, 3, 4, 5, 6, 7, 8]),
    ] {
        let mut writer = Writer::new(15);
        let first = writer.commit(1, 2);
        let (lsn, _) = writer.record(manager, info, 0, data);
        let mut walker = RecordWalker::new(size, 15, Lsn::new(BEGIN as u64)).unwrap();
        writer.bytes.resize(PAGE, 0);
        let error = walker.feed(Lsn::new(BEGIN as u64), &writer.bytes).unwrap_err();
        assert!(matches!(error, WalRecordError::Content { lsn: found, .. } if found == lsn), "{error:?}");
        let WalEvent::Commit { end_lsn, .. } = first else { unreachable!() };
        assert_eq!(walker.end_of_valid(), Some(end_lsn));
    }
}

#[test]
fn an_abandoned_record_is_passed_over() {
    for filler in [0, 100, PAGE - 40 - 24, PAGE - 40 - 16 - 24, PAGE - 40 - 8 - 24] {
        let mut writer = Writer::new(15);
        writer.record(HEAP, 0, 0, &vec![1; filler]);
        writer.abandoned();
        let event = writer.commit(5, 6);
        let (events, walker) = writer.walk();
        assert_eq!(events, [event], "{filler}");
        assert_eq!(walker.valid_until(), Lsn::new(writer.position() as u64));
    }
}

#[test]
fn a_record_that_is_never_completed_is_the_end() {
    let mut writer = Writer::new(15);
    let WalEvent::Commit { end_lsn, .. } = writer.commit(5, 6) else { unreachable!() };
    writer.record(HEAP, 0, 0, &[1; 3 * PAGE]);
    writer.bytes[PAGE..].fill(0);
    let (events, walker) = writer.walk();
    assert_eq!((events.len(), walker.end_of_valid()), (1, Some(end_lsn)));
    assert!(matches!(walker.end_reason(), Some(WalEndReason::Page(_))));
}

#[test]
fn old_bytes_that_look_like_a_record_are_the_end() {
    // A record that is valid in itself, but was written after another one: recycled segments are full of these.
    let mut writer = Writer::new(15);
    writer.commit(1, 2);
    writer.previous = BEGIN - 8192;
    let stale = writer.position();
    writer.commit(3, 4);
    let (events, walker) = writer.walk();
    assert_eq!((events.len(), walker.end_of_valid()), (1, Some(Lsn::new(stale as u64))));
    let found = Lsn::new(BEGIN as u64 - 8192);
    assert_eq!(walker.end_reason(), Some(&WalEndReason::Previous { found }));
}

#[test]
fn a_switch_ends_the_segment_and_a_new_timeline_goes_on() {
    let mut writer = Writer::new(17);
    let first = writer.commit(1, 2);
    writer.switch_segment();
    let second = writer.commit(3, 4);
    writer.record(HEAP, 0, 0, &[1; PAGE]);
    writer.timeline = 2;
    writer.record(HEAP, 0, 0, &[1; PAGE]);
    let third = writer.commit(5, 6);
    assert_eq!(writer.walk().0, [first.clone(), second.clone(), third]);
    // The timeline of pages never falls again.
    writer.timeline = 1;
    writer.record(HEAP, 0, 0, &[1; 3 * PAGE]);
    writer.commit(7, 8);
    let (events, walker) = writer.walk();
    assert_eq!(events.len(), 3);
    assert!(walker.end_reason().unwrap().to_string().contains("page"));
}

#[test]
fn a_switch_that_fills_its_segment_to_the_last_byte_skips_nothing() {
    for left in [24, 16, 8] {
        let mut writer = Writer::new(15);
        while writer.bytes.len() < SEGMENT - PAGE {
            writer.record(HEAP, 0, 0, &[1; 1000]);
        }
        let filler = SEGMENT - left - writer.bytes.len() - 24;
        writer.record(HEAP, 0, 0, &vec![1; filler]);
        assert_eq!(writer.bytes.len(), SEGMENT - left);
        writer.switch_segment();
        let event = writer.commit(3, 4);
        assert_eq!(writer.walk().0, [event], "{left}");
        // A switch record that reaches into the next segment leaves that one empty.
        assert_eq!(writer.bytes.len() / SEGMENT, if left == 24 { 1 } else { 2 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_commit_between_records_of_any_size_is_found(
        major in 13u32..=18,
        fillers in prop::collection::vec(prop_oneof![9 => 0usize..9000, 1 => 0usize..1_200_000], 1..120),
        from in 0usize..1_500_000,
    ) {
        let mut writer = Writer::new(major);
        let mut expected = Vec::new();
        for (index, filler) in fillers.into_iter().enumerate() {
            writer.record(HEAP, 0, 0, &vec![1; filler]);
            expected.push(writer.commit(index as u32, -(index as i64)));
        }
        let (events, walker) = writer.walk();
        prop_assert_eq!(&events, &expected);
        prop_assert_eq!(walker.valid_until(), Lsn::new(writer.position() as u64));
        let from = BEGIN + from % writer.bytes.len();
        let later: Vec<_> = expected.into_iter().filter(|event| {
            matches!(event, WalEvent::Commit { start_lsn, .. } if start_lsn.as_u64() >= from as u64)
        }).collect();
        prop_assert_eq!(writer.walk_from(from).0, later);
    }

    #[test]
    fn a_changed_byte_ends_the_walk_at_its_record(at in 0usize..200_000, bit in 0u32..8) {
        let mut writer = Writer::new(15);
        let mut ends = Vec::new();
        for index in 0..60 {
            let (_, end) = writer.record(HEAP, 0, 0, &vec![1; index * 101]);
            ends.push(end.as_u64() as usize);
            writer.commit(7, 8);
            ends.push(writer.position());
        }
        let at = at % writer.bytes.len();
        writer.bytes[at] ^= 1 << bit;
        let (_, walker) = writer.walk();
        let until = walker.valid_until().as_u64() as usize;
        prop_assert!(until == BEGIN || ends.contains(&until), "{until:X}");
        // Nothing behind the damage counts, unless it hit padding that no checksum covers. A page's timeline may be
        // higher than that of the page before: that it was damaged, only the page behind it shows.
        let seen_at = if (4..8).contains(&(at % PAGE)) { at.next_multiple_of(PAGE) } else { at };
        prop_assert!(until <= BEGIN + seen_at || until == writer.position(), "{at}: {until:X}");
    }
}
