#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use std::io::{self, Cursor, Read};

type Files = Vec<(&'static str, Vec<u64>)>;

fn files() -> Files {
    vec![
        ("base/5/16384", vec![1, u64::MAX, 0]),
        ("global/1262_vm", vec![]),
        ("pg_tblspc/16390/PG_15_202209061/5/16385.7", vec![7; 1000]),
        ("base/5/16384.1", vec![2]),
    ]
}

fn write(files: &[(&str, Vec<u64>)]) -> Vec<u8> {
    let mut writer = BlockMapWriter::new(Vec::new()).unwrap();
    for (path, hashes) in files {
        writer.write(path.as_bytes(), &BlockHashes(hashes.clone())).unwrap();
    }
    writer.finish().unwrap()
}

fn read(map: &[u8]) -> Result<Vec<BlockMapFile>, BlockMapError> {
    BlockMapReader::new(map)?.collect()
}

/// Writes a record with the right checksum.
fn sealed(record: &[u8]) -> Vec<u8> {
    [record, &crc32c::crc32c(record).to_le_bytes()].concat()
}

fn beginning() -> Vec<u8> {
    write(&[])[..16].to_vec()
}

#[test]
fn the_layout_is_as_documented() {
    let file = [b"\x0C\0base/5/16384\x02\0\0\0".as_slice(), &7_u64.to_le_bytes(), &9_u64.to_le_bytes()].concat();
    let end = b"\0\0\x01\0\0\0\0\0\0\0";
    let expected = [b"PGARKMAP\x01\0\0\0\0\x20\0\0".to_vec(), sealed(&file), sealed(end)].concat();
    assert_eq!(write(&[("base/5/16384", vec![7, 9])]), expected);
    // The digest of no bytes is AF1349B9F5F9A1A6...
    assert_eq!(block_hash(b""), 0xA6A1_F9F5_B949_13AF);
}

#[test]
fn what_was_written_is_read() {
    assert!(read(&write(&[])).unwrap().is_empty());
    let map = write(&files());
    let read = read(&map).unwrap();
    assert_eq!(read.len(), 4);
    let index = BlockMapIndex::read(map.as_slice()).unwrap();
    for ((path, hashes), file) in files().into_iter().zip(read) {
        assert_eq!((file.path.as_slice(), &file.hashes.0), (path.as_bytes(), &hashes));
        assert_eq!(index.find(Cursor::new(&map), path.as_bytes()).unwrap(), Some(BlockHashes(hashes)));
    }
    assert_eq!(index.find(Cursor::new(&map), b"base/5/16385").unwrap(), None);
}

#[test]
fn only_files_that_are_kept_by_blocks_are_taken() {
    let hashes = |blocks| BlockHashes(vec![0; blocks]);
    let mut writer = BlockMapWriter::new(Vec::new()).unwrap();
    for path in ["", "PG_VERSION", "base/5/16384_fsm", "base/5/INCREMENTAL.16384", "../base/5/16384"] {
        assert!(matches!(writer.write(path.as_bytes(), &hashes(1)), Err(BlockMapError::File { .. })), "{path}");
    }
    assert!(matches!(writer.write(b"base/5/1", &hashes(131_073)), Err(BlockMapError::File { .. })));
    writer.write(b"base/5/1", &hashes(131_072)).unwrap();
    let map = writer.finish().unwrap();
    assert_eq!(read(&map).unwrap()[0].hashes, hashes(131_072));

    // Also not if a map has them: nothing else than what the writer takes, and no memory for what is claimed.
    for record in [&b"\x0A\0PG_VERSION\0\0\0\0"[..], b"\x08\0base/5/1\xFF\xFF\xFF\xFF", b"\x08\0base/5/1\x01\0\x02\0"] {
        let map = [beginning(), sealed(record)].concat();
        assert!(matches!(read(&map), Err(BlockMapError::File { .. })), "{record:?}");
    }
}

#[test]
fn damage_is_noticed() {
    let map = write(&files());
    for at in 0..map.len() {
        let mut changed = map.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(read(&changed).is_err(), "byte {at}");
        assert!(BlockMapIndex::read(changed.as_slice()).is_err(), "byte {at}");
        assert!(read(&map[..at]).is_err(), "cut at {at}");
    }
    assert!(matches!(read(&map[..map.len() - 1]), Err(BlockMapError::CutShort)));
    assert!(matches!(read(&[&map[..], b"\0"].concat()), Err(BlockMapError::BytesAfterEnd)));
}

#[test]
fn other_versions_and_files_are_refused() {
    let changed = |at: usize, byte| {
        let mut map = write(&files());
        map[at] = byte;
        read(&map).unwrap_err()
    };
    assert!(matches!(changed(0, b'p'), BlockMapError::Magic));
    assert!(matches!(changed(8, 2), BlockMapError::Version { found: 2 }));
    assert!(matches!(changed(13, 0x40), BlockMapError::BlockBytes { found: 16384 }));
    assert!(matches!(read(b""), Err(BlockMapError::CutShort)));
}

#[test]
fn a_lost_or_doubled_file_is_noticed() {
    let [one, other] = [b"\x08\0base/5/1\0\0\0\0", b"\x08\0base/5/2\0\0\0\0"].map(|record| sealed(record));
    let end = sealed(b"\0\0\x02\0\0\0\0\0\0\0");
    let map = |records: &[&[u8]]| [beginning(), records.concat()].concat();
    assert_eq!(read(&map(&[&one, &other, &end])).unwrap().len(), 2);
    assert!(matches!(read(&map(&[&one, &end])), Err(BlockMapError::FileCount { expected: 2, found: 1 })));
    let twice = map(&[&one, &one, &end]);
    assert!(matches!(BlockMapIndex::read(twice.as_slice()), Err(BlockMapError::Twice)));
}

#[test]
fn nothing_is_read_after_an_error() {
    let map = [beginning(), b"\x08\0base/5/1\0\0\0\0\0\0\0\0".to_vec(), sealed(b"\0\0\0\0\0\0\0\0\0\0")].concat();
    let mut reader = BlockMapReader::new(map.as_slice()).unwrap();
    assert!(matches!(reader.next(), Some(Err(BlockMapError::Checksum { .. }))));
    assert!(reader.next().is_none());
}

#[test]
fn an_index_of_another_map_finds_nothing_wrong() {
    let index = BlockMapIndex::read(write(&files()).as_slice()).unwrap();
    // The same length and another file in the place.
    let other = write(&[("base/5/16389", vec![1, 2, 3])]);
    assert_eq!(index.find(Cursor::new(&other), b"base/5/16384").unwrap(), None);
    assert!(index.find(Cursor::new(&other), b"base/5/16384.1").is_err());
}

#[test]
fn a_failing_source_or_destination_is_an_error() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("no"))
        }
    }
    let map = write(&files());
    let result: Result<Vec<_>, _> = BlockMapReader::new(map[..map.len() - 1].chain(Failing)).unwrap().collect();
    assert!(matches!(result, Err(BlockMapError::Read { .. })));
    let mut room = [0_u8; 20];
    let mut writer = BlockMapWriter::new(room.as_mut_slice()).unwrap();
    assert!(matches!(writer.write(b"base/5/1", &BlockHashes::default()), Err(BlockMapError::Write { .. })));
}

#[test]
fn the_changed_blocks_of_a_file_are_those_that_differ() {
    let changes = |current: &[u64], parent: &[u64]| {
        let header = BlockHashes(current.to_vec()).changes_since(&BlockHashes(parent.to_vec())).unwrap()?;
        Some((header.truncation_blocks(), header.blocks().collect::<Vec<_>>()))
    };
    assert_eq!(changes(&[1, 2, 3], &[1, 2, 3]), Some((3, vec![])));
    assert_eq!(changes(&[1, 9, 3], &[1, 2, 3]), Some((3, vec![1])));
    // Shrunk, and grown.
    assert_eq!(changes(&[1, 2], &[1, 2, 3]), Some((2, vec![])));
    assert_eq!(changes(&[1, 2, 3, 0], &[1, 2, 3]), Some((4, vec![3])));
    // Whole: new, empty, all of it changed.
    assert_eq!(changes(&[1, 2], &[]), None);
    assert_eq!(changes(&[], &[1]), None);
    assert_eq!(changes(&[2, 1], &[1, 2]), None);

    let long: BlockHashes = (0..131_073).collect();
    assert!(long.changes_since(&long).is_err());
}

proptest! {
    #[test]
    fn any_map_round_trips(numbers in prop::collection::btree_map(1_u32.., prop::collection::vec(any::<u64>(), 0..20), 0..20)) {
        let mut writer = BlockMapWriter::new(Vec::new()).unwrap();
        let files: Vec<_> = numbers
            .into_iter()
            .map(|(number, hashes)| BlockMapFile { path: format!("base/5/{number}").into(), hashes: BlockHashes(hashes) })
            .collect();
        for file in &files {
            writer.write(&file.path, &file.hashes).unwrap();
        }
        let map = writer.finish().unwrap();
        prop_assert_eq!(read(&map).unwrap(), files.as_slice());
        let index = BlockMapIndex::read(map.as_slice()).unwrap();
        for file in files {
            prop_assert_eq!(index.find(Cursor::new(&map), &file.path).unwrap(), Some(file.hashes));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(content: Vec<u8>) {
        let _unused = read(&content);
        let _unused = read(&[beginning(), content].concat());
    }

    #[test]
    fn the_parent_and_the_changed_blocks_make_the_file(parent in prop::collection::vec(0_u64..3, 0..30), current in prop::collection::vec(0_u64..3, 0..30)) {
        let changes = BlockHashes(current.clone()).changes_since(&BlockHashes(parent.clone())).unwrap();
        let made = match changes {
            None => current.clone(),
            Some(header) => {
                let mut made = parent;
                // What the changes do not give must be there: nothing else stands in for it.
                made.resize(header.truncation_blocks() as usize, 99);
                header.blocks().for_each(|block| made[block as usize] = current[block as usize]);
                made
            }
        };
        prop_assert_eq!(made, current);
    }
}
