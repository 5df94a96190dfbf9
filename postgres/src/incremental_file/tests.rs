#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::collection::btree_set;
use proptest::prelude::*;

/// A file with these numbers in its header, whether they make sense or not, and its length.
fn file(truncation_blocks: u32, blocks: &[u32]) -> (Vec<u8>, u64) {
    let numbers = [&[MAGIC, blocks.len() as u32, truncation_blocks], blocks].concat();
    let mut header: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
    if !blocks.is_empty() {
        header.resize(header.len().next_multiple_of(8192), 0);
    }
    let length = header.len() + 8192 * blocks.len();
    (header, length as u64)
}

fn parse(truncation_blocks: u32, blocks: &[u32]) -> Result<IncrementalHeader, IncrementalFileError> {
    let (header, length) = file(truncation_blocks, blocks);
    IncrementalHeader::parse(&header, length)
}

#[test]
fn e10_a_file_without_blocks_has_twelve_bytes() {
    let header = parse(7, &[]).unwrap();
    assert_eq!((header.truncation_blocks(), header.block_count(), header.file_bytes()), (7, 0, 12));
    assert_eq!(header.to_bytes(), [0x0D, 0x1F, 0xAE, 0xD3, 0, 0, 0, 0, 7, 0, 0, 0]);
    assert_eq!(parse(0, &[]).unwrap().truncation_blocks(), 0);
}

#[test]
fn the_blocks_begin_at_a_multiple_of_their_size() {
    for (count, expected) in [(1, 8192), (2045, 8192), (2046, 16384), (131_072, 532_480)] {
        let blocks: Vec<u32> = (0..count).collect();
        let header = parse(131_072, &blocks).unwrap();
        assert_eq!(header.header_bytes(), expected, "{count}");
        assert_eq!(header.runs().collect::<Vec<_>>(), [(0..count, expected as u64)]);
    }
}

#[test]
fn runs_are_found_where_the_file_has_them() {
    let header = parse(20, &[1, 2, 5, 19]).unwrap();
    let block = |number: u64| 8192 + 8192 * number;
    assert_eq!(header.runs().collect::<Vec<_>>(), [(1..3, block(0)), (5..6, block(2)), (19..20, block(3))]);
    assert_eq!(header.blocks().collect::<Vec<_>>(), [1, 2, 5, 19]);
}

#[test]
fn e11_wrong_headers_are_refused() {
    let beyond = |block, truncation_blocks| IncrementalFileError::BlockBeyondEnd { block, truncation_blocks };
    assert_eq!(parse(5, &[3, 3]), Err(IncrementalFileError::NotRising { block: 3, after: 3 }));
    assert_eq!(parse(5, &[3, 4, 2]), Err(IncrementalFileError::NotRising { block: 2, after: 4 }));
    assert_eq!(parse(5, &[5]), Err(beyond(5, 5)));
    assert_eq!(parse(0, &[0]), Err(beyond(0, 0)));
    assert_eq!(parse(u32::MAX, &[131_072]), Err(beyond(131_072, 131_072)));

    let (header, length) = file(5, &[3]);
    let changed = |at: usize, byte| {
        let mut changed = header.clone();
        changed[at] = byte;
        IncrementalHeader::parse(&changed, length)
    };
    assert_eq!(changed(0, 0), Err(IncrementalFileError::Magic { found: 0xD3AE_1F00 }));
    assert_eq!(changed(7, 1), Err(IncrementalFileError::TooManyBlocks { found: 0x100_0001 }));
    assert_eq!(changed(16, 1), Err(IncrementalFileError::Padding));
    assert_eq!(changed(8191, 1), Err(IncrementalFileError::Padding));
    for found in [0, 12, length - 1, length + 1, length + 8192, u64::MAX] {
        let error = IncrementalFileError::FileLength { expected: length, found };
        assert_eq!(IncrementalHeader::parse(&header, found), Err(error));
    }
}

#[test]
fn e11_a_header_that_is_cut_short_is_refused() {
    let (header, length) = file(5, &[3]);
    for cut in 0..header.len() {
        let expected = if cut < 8 { 12 } else { 8192 };
        let error = IncrementalFileError::Short { expected, found: cut };
        assert_eq!(IncrementalHeader::parse(&header[..cut], length), Err(error.clone()), "{cut}");
    }
}

#[test]
fn e02_a_length_above_that_of_a_segment_is_read_but_not_written() {
    let header = parse(131_073, &[131_071]).unwrap();
    assert!(header.is_truncation_too_large());
    assert_eq!(header.truncation_blocks(), 131_072);
    assert_eq!(header.to_bytes(), file(131_073, &[131_071]).0);
    assert!(!parse(131_072, &[131_071]).unwrap().is_truncation_too_large());
    let error = IncrementalFileError::TruncationLength { found: 131_073 };
    assert_eq!(IncrementalHeader::new(131_073, []), Err(error));
}

#[test]
fn names_are_mapped_both_ways() {
    for (path, incremental) in [
        ("base/1/1234.1", "base/1/INCREMENTAL.1234.1"),
        ("global/1262_vm", "global/INCREMENTAL.1262_vm"),
        ("pg_tblspc/16390/PG_18_202506291/5/16385", "pg_tblspc/16390/PG_18_202506291/5/INCREMENTAL.16385"),
    ] {
        assert_eq!(incremental_path(path.as_bytes()).unwrap(), incremental.as_bytes());
        assert_eq!(reconstructed_path(incremental.as_bytes()).unwrap(), path.as_bytes());
        assert_eq!(reconstructed_path(path.as_bytes()), None);
        assert_eq!(incremental_path(incremental.as_bytes()), None);
    }
    for ordinary in [
        "",
        "INCREMENTAL.1",
        "log/INCREMENTAL.1",
        "pg_wal/INCREMENTAL.1",
        "base/INCREMENTAL.1",
        "base/5/INCREMENTAL.",
        "base/5/INCREMENTAL.foo",
        "base/5/INCREMENTAL.INCREMENTAL.1",
        "base/5/incremental.1",
        "base/INCREMENTAL.5/1",
    ] {
        assert_eq!(reconstructed_path(ordinary.as_bytes()), None, "{ordinary}");
    }
}

proptest! {
    #[test]
    fn any_header_round_trips(truncation in 1_u32..=131_072, blocks in btree_set(0_u32..131_072, 0..3000)) {
        let blocks: Vec<u32> = blocks.into_iter().filter(|block| *block < truncation).collect();
        let header = IncrementalHeader::new(truncation, blocks.iter().copied()).unwrap();
        let (bytes, length) = file(truncation, &blocks);
        prop_assert_eq!(IncrementalHeader::length_from(&bytes[..12]), Ok(bytes.len()));
        prop_assert_eq!(header.to_bytes(), bytes.as_slice());
        prop_assert_eq!(header.file_bytes(), length);
        prop_assert_eq!(header.blocks().collect::<Vec<_>>(), blocks);
        prop_assert_eq!(IncrementalHeader::parse(&bytes, length), Ok(header));
    }

    #[test]
    fn any_bytes_are_read_or_refused(content: Vec<u8>, file_bytes: u64) {
        let _unused = IncrementalHeader::parse(&content, file_bytes);
        let known = [&MAGIC.to_le_bytes()[..], &content].concat();
        let _unused = IncrementalHeader::parse(&known, file_bytes);
    }

    #[test]
    fn what_is_read_is_written_the_same(numbers in prop::collection::vec(0_u32..8, 2..6), file_bytes in 0_u64..40_000) {
        let mut content: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
        content.splice(0..0, MAGIC.to_le_bytes());
        content.resize(8192, 0);
        let length = IncrementalHeader::length_from(&content).unwrap();
        for file_bytes in [file_bytes, (length as u64).next_multiple_of(8192) + 8192 * (content[4] as u64), 12] {
            if let Ok(header) = IncrementalHeader::parse(&content, file_bytes) {
                prop_assert_eq!(header.to_bytes(), &content[..length]);
                prop_assert_eq!(header.file_bytes(), file_bytes);
            }
        }
    }
}
