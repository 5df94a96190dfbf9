//! What is done with hostile bytes, a function for each kind of input.
//!
//! `make fuzz` runs them under libFuzzer, and `make test` runs them over the corpus and for some seconds over mutations
//! of it (`tests/fuzz`, which includes this file). Where a format has checksums of its own, the bytes are tried twice: as
//! they are, and with the checksums made right, since otherwise nothing but the check of them would ever be met.

mod incremental_backups;

use std::io::BufReader;

use pgark_agent::fuzzed::{TarPiece, TarStream};
use pgark_postgres::{
    BackupLabel, ManifestReader, RecordWalker, SegmentHeader, TablespaceMap, TimelineHistory, TimelineId,
    check_relative_path,
};
use pgark_repository::{Backup, IndexLine, IndexReader, TAR_BLOCK, TarMember};
use pgark_restore::fuzzed::TarReader;
use sha2::{Digest, Sha256};

pub use incremental_backups::{block_map, incremental, reconstruction};

/// What is done with one input; a panic is a fault found.
pub type Target = fn(&[u8]);

/// Every function with its name, which is also the name of its corpus.
pub const TARGETS: [(&str, Target); 10] = [
    ("tar", tar),
    ("manifest", manifest),
    ("wal", wal),
    ("history", history),
    ("labels", labels),
    ("index", index),
    ("commit_mark", commit_mark),
    ("incremental", incremental),
    ("reconstruction", reconstruction),
    ("block_map", block_map),
];

/// A tar archive: what the restore's reader takes, the agent's must take too, and see the same in it.
pub fn tar(data: &[u8]) {
    check_tar(data);
    let mut repaired = data.to_vec();
    for header in repaired.chunks_exact_mut(TAR_BLOCK).filter(|block| &block[257..263] == b"ustar\0") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    check_tar(&repaired);
}

/// Members with their content.
type Members = Vec<(TarMember, Vec<u8>)>;

fn check_tar(data: &[u8]) {
    let whole = read_stream(data, data.len().max(1));
    assert_eq!(read_stream(data, 511), whole, "pieces of another size change what is read");
    if let Some(stored) = read_part(data) {
        assert_eq!(Some(stored), whole, "the two readers differ");
    }
    for (member, content) in whole.into_iter().flatten() {
        assert!(member.path.is_empty() || check_relative_path(&member.path).is_ok());
        assert_eq!(member.size.unwrap_or(0), content.len() as u64);
        if let Ok(header) = member.header() {
            assert_eq!(TarMember::read(&header), Ok(Some(member)));
        }
    }
}

/// As the agent reads what a server sends.
fn read_stream(data: &[u8], piece: usize) -> Option<Members> {
    let mut stream = TarStream::default();
    let mut members = Members::new();
    for mut piece in data.chunks(piece) {
        while let Some(piece) = stream.next(&mut piece).ok()? {
            match piece {
                TarPiece::Member(member) => members.push((member, Vec::new())),
                TarPiece::Content(content) => members.last_mut()?.1.extend_from_slice(content),
            }
        }
    }
    stream.finish().ok().map(|()| members)
}

/// As a restore reads a part.
fn read_part(data: &[u8]) -> Option<Members> {
    let mut reader = TarReader::new(data);
    let mut members = Members::new();
    while let Some(member) = reader.next_member().ok()? {
        let mut content = Vec::new();
        let take = |bytes: &[u8]| {
            content.extend_from_slice(bytes);
            Ok(())
        };
        reader.read_content(member.size.unwrap_or(0), take).ok()?;
        members.push((member, content));
    }
    Some(members)
}

/// A `backup_manifest`.
pub fn manifest(data: &[u8]) {
    check_manifest(data);
    const CHECKSUM: &[u8] = b"\"Manifest-Checksum\": \"";
    if let Some(at) = data.windows(CHECKSUM.len()).position(|window| window == CHECKSUM) {
        let digest: String = Sha256::digest(&data[..at]).iter().map(|byte| format!("{byte:02x}")).collect();
        check_manifest(&[&data[..at], CHECKSUM, digest.as_bytes(), b"\"}\n"].concat());
    }
}

fn check_manifest(data: &[u8]) {
    // A small buffer lets lines cross its end.
    let Ok(mut reader) = ManifestReader::new(BufReader::with_capacity(16, data)) else { return };
    while let Ok(Some(file)) = reader.next_file() {
        assert!(check_relative_path(&file.path).is_ok());
    }
    if let Ok(end) = reader.finish() {
        assert!(end.wal_ranges.iter().all(|range| range.start <= range.end));
    }
}

/// The beginning of a WAL segment.
pub fn wal(data: &[u8]) {
    check_wal(data);
    let mut repaired = data.to_vec();
    repaired.chunks_mut(8192).for_each(repair_records);
    check_wal(&repaired);
}

fn check_wal(data: &[u8]) {
    let Ok(header) = SegmentHeader::parse(data) else { return };
    let start = header.page_address;
    for from in [start, start.saturating_add(4096)] {
        let Ok(mut walker) = RecordWalker::new(header.segment_size, header.major, from) else { return };
        let events = walker.feed(start, data);
        // The record that ends a segment early is valid to the segment's end.
        assert!(walker.valid_until() <= start.saturating_add(header.segment_size.bytes()));
        drop((events, walker.end_reason().map(ToString::to_string), walker.pending_record()));
    }
}

/// Makes the checksums right of the records that lie on a page as a whole.
fn repair_records(page: &mut [u8]) {
    const HEADER: usize = 24;
    let word = |page: &[u8], at: usize| {
        page.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    };
    let header = if page.get(2).is_some_and(|flags| flags & 2 != 0) { 40 } else { HEADER };
    let Some(open) = word(page, 16) else { return };
    let mut at = header + open as usize;
    loop {
        at = at.next_multiple_of(8);
        let Some(length) = word(page, at).map(|length| length as usize) else { return };
        let Some(record) = at.checked_add(length).and_then(|end| page.get_mut(at..end)) else { return };
        if record.len() < HEADER {
            return;
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&record[HEADER..]), &record[..20]);
        record[20..HEADER].copy_from_slice(&crc.to_le_bytes());
        at += length;
    }
}

/// A timeline's history; the first byte is the timeline.
pub fn history(data: &[u8]) {
    let Some((timeline, content)) = data.split_first() else { return };
    let Some(timeline) = TimelineId::new(u32::from(*timeline)) else { return };
    let Ok(history) = TimelineHistory::parse(timeline, content) else { return };
    let path = history.path();
    assert_eq!(path.last().map(|(last, _, _)| *last), Some(timeline));
    for (timeline, begin, end) in path {
        assert!(end.is_none_or(|end| begin <= end));
        assert_eq!(history.switch_point(timeline), end);
        let _answers = (history.contains(timeline, begin), history.timeline_at(begin));
    }
}

/// `backup_label` and `tablespace_map`.
pub fn labels(data: &[u8]) {
    if let Ok(label) = BackupLabel::parse(data) {
        assert!(label.start_timeline.is_none_or(|timeline| timeline == label.start_segment.timeline));
    }
    for major in [13, 14] {
        if let Ok(map) = TablespaceMap::parse(data, major) {
            assert_eq!(TablespaceMap::parse(&map.to_bytes(major), major), Ok(map));
        }
    }
}

/// Lines of `index.jsonl`.
pub fn index(data: &[u8]) {
    let mut reader = IndexReader::new(BufReader::with_capacity(16, data));
    while let Ok(Some(line)) = reader.next_line() {
        if let IndexLine::Member(member) = &line {
            assert!(check_relative_path(&member.path).is_ok());
        }
        let mut written = Vec::new();
        assert!(line.write(&mut written).is_ok());
        assert_eq!(IndexReader::new(written.as_slice()).next_line().ok().flatten(), Some(line));
    }
}

/// `backup.json`.
pub fn commit_mark(data: &[u8]) {
    let Ok(backup) = serde_json::from_slice::<Backup>(data) else { return };
    let again = serde_json::to_vec(&backup).ok().and_then(|text| serde_json::from_slice::<Backup>(&text).ok());
    assert_eq!(again, Some(backup));
}
