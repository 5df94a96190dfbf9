//! What incremental backups are made of: files of changed blocks, chains of them, and block maps.

use std::collections::BTreeSet;
use std::io::Cursor;

use pgark_postgres::{
    BlockMapFile, BlockMapIndex, BlockMapReader, BlockMapWriter, BlockSource, ChainFile, IncrementalHeader,
    Reconstruction, RelationFile,
};

const BLOCK: u64 = RelationFile::BLOCK_BYTES as u64;

/// The beginning of an `INCREMENTAL.*` file.
pub fn incremental(data: &[u8]) {
    check_incremental(data, data.len() as u64);
    // With the count, the padding and the length of file that go with the block numbers.
    let Some(numbers) = data.len().checked_sub(IncrementalHeader::FIXED_BYTES) else { return };
    let mut repaired = data[..data.len() - numbers % 4].to_vec();
    repaired[4..8].copy_from_slice(&(numbers as u32 / 4).to_le_bytes());
    let Ok(length) = IncrementalHeader::length_from(&repaired) else { return };
    repaired.resize(length, 0);
    check_incremental(&repaired, length as u64 + numbers as u64 / 4 * BLOCK);
}

fn check_incremental(data: &[u8], file_bytes: u64) {
    let Ok(header) = IncrementalHeader::parse(data, file_bytes) else { return };
    assert_eq!(header.to_bytes(), data[..header.header_bytes()]);
    assert_eq!(header.file_bytes(), file_bytes);
    assert!(header.blocks().is_sorted_by(|one, next| one < next));
    assert!(header.blocks().all(|block| block < header.truncation_blocks()));
    assert!(header.truncation_blocks() <= RelationFile::MAX_BLOCKS);
    let mut next = header.header_bytes() as u64;
    for (run, offset) in header.runs() {
        assert_eq!(offset, next);
        next += run.len() as u64 * BLOCK;
    }
    assert_eq!(next, file_bytes);
}

/// What the backups of a chain hold of a file, newest first: of each a kind, a length and a limit in blocks, and a bit
/// for each block; `FF` ends it.
pub fn reconstruction(data: &[u8]) {
    let members: Vec<Member> = data.split(|byte| *byte == 0xFF).map(Member::of).collect();
    let chain: Vec<ChainFile<'_>> = members.iter().map(Member::as_chain_file).collect();
    let found = Reconstruction::plan(&chain);
    assert_eq!(found.is_ok(), is_chain(&members));
    let Ok(plan) = found else { return };
    let mut planned = Blocks::new();
    for run in plan.runs() {
        assert!(!run.blocks.is_empty() && run.blocks.start as usize == planned.len());
        planned.extend((0..run.blocks.len() as u64).map(|number| match run.source {
            BlockSource::File { member, offset } => Some((member, offset + number * BLOCK)),
            BlockSource::Zeros => None,
        }));
    }
    assert_eq!(planned, written_over_one_another(&members));
    if let Some(member) = plan.copy_of() {
        assert!(matches!(members[member], Member::Whole { bytes } if bytes == plan.bytes()));
        assert!(planned.iter().enumerate().all(|(block, source)| *source == Some((member, block as u64 * BLOCK))));
    }
}

enum Member {
    Whole { bytes: u64 },
    Incremental { header: IncrementalHeader, limit_block: Option<u32> },
    Absent,
}

/// In which file of the chain each block is, and where; nothing for zeros.
type Blocks = Vec<Option<(usize, u64)>>;

impl Member {
    fn of(record: &[u8]) -> Self {
        let [kind, length, limit, bits @ ..] = record else { return Self::Absent };
        let has = |block: &u32| bits.get(*block as usize / 8).is_some_and(|byte| byte >> (block % 8) & 1 == 1);
        match kind {
            0 => Self::Absent,
            1 => Self::Whole { bytes: u64::from(*length) * BLOCK + u64::from(*limit) },
            kind => match IncrementalHeader::new(u32::from(*length), (0..u32::from(*length)).filter(has)) {
                Ok(header) => Self::Incremental { header, limit_block: (kind % 2 == 1).then_some(u32::from(*limit)) },
                Err(_) => Self::Absent,
            },
        }
    }

    fn as_chain_file(&self) -> ChainFile<'_> {
        match self {
            Self::Whole { bytes } => ChainFile::Whole { bytes: *bytes },
            Self::Incremental { header, limit_block } => ChainFile::Incremental { header, limit_block: *limit_block },
            Self::Absent => ChainFile::Absent,
        }
    }
}

/// Whether changes lead down to a whole file.
fn is_chain(members: &[Member]) -> bool {
    let changes = members.iter().take_while(|member| matches!(member, Member::Incremental { .. })).count();
    changes > 0 && matches!(members.get(changes), Some(Member::Whole { .. }))
}

/// What a restore does, which begins with the whole file.
fn written_over_one_another(members: &[Member]) -> Blocks {
    let mut blocks = Blocks::new();
    let whole = members.iter().position(|member| matches!(member, Member::Whole { .. })).unwrap_or(0);
    for (number, member) in members.iter().enumerate().take(whole + 1).rev() {
        match member {
            Member::Whole { bytes } => blocks = (0..bytes / BLOCK).map(|block| Some((number, block * BLOCK))).collect(),
            Member::Incremental { header, limit_block } => {
                let length = header.truncation_blocks() as usize;
                blocks.truncate(limit_block.map_or(length, |limit| length.min(limit as usize)));
                blocks.resize(length, None);
                for (run, offset) in header.runs() {
                    for (place, block) in run.enumerate() {
                        blocks[block as usize] = Some((number, offset + place as u64 * BLOCK));
                    }
                }
            }
            Member::Absent => {}
        }
    }
    blocks
}

/// A block map.
pub fn block_map(data: &[u8]) {
    check_block_map(data);
    check_block_map(&repair_block_map(data));
}

fn check_block_map(data: &[u8]) {
    let files: Option<Vec<BlockMapFile>> =
        BlockMapReader::new(data).ok().and_then(|reader| reader.collect::<Result<_, _>>().ok());
    let index = BlockMapIndex::read(Cursor::new(data));
    let Some(files) = files else {
        assert!(index.is_err());
        return;
    };
    let paths: BTreeSet<&[u8]> = files.iter().map(|file| file.path.as_slice()).collect();
    assert_eq!(index.is_ok(), paths.len() == files.len());
    let mut writer = BlockMapWriter::new(Vec::new()).unwrap_or_else(|error| panic!("{error}"));
    for file in &files {
        assert!(writer.write(&file.path, &file.hashes).is_ok());
        if let Ok(index) = &index {
            assert_eq!(index.find(Cursor::new(data), &file.path).ok().flatten().as_ref(), Some(&file.hashes));
        }
    }
    assert_eq!(writer.finish().ok().as_deref(), Some(data));
    for pair in files.windows(2) {
        let changes = pair[1].hashes.changes_since(&pair[0].hashes);
        assert!(changes.is_ok_and(|changes| changes.is_none_or(|kept| kept.block_count() < kept.truncation_blocks())));
    }
}

/// Makes the checksums of all records right, and the number of files at the end.
fn repair_block_map(data: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let number = |at: usize, bytes: usize| {
        data.get(at..at + bytes).map(|bytes| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let mut repaired = data[..data.len().min(HEADER)].to_vec();
    let mut add = |record: &[u8]| {
        repaired.extend_from_slice(record);
        repaired.extend_from_slice(&crc32c::crc32c(record).to_le_bytes());
    };
    let (mut at, mut files) = (HEADER, 0_u64);
    while let Some(path) = number(at, 2).filter(|path| *path > 0) {
        let Some(blocks) = number(at + 2 + path, 4) else { break };
        let Some(record) = data.get(at..at + 6 + path + 8 * blocks) else { break };
        add(record);
        at += record.len() + 4;
        files += 1;
    }
    add(&[&[0, 0], files.to_le_bytes().as_slice()].concat());
    repaired
}
