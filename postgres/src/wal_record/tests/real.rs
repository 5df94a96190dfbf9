//! WAL of real servers against what these servers said about it.

use crate::{Lsn, RecordWalker, SegmentHeader, SegmentSize, WalEndReason, WalEvent, WalRecordError};
use proptest::prelude::*;
use std::sync::LazyLock;

struct Sample {
    major: u32,
    wal: Vec<u8>,
    ledger: &'static str,
    /// The end of the last record, which `pg_waldump` confirmed for 15 and 18.
    end: u64,
}

macro_rules! sample {
    ($major:literal, $end:literal) => {
        Sample {
            major: $major,
            wal: zstd::decode_all(&include_bytes!(concat!("../../../tests/samples/", $major, "/wal.zst"))[..]).unwrap(),
            ledger: include_str!(concat!("../../../tests/samples/", $major, "/ledger")),
            end: $end,
        }
    };
}

static SAMPLES: LazyLock<[Sample; 6]> = LazyLock::new(|| {
    [
        sample!(13, 0x90_1228),
        sample!(14, 0xA0_11E0),
        sample!(15, 0x90_2090),
        sample!(16, 0x80_1190),
        sample!(17, 0x80_1188),
        // The last segment was switched, so that it is valid to its end.
        sample!(18, 0xC0_0000),
    ]
});

impl Sample {
    fn size(&self) -> SegmentSize {
        SegmentSize::new(1024 * 1024).unwrap()
    }

    fn start(&self) -> Lsn {
        SegmentHeader::parse(&self.wal).unwrap().page_address
    }

    fn walker(&self, start: Lsn) -> RecordWalker {
        RecordWalker::new(self.size(), self.major, start).unwrap()
    }

    fn segments(&self) -> impl Iterator<Item = (Lsn, &[u8])> {
        let starts = (0..).map(|index| self.start().saturating_add(index * self.size().bytes()));
        starts.zip(self.wal.chunks(1024 * 1024))
    }

    fn walk(&self, start: Lsn) -> (Vec<WalEvent>, RecordWalker) {
        let mut walker = self.walker(start);
        let mut events = Vec::new();
        for (at, bytes) in self.segments().filter(|(at, _)| self.size().start_of(start) <= *at) {
            events.extend(walker.feed(at, bytes).unwrap());
        }
        (events, walker)
    }
}

#[test]
fn every_version_tells_what_its_server_did() {
    for sample in SAMPLES.iter() {
        let (events, walker) = sample.walk(sample.start());
        let mut lines: Vec<String> = Vec::new();
        for event in &events {
            lines.push(match event {
                WalEvent::RestorePoint { name, end_lsn, .. } => {
                    format!("R {}|{end_lsn}", std::str::from_utf8(name).unwrap())
                }
                WalEvent::Abort { xid, .. } => format!("A {xid}"),
                WalEvent::Commit { xid, time, .. } => format!("C {xid} {time}"),
            });
        }
        let of = |kind| sample.ledger.lines().filter(move |line| line.starts_with(kind)).collect::<Vec<_>>();
        let found =
            |kind| lines.iter().map(String::as_str).filter(move |line| line.starts_with(kind)).collect::<Vec<_>>();
        assert_eq!(found('R'), of('R'), "{}", sample.major);
        assert_eq!(found('A'), of('A'), "{}", sample.major);
        // The ledger was written by a transaction before the last two.
        let commits = found('C');
        assert_eq!(commits[..commits.len() - 2], of('C'), "{}", sample.major);
        assert_eq!(walker.valid_until(), Lsn::new(sample.end), "{}", sample.major);
    }
}

#[test]
fn valid_wal_ends_where_old_bytes_begin() {
    for sample in SAMPLES.iter().filter(|sample| sample.major != 18) {
        let (_, mut walker) = sample.walk(sample.start());
        assert_eq!(walker.end_of_valid(), Some(Lsn::new(sample.end)));
        assert_eq!(walker.end_reason(), Some(&WalEndReason::Length { found: 0 }));
        let next = sample.size().start_of(Lsn::new(sample.end)).saturating_add(sample.size().bytes());
        assert!(matches!(walker.feed(next, &[]), Err(WalRecordError::AfterEnd { .. })));
    }
}

#[test]
fn a_walk_may_begin_anywhere() {
    for sample in SAMPLES.iter() {
        let (all, _) = sample.walk(sample.start());
        for offset in [1, 0x28, 8191, 8192, 8200, 100_000, 500_000, 1_048_576, 1_500_000, 2_097_152, 2_097_200] {
            let start = sample.start().saturating_add(offset);
            let later: Vec<_> = all.iter().filter(|event| start_of(event) >= start).cloned().collect();
            assert_eq!(sample.walk(start).0, later, "{} from {start}", sample.major);
        }
    }
}

#[test]
fn segments_come_in_order_and_not_too_long() {
    let sample = &SAMPLES[2];
    let (second, bytes) = sample.segments().nth(1).unwrap();
    let refused = sample.walker(sample.start()).feed(second, bytes);
    assert_eq!(refused, Err(WalRecordError::WrongSegment { expected: sample.start(), found: second }));
    let refused = sample.walker(sample.start()).feed(sample.start(), &sample.wal);
    assert!(matches!(refused, Err(WalRecordError::SegmentLength { .. })));
    let refused = RecordWalker::new(sample.size(), 19, Lsn::ZERO).unwrap_err();
    assert!(refused.to_string().contains("19"));
}

#[test]
fn wal_of_another_version_or_cluster_is_its_end() {
    let (fifteen, sixteen) = (&SAMPLES[2], &SAMPLES[3]);
    let mut walker = fifteen.walker(sixteen.start());
    assert!(walker.feed(sixteen.start(), &sixteen.wal[..1024 * 1024]).unwrap().is_empty());
    assert!(walker.end_reason().unwrap().to_string().contains("page header"));

    let mut walker = fifteen.walker(fifteen.start());
    let mut segments = fifteen.segments();
    let (at, bytes) = segments.next().unwrap();
    walker.feed(at, bytes).unwrap();
    let pending = walker.pending_record().unwrap();
    let (at, bytes) = segments.next().unwrap();
    let mut foreign = bytes.to_vec();
    foreign[24] ^= 1;
    walker.feed(at, &foreign).unwrap();
    assert_eq!(walker.end_of_valid(), Some(pending));
}

fn start_of(event: &WalEvent) -> Lsn {
    match event {
        WalEvent::Commit { start_lsn, .. }
        | WalEvent::Abort { start_lsn, .. }
        | WalEvent::RestorePoint { start_lsn, .. } => *start_lsn,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Up to the switch every byte of the sample is part of a page header, a record or the padding behind one.
    #[test]
    fn a_damaged_byte_never_invents_an_event(version in 0usize..6, at in 0usize..1_500_000, byte: u8) {
        let sample = &SAMPLES[version];
        let (all, intact) = sample.walk(sample.start());
        let mut wal = sample.wal.clone();
        wal[at] = byte;
        let damaged = Sample { major: sample.major, wal, ledger: "", end: 0 };
        let mut walker = sample.walker(sample.start());
        let mut events = Vec::new();
        for (start, bytes) in sample.segments().map(|(start, _)| start).zip(damaged.wal.chunks(1024 * 1024)) {
            match walker.feed(start, bytes) {
                Ok(found) => events.extend(found),
                Err(_) => break,
            }
        }
        prop_assert!(all.starts_with(&events));
        prop_assert!(walker.valid_until() <= intact.valid_until());
    }

    #[test]
    fn any_bytes_are_walked_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..9000), lsn: u64, major in 13u32..19) {
        let size = SegmentSize::new(1024 * 1024).unwrap();
        let mut walker = RecordWalker::new(size, major, Lsn::new(lsn)).unwrap();
        let _unused = walker.feed(size.start_of(Lsn::new(lsn)), &bytes);
        // The same behind an honest header, so that the bytes are taken for records.
        let sample = &SAMPLES[2];
        let mut wal = sample.wal[..40].to_vec();
        wal.extend(&bytes);
        let mut walker = sample.walker(sample.start());
        let _unused = walker.feed(sample.start(), &wal);
    }
}
