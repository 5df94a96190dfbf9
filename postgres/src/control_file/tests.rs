#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;

/// The beginning of a real file of each version, as far as it is not zero, and what the server said about it.
const REAL: [(u32, &[u8], &str); 6] = [
    (13, include_bytes!("../../tests/samples/13/pg_control"), include_str!("../../tests/samples/13/control-facts")),
    (14, include_bytes!("../../tests/samples/14/pg_control"), include_str!("../../tests/samples/14/control-facts")),
    (15, include_bytes!("../../tests/samples/15/pg_control"), include_str!("../../tests/samples/15/control-facts")),
    (16, include_bytes!("../../tests/samples/16/pg_control"), include_str!("../../tests/samples/16/control-facts")),
    (17, include_bytes!("../../tests/samples/17/pg_control"), include_str!("../../tests/samples/17/control-facts")),
    (18, include_bytes!("../../tests/samples/18/pg_control"), include_str!("../../tests/samples/18/control-facts")),
];
const REAL_15: &[u8] = REAL[2].1;

fn sealed(mut content: Vec<u8>, crc_at: usize) -> Vec<u8> {
    let crc = crc32c::crc32c(&content[..crc_at]);
    content[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    content
}

fn changed(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut content = REAL_15.to_vec();
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
    sealed(content, 288)
}

#[test]
fn real_files_say_what_the_server_says() {
    for (major, content, facts) in REAL {
        let control = ControlFile::parse(content).unwrap();
        let facts: Vec<&str> = facts.split_ascii_whitespace().collect();
        let [
            system,
            version,
            catalog,
            checkpoint,
            redo,
            timeline,
            previous,
            block,
            blocks,
            wal_block,
            segment,
            checksums,
        ] = facts[..]
        else {
            panic!("{facts:?}")
        };
        let expected = ControlFile {
            system_identifier: system.parse().unwrap(),
            pg_control_version: version.parse().unwrap(),
            catalog_version: catalog.parse().unwrap(),
            state: ClusterState::InProduction,
            checkpoint: checkpoint.parse().unwrap(),
            checkpoint_redo: redo.parse().unwrap(),
            checkpoint_timeline: timeline.parse().unwrap(),
            checkpoint_previous_timeline: previous.parse().unwrap(),
            minimum_recovery_end: Lsn::ZERO,
            // These were set in the configuration file.
            wal_level: WalLevel::Replica,
            max_connections: 37,
            max_worker_processes: 9,
            max_wal_senders: 6,
            max_prepared_transactions: 5,
            max_locks_per_transaction: 70,
            block_size: block.parse().unwrap(),
            blocks_per_relation_file: blocks.parse().unwrap(),
            wal_block_size: wal_block.parse().unwrap(),
            segment_size: SegmentSize::new(segment.parse().unwrap()).unwrap(),
            data_checksums: checksums != "0",
            major,
        };
        assert_eq!(control, expected);
        assert_eq!(control.major(), major);
    }
}

#[test]
fn the_catalogue_version_tells_the_major_version() {
    for version in &VERSIONS {
        let mut content = changed(8, &version.control.to_le_bytes());
        content[12..16].copy_from_slice(&version.catalog.to_le_bytes());
        let control = ControlFile::parse(&sealed(content, version.crc_at)).unwrap();
        assert_eq!(control.major(), version.major);
    }
    let unknown = ControlFile::parse(&changed(12, &202_604_011u32.to_le_bytes()));
    assert_eq!(unknown, Err(ControlFileError::UnknownVersion { control: 1300, catalog: 202_604_011 }));
}

#[test]
fn a_torn_or_damaged_file_is_refused() {
    for offset in (0..288).filter(|offset| !(8..16).contains(offset)) {
        let mut content = REAL_15.to_vec();
        content[offset] ^= 1;
        let error = ControlFile::parse(&content).unwrap_err();
        assert!(matches!(error, ControlFileError::Checksum { .. }) && error.is_retryable(), "{offset}");
    }
    for length in 0..292 {
        let error = ControlFile::parse(&REAL_15[..length]).unwrap_err();
        assert!(matches!(error, ControlFileError::Short { found, .. } if found == length), "{length}");
    }
    assert!(ControlFile::parse(&REAL_15[..292]).is_ok());
}

#[test]
fn impossible_fields_are_named() {
    let refused = |offset| ControlFile::parse(&changed(offset, &[77, 77, 0, 0])).unwrap_err().to_string();
    assert!(refused(16).contains("state"));
    assert!(refused(172).contains("wal_level"));
    assert!(refused(216).contains("block size"));
    assert!(refused(224).contains("WAL page size"));
    assert!(refused(228).contains("segment size"));
    let error = ControlFile::parse(&changed(48, &[0; 4])).unwrap_err();
    assert!(error.to_string().contains("checkpoint timeline"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(content: Vec<u8>, at in 0usize..288, bytes: [u8; 4]) {
        let _unused = ControlFile::parse(&content);
        let _unused = ControlFile::parse(&changed(at.min(284), &bytes));
    }
}
