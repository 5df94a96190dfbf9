#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;

/// The beginning of a real file of PostgreSQL 15, as far as it is not zero.
const REAL_15: &[u8] = include_bytes!("../../tests/samples/pg_control-15");

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

// The expected values are those that pg_controldata printed for the same file.
#[test]
fn a_real_file_of_15_is_read() {
    let control = ControlFile::parse(REAL_15).unwrap();
    assert_eq!(
        control,
        ControlFile {
            system_identifier: SystemIdentifier::new(7_710_467_865_093_598_212),
            pg_control_version: 1300,
            catalog_version: 202_209_061,
            state: ClusterState::InProduction,
            checkpoint: Lsn::new(0x180_0060),
            checkpoint_redo: Lsn::new(0x180_0028),
            checkpoint_timeline: TimelineId::FIRST,
            checkpoint_previous_timeline: TimelineId::FIRST,
            minimum_recovery_end: Lsn::ZERO,
            wal_level: WalLevel::Replica,
            max_connections: 100,
            max_worker_processes: 9,
            max_wal_senders: 4,
            max_prepared_transactions: 5,
            max_locks_per_transaction: 70,
            block_size: 8192,
            blocks_per_relation_file: 131_072,
            wal_block_size: 8192,
            segment_size: SegmentSize::new(1024 * 1024).unwrap(),
            data_checksums: true,
            major: 15,
        }
    );
    assert_eq!(control.major(), 15);
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
    assert_eq!(
        unknown,
        Err(ControlFileError::UnknownVersion {
            control: 1300,
            catalog: 202_604_011
        })
    );
}

#[test]
fn a_torn_or_damaged_file_is_refused() {
    for offset in (0..288).filter(|offset| !(8..16).contains(offset)) {
        let mut content = REAL_15.to_vec();
        content[offset] ^= 1;
        let error = ControlFile::parse(&content).unwrap_err();
        assert!(
            matches!(error, ControlFileError::Checksum { .. }) && error.is_retryable(),
            "{offset}"
        );
    }
    for length in 0..292 {
        let error = ControlFile::parse(&REAL_15[..length]).unwrap_err();
        assert!(
            matches!(error, ControlFileError::Short { found, .. } if found == length),
            "{length}"
        );
    }
    assert!(ControlFile::parse(&REAL_15[..292]).is_ok());
}

#[test]
fn impossible_fields_are_named() {
    let refused = |offset| {
        ControlFile::parse(&changed(offset, &[77, 77, 0, 0]))
            .unwrap_err()
            .to_string()
    };
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
