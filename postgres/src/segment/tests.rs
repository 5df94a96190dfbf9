#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;

fn size(mebibytes: u64) -> SegmentSize {
    SegmentSize::new(mebibytes * MEBIBYTE).unwrap()
}

fn any_size() -> impl Strategy<Value = SegmentSize> {
    (0u32..=10).prop_map(|power| size(1 << power))
}

fn any_segment() -> impl Strategy<Value = SegmentName> {
    (1u32.., any::<u32>(), any::<u32>()).prop_map(|(timeline, log, segment)| SegmentName {
        timeline: TimelineId::new(timeline).unwrap(),
        log,
        segment,
    })
}

#[test]
fn a51_settings_of_every_size_are_read() {
    for (text, mebibytes) in [("1MB", 1), ("16MB", 16), ("64MB", 64), ("1GB", 1024), ("1024kB", 1), ("16777216", 16)] {
        assert_eq!(SegmentSize::from_setting(text), Ok(size(mebibytes)), "{text}");
    }
    for text in
        ["", "MB", "16mb", "16 MB", "-16MB", "3MB", "512kB", "2GB", "99999999999999999999GB", "18446744073709551615GB"]
    {
        assert!(SegmentSize::from_setting(text).is_err(), "{text:?}");
    }
}

#[test]
fn a51_names_follow_the_segment_size() {
    let timeline = TimelineId::new(0x1A).unwrap();
    let lsn = Lsn::new(0x5_FF00_0000);
    for (mebibytes, name) in [
        (1, "0000001A0000000500000FF0"),
        (16, "0000001A00000005000000FF"),
        (64, "0000001A000000050000003F"),
        (1024, "0000001A0000000500000003"),
    ] {
        let segment = SegmentName::containing(timeline, lsn, size(mebibytes));
        assert_eq!(segment.to_string(), name);
        assert!(segment.start(size(mebibytes)) <= lsn && lsn < segment.end(size(mebibytes)));
    }
}

#[test]
fn the_next_segment_carries_into_the_log() {
    let last: SegmentName = "0000000100000000000000FF".parse().unwrap();
    assert_eq!(last.next(size(16)).to_string(), "000000010000000100000000");
    assert_eq!(last.next(size(16)).previous(size(16)), Some(last));
    assert_eq!(last.end(size(16)), Lsn::new(1 << 32));
    assert!(last.is_valid_for(size(16)) && !last.is_valid_for(size(64)));
    assert_eq!("000000010000000000000000".parse::<SegmentName>().unwrap().previous(size(16)), None);
}

#[test]
fn the_end_of_the_number_space_saturates() {
    let hostile: SegmentName = "FFFFFFFFFFFFFFFFFFFFFFFF".parse().unwrap();
    assert_eq!(hostile.start(size(16)), Lsn::MAX);
    assert_eq!(hostile.end(size(1)), Lsn::MAX);
    let last = SegmentName::containing(TimelineId::FIRST, Lsn::MAX, size(16));
    assert_eq!(last.to_string(), "00000001FFFFFFFF000000FF");
    assert_eq!(last.next(size(16)), last);
}

#[test]
fn b18_every_kind_of_name_is_told_apart() {
    let segment: SegmentName = "0000000A00000001000000FE".parse().unwrap();
    let names = [
        ("0000000A00000001000000FE", WalFileName::Segment(segment)),
        ("0000000A00000001000000FE.partial", WalFileName::Partial(segment)),
        ("0000000A00000001000000FE.00000028.backup", WalFileName::BackupHistory { segment, offset: 0x28 }),
        ("0000000A.history", WalFileName::History(TimelineId::new(10).unwrap())),
    ];
    for (text, name) in names {
        assert_eq!(text.parse(), Ok(name));
        assert_eq!(name.to_string(), text);
    }
}

#[test]
fn b20_other_names_are_refused() {
    for text in [
        "",
        ".",
        "..",
        "RECOVERYXLOG",
        "0000000a00000001000000fe",
        "0000000A00000001000000F",
        "0000000A00000001000000FEE",
        "000000000000000100000001",
        "00000000.history",
        "0000000A.history.",
        "0000000A.History",
        "../0000000A.history",
        "pg_wal/0000000A00000001000000FE",
        "0000000A00000001000000FE.partial.partial",
        "0000000A00000001000000FE.backup",
        "0000000A00000001000000FE.28.backup",
        "0000000A00000001000000FE.00000028.backup ",
        "0000000A00000001000000FE.gz",
        "0000000A00000001000000\u{00e9}",
        "0000000\u{00e9}0000001000000FE",
    ] {
        assert!(text.parse::<WalFileName>().is_err(), "{text:?}");
    }
}

proptest! {
    #[test]
    fn names_and_positions_agree(timeline in 1u32.., bytes: u64, size in any_size()) {
        let lsn = Lsn::new(bytes);
        let segment = SegmentName::containing(TimelineId::new(timeline).unwrap(), lsn, size);
        prop_assert!(segment.is_valid_for(size));
        prop_assert_eq!(segment.start(size), size.start_of(lsn));
        prop_assert_eq!(segment.start(size).saturating_add(size.offset_of(lsn)), lsn);
        prop_assert_eq!(SegmentName::from_number(segment.timeline, segment.number(size), size), segment);
        prop_assert_eq!(segment.to_string().parse(), Ok(segment));
        let json = serde_json::to_string(&segment).unwrap();
        prop_assert_eq!(serde_json::from_str::<SegmentName>(&json).unwrap(), segment);
    }

    #[test]
    fn arithmetic_never_panics(segment in any_segment(), size in any_size()) {
        prop_assert!(segment.start(size) <= segment.end(size));
        prop_assert!(segment.next(size).is_valid_for(size));
        prop_assert!(segment.previous(size).is_none_or(|name| name.is_valid_for(size)));
    }

    #[test]
    fn sizes_round_trip(size in any_size()) {
        prop_assert_eq!(SegmentSize::from_setting(&size.to_string()), Ok(size));
        let json = serde_json::to_string(&size).unwrap();
        prop_assert_eq!(serde_json::from_str::<SegmentSize>(&json).unwrap(), size);
        prop_assert!(serde_json::from_str::<SegmentSize>("17").is_err());
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[0-9A-F]{0,26}(\\.(partial|history|[0-9A-F]{8}\\.backup))?|\\PC*") {
        if let Ok(name) = text.parse::<WalFileName>() {
            prop_assert_eq!(name.to_string(), text);
        }
    }
}
