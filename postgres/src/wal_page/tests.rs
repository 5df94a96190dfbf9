#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

/// The first page of a real segment of PostgreSQL 15 with segments of 1 MiB.
static REAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut wal = zstd::decode_all(&include_bytes!("../../tests/samples/15/wal.zst")[..]).unwrap();
    wal.truncate(8192);
    wal
});
const NAME: &str = "000000010000000000000007";
const FACTS: &str = include_str!("../../tests/samples/15/control-facts");
const MEBIBYTE: u64 = 1024 * 1024;

fn name() -> SegmentName {
    NAME.parse().unwrap()
}

fn changed(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut page = REAL.to_vec();
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
    page
}

#[test]
fn a_real_first_page_is_read() {
    let header = SegmentHeader::parse(&REAL).unwrap();
    assert_eq!((header.magic, header.major, header.block_size), (0xD110, 15, 8192));
    assert_eq!(header.timeline, TimelineId::FIRST);
    assert_eq!(header.page_address, name().start(header.segment_size));
    assert_eq!(header.segment_size.bytes(), MEBIBYTE);
    assert_eq!(header.system_identifier.to_string(), FACTS.split(' ').next().unwrap());
    assert_eq!(header.check_name(&name(), MEBIBYTE), Ok(()));
    assert_eq!(SegmentHeader::parse(&REAL[..SegmentHeader::BYTES]), Ok(header));
}

#[test]
fn every_known_version_is_told_by_its_magic() {
    for (magic, major) in MAGICS {
        let header = SegmentHeader::parse(&changed(0, &magic.to_le_bytes())).unwrap();
        assert_eq!(header.major, major);
        assert_eq!(magic_of(major), Some(magic));
    }
    assert_eq!(magic_of(19), None);
    let newer = SegmentHeader::parse(&changed(0, &0xD120u16.to_le_bytes())).unwrap_err();
    assert!(newer.to_string().contains("D120") && newer.is_of_newer_version(), "{newer}");
    let garbage = SegmentHeader::parse(&changed(0, &0xE000u16.to_le_bytes())).unwrap_err();
    assert!(!garbage.is_of_newer_version(), "{garbage}");
}

#[test]
fn b21_zero_page_is_refused() {
    assert_eq!(SegmentHeader::parse(&[0; 8192]), Err(WalPageError::UnknownMagic { magic: 0 }));
}

#[test]
fn b21_each_wrong_field_is_named() {
    let parse = |offset, bytes: &[u8]| SegmentHeader::parse(&changed(offset, bytes)).unwrap_err().to_string();
    assert!(parse(0, &[0x34, 0x12]).contains("magic 1234"));
    assert!(parse(2, &[0, 0]).contains("long header"));
    assert!(parse(2, &[0x12, 0]).contains("flags are 0012"));
    assert!(parse(4, &[0; 4]).contains("timeline of the page is 0"));
    assert!(parse(8, &[1]).contains("page address"));
    assert!(parse(32, &[0; 4]).contains("segment size"));
    assert!(parse(36, &[0; 4]).contains("page size is 0"));
}

#[test]
fn b21_recycled_file_is_refused() {
    let header = SegmentHeader::parse(&REAL).unwrap();
    let other = name().next(header.segment_size);
    assert!(matches!(header.check_name(&other, MEBIBYTE), Err(WalPageError::PageAddress { .. })));
    let impossible = SegmentName { segment: 0x1000, ..name() };
    assert!(matches!(header.check_name(&impossible, MEBIBYTE), Err(WalPageError::Name { .. })));
}

#[test]
fn b22_other_lengths_are_refused() {
    let header = SegmentHeader::parse(&REAL).unwrap();
    for length in [0, MEBIBYTE - 1, MEBIBYTE + 1, 16 * MEBIBYTE] {
        assert_eq!(
            header.check_name(&name(), length),
            Err(WalPageError::FileLength { expected: MEBIBYTE, found: length })
        );
    }
    for length in 0..SegmentHeader::BYTES {
        assert!(matches!(SegmentHeader::parse(&REAL[..length]), Err(WalPageError::Short { .. })), "{length}");
    }
}

#[test]
fn b23_a_lower_timeline_in_the_page_is_accepted_and_a_higher_one_not() {
    let header = SegmentHeader::parse(&REAL).unwrap();
    let later = SegmentName { timeline: TimelineId::new(2).unwrap(), ..name() };
    assert_eq!(header.check_name(&later, MEBIBYTE), Ok(()));
    let header = SegmentHeader::parse(&changed(4, &3u32.to_le_bytes())).unwrap();
    assert!(matches!(header.check_name(&later, MEBIBYTE), Err(WalPageError::Timeline { .. })));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>, at in 0..SegmentHeader::BYTES, byte: u8, length: u64) {
        let _unused = SegmentHeader::parse(&bytes);
        if let Ok(header) = SegmentHeader::parse(&changed(at, &[byte])) {
            let _unused = header.check_name(&name(), length);
            prop_assert_eq!(header.segment_size.offset_of(header.page_address), 0);
        }
    }
}
