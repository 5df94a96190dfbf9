#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const BLOCK: u64 = 8192;

fn header(truncation_blocks: u32, blocks: &[u32]) -> IncrementalHeader {
    IncrementalHeader::new(truncation_blocks, blocks.iter().copied()).unwrap()
}

fn incremental(header: &IncrementalHeader) -> ChainFile<'_> {
    ChainFile::Incremental { header, limit_block: None }
}

fn whole(blocks: u64) -> ChainFile<'static> {
    ChainFile::Whole { bytes: blocks * BLOCK }
}

fn from(blocks: Range<u32>, member: usize, offset: u64) -> BlockRun {
    BlockRun { blocks, source: BlockSource::File { member, offset } }
}

fn zeros(blocks: Range<u32>) -> BlockRun {
    BlockRun { blocks, source: BlockSource::Zeros }
}

#[test]
fn each_block_comes_from_the_newest_backup_that_has_it() {
    let (newest, middle) = (header(12, &[2, 3, 7]), header(10, &[0, 3, 4, 9]));
    let plan = Reconstruction::plan(&[incremental(&newest), incremental(&middle), whole(8)]).unwrap();
    let expected = [
        from(0..1, 1, BLOCK),
        from(1..2, 2, BLOCK),
        from(2..4, 0, BLOCK),
        from(4..5, 1, 3 * BLOCK),
        from(5..7, 2, 5 * BLOCK),
        from(7..8, 0, 3 * BLOCK),
        zeros(8..9),
        from(9..10, 1, 4 * BLOCK),
        zeros(10..12),
    ];
    assert_eq!(plan.runs(), expected);
    assert_eq!((plan.blocks(), plan.bytes(), plan.copy_of()), (12, 12 * BLOCK, None));
}

#[test]
fn e10_a_file_that_did_not_change_is_a_copy() {
    let same = header(8, &[]);
    let chain = [incremental(&same), incremental(&same), whole(8), ChainFile::Absent];
    let plan = Reconstruction::plan(&chain).unwrap();
    assert_eq!((plan.runs(), plan.copy_of()), (&[from(0..8, 2, 0)][..], Some(2)));
    // A longer file is no copy, even by a part of a block.
    for bytes in [7 * BLOCK, 9 * BLOCK, 8 * BLOCK + 1] {
        let plan = Reconstruction::plan(&[incremental(&same), ChainFile::Whole { bytes }]).unwrap();
        assert_eq!((plan.blocks(), plan.copy_of()), (8, None));
    }
}

#[test]
fn e10_a_file_of_no_blocks_is_empty() {
    let empty = header(0, &[]);
    for (older, copy_of) in [(0, Some(1)), (5, None)] {
        let plan = Reconstruction::plan(&[incremental(&empty), whole(older)]).unwrap();
        assert_eq!((plan.blocks(), plan.runs(), plan.copy_of()), (0, &[][..], copy_of));
    }
}

#[test]
fn e04_e05_a_chain_without_the_file_is_refused() {
    let newest = header(8, &[0, 1, 2, 3, 4, 5, 6, 7]);
    let newest = incremental(&newest);
    for (chain, error) in [
        (&[][..], ReconstructionError::NotIncremental),
        (&[whole(8)], ReconstructionError::NotIncremental),
        (&[ChainFile::Absent, whole(8)], ReconstructionError::NotIncremental),
        (&[newest], ReconstructionError::NoWholeFile),
        (&[newest, newest], ReconstructionError::NoWholeFile),
        (&[newest, newest, ChainFile::Absent, whole(8)], ReconstructionError::Absent { member: 2 }),
    ] {
        assert_eq!(Reconstruction::plan(chain), Err(error));
    }
}

#[test]
fn e01_blocks_that_were_cut_off_do_not_come_back() {
    // 450 blocks, cut to 5, extended to 149 of which some were never written.
    let (shrunk, extended) = (header(5, &[]), header(149, &[5, 6, 40]));
    let plan = Reconstruction::plan(&[incremental(&extended), incremental(&shrunk), whole(450)]).unwrap();
    let expected = [from(0..5, 2, 0), from(5..7, 0, BLOCK), zeros(7..40), from(40..41, 0, 3 * BLOCK), zeros(41..149)];
    assert_eq!(plan.runs(), expected);

    // All of that between two backups: the files alone do not tell, the limit block does.
    let newest = |limit_block| ChainFile::Incremental { header: &extended, limit_block };
    let plan = Reconstruction::plan(&[newest(Some(5)), whole(450)]).unwrap();
    assert_eq!(plan.runs()[0], from(0..5, 1, 0));
    assert_eq!(plan.runs()[1..], expected[1..]);
    let plan = Reconstruction::plan(&[newest(None), whole(450)]).unwrap();
    assert_eq!(plan.runs()[2], from(7..40, 1, 7 * BLOCK));
}

#[test]
fn e21_the_worst_pattern_of_a_segment_is_planned_in_bounded_memory() {
    let odd = IncrementalHeader::new(131_072, (0..131_072).filter(|block| block % 2 == 1)).unwrap();
    let plan = Reconstruction::plan(&[incremental(&odd), whole(131_072)]).unwrap();
    assert_eq!(plan.runs().len(), 131_072);
    assert!(size_of_val(plan.runs()) <= 4 * 1024 * 1024);
    let [first, second, ..] = plan.runs() else { panic!("no runs") };
    assert_eq!((first, second), (&from(0..1, 1, 0), &from(1..2, 0, odd.header_bytes() as u64)));
}

macro_rules! sample {
    ($name:literal) => {
        zstd::decode_all(&include_bytes!(concat!("../../../tests/samples/18/incremental/", $name, ".zst"))[..]).unwrap()
    };
}

/// Puts the file of real backups together, newest first.
fn combine_real(files: &[Vec<u8>]) -> (Vec<u8>, Reconstruction) {
    let (oldest, newer) = files.split_last().unwrap();
    let headers: Vec<_> = newer.iter().map(|file| IncrementalHeader::parse(file, file.len() as u64).unwrap()).collect();
    for (header, file) in headers.iter().zip(newer) {
        assert_eq!(header.to_bytes(), &file[..header.header_bytes()]);
    }
    let whole = ChainFile::Whole { bytes: oldest.len() as u64 };
    let chain: Vec<_> = headers.iter().map(incremental).chain([whole]).collect();
    let plan = Reconstruction::plan(&chain).unwrap();
    let mut result = Vec::new();
    for run in plan.runs() {
        let bytes = run.blocks.len() * BLOCK_BYTES;
        match run.source {
            BlockSource::Zeros => result.resize(result.len() + bytes, 0),
            BlockSource::File { member, offset } => result.extend(&files[member][offset as usize..][..bytes]),
        }
    }
    (result, plan)
}

#[test]
fn a_real_chain_gives_what_the_servers_own_tool_makes() {
    let (result, plan) = combine_real(&[sample!("2"), sample!("1"), sample!("0")]);
    assert_eq!((plan.runs(), plan.copy_of()), (&[from(0..20, 2, 0)][..], None));
    assert!(result == sample!("combined-2"));
}

#[test]
fn e01_a_real_chain_gives_no_deleted_rows_unlike_the_servers_own_tool() {
    let (result, plan) = combine_real(&[sample!("3"), sample!("2"), sample!("1"), sample!("0")]);
    assert_eq!(plan.runs().last(), Some(&zeros(113..116)));
    let theirs = sample!("combined-3");
    let written = 113 * BLOCK_BYTES;
    assert!(result[..written] == theirs[..written]);
    assert_eq!(theirs.len(), result.len());
    // What it took from before the table was cut.
    assert!(theirs[written..] == sample!("0")[written..result.len()]);
}

/// What is done to a relation between backups.
#[derive(Clone, Debug)]
enum Change {
    /// Writes a block, extending the file if it must, with an entry in the WAL.
    Write(u32),
    /// Cuts the file.
    Truncate(u32),
    /// Appends zeros, without any entry in the WAL.
    Extend(u32),
    /// Takes the next backup.
    Backup,
}

/// A relation file on a server, each block a number that is zero for a block of zeros, and what the WAL tells of it.
#[derive(Default)]
struct Server {
    blocks: Vec<u32>,
    writes: u32,
    modified: BTreeSet<u32>,
    limit_block: Option<u32>,
    /// Oldest first.
    backups: Vec<Backup>,
}

enum Backup {
    Whole(Vec<u32>),
    Incremental { header: IncrementalHeader, blocks: Vec<u32>, limit_block: Option<u32> },
}

impl Server {
    fn apply(&mut self, change: &Change) {
        match *change {
            Change::Write(block) => {
                self.writes += 1;
                let length = self.blocks.len().max(block as usize + 1);
                self.blocks.resize(length, 0);
                self.blocks[block as usize] = self.writes;
                self.modified.insert(block);
            }
            Change::Truncate(length) if (length as usize) < self.blocks.len() => {
                self.blocks.truncate(length as usize);
                self.modified.retain(|block| *block < length);
                self.limit_block = Some(self.limit_block.unwrap_or(length).min(length));
            }
            Change::Truncate(_) => {}
            Change::Extend(blocks) => self.blocks.resize(self.blocks.len() + blocks as usize, 0),
            Change::Backup => self.take_backup(),
        }
    }

    fn take_backup(&mut self) {
        let is_whole = self.backups.is_empty() || self.limit_block == Some(0) || self.blocks.is_empty();
        let backup = if is_whole {
            Backup::Whole(self.blocks.clone())
        } else {
            let header = IncrementalHeader::new(self.blocks.len() as u32, self.modified.iter().copied()).unwrap();
            let blocks = header.blocks().map(|block| self.blocks[block as usize]).collect();
            Backup::Incremental { header, blocks, limit_block: self.limit_block }
        };
        self.backups.push(backup);
        self.modified.clear();
        self.limit_block = None;
    }
}

impl Backup {
    fn as_chain_file(&self) -> ChainFile<'_> {
        match self {
            Self::Whole(blocks) => whole(blocks.len() as u64),
            Self::Incremental { header, limit_block, .. } => {
                ChainFile::Incremental { header, limit_block: *limit_block }
            }
        }
    }

    /// The blocks from an offset on.
    fn at(&self, offset: u64) -> &[u32] {
        let (header_bytes, blocks) = match self {
            Self::Whole(blocks) => (0, blocks),
            Self::Incremental { header, blocks, .. } => (header.header_bytes() as u64, blocks),
        };
        assert!((offset - header_bytes).is_multiple_of(BLOCK));
        &blocks[((offset - header_bytes) / BLOCK) as usize..]
    }
}

/// Follows the plan.
fn combine(chain: &[&Backup], plan: &Reconstruction) -> Vec<u32> {
    let mut result = Vec::new();
    for run in plan.runs() {
        assert_eq!(run.blocks.start as usize, result.len());
        assert!(!run.blocks.is_empty());
        match run.source {
            BlockSource::Zeros => result.resize(run.blocks.end as usize, 0),
            BlockSource::File { member, offset } => result.extend(&chain[member].at(offset)[..run.blocks.len()]),
        }
    }
    assert_eq!(result.len(), plan.blocks() as usize);
    result
}

/// What the algorithm of the server's own tool gives, block by block, with the bounds it lacks.
fn combine_by_blocks(chain: &[&Backup]) -> Vec<u32> {
    let Backup::Incremental { header, .. } = chain[0] else { panic!("newest is whole") };
    let block_of = |number: u32| {
        for backup in chain {
            match backup {
                Backup::Whole(blocks) => return blocks.get(number as usize).copied().unwrap_or(0),
                Backup::Incremental { header, blocks, limit_block } => {
                    if let Some(index) = header.blocks().position(|block| block == number) {
                        return blocks[index];
                    }
                    if number >= header.truncation_blocks() || limit_block.is_some_and(|limit| number >= limit) {
                        return 0;
                    }
                }
            }
        }
        panic!("no whole file")
    };
    (0..header.truncation_blocks()).map(block_of).collect()
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0_u32..40).prop_map(Change::Write),
        2 => (0_u32..40).prop_map(Change::Truncate),
        2 => (1_u32..12).prop_map(Change::Extend),
        2 => Just(Change::Backup),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn e01_a_chain_gives_what_the_server_had(changes in prop::collection::vec(change(), 1..80)) {
        let mut server = Server::default();
        for change in changes {
            server.apply(&change);
            let chain: Vec<&Backup> = server.backups.iter().rev().collect();
            if !matches!(change, Change::Backup) || matches!(chain[0], Backup::Whole(_)) {
                continue;
            }
            let files: Vec<ChainFile<'_>> = chain.iter().map(|backup| backup.as_chain_file()).collect();
            let plan = Reconstruction::plan(&files).unwrap();
            let result = combine(&chain, &plan);
            prop_assert_eq!(&result, &combine_by_blocks(&chain));
            prop_assert_eq!(&result, &server.blocks);
            if let Some(member) = plan.copy_of() {
                prop_assert!(matches!(chain[member], Backup::Whole(blocks) if *blocks == result));
            }
        }
    }

    #[test]
    fn any_chain_is_planned_without_holes_or_refused(
        chain in prop::collection::vec((0_u32..300, prop::collection::btree_set(0_u32..300, 0..60), prop::option::of(0_u32..300), 0_u32..12), 0..8),
    ) {
        let headers: Vec<_> = chain
            .iter()
            .map(|(length, blocks, ..)| header(*length, &blocks.iter().copied().filter(|block| block < length).collect::<Vec<_>>()))
            .collect();
        let files: Vec<_> = chain
            .iter()
            .zip(&headers)
            .map(|((length, _, limit_block, kind), header)| match kind {
                0 => ChainFile::Absent,
                1 => ChainFile::Whole { bytes: u64::from(*length) * 5000 },
                _ => ChainFile::Incremental { header, limit_block: *limit_block },
            })
            .collect();
        if let Ok(plan) = Reconstruction::plan(&files) {
            let mut next = 0;
            for run in plan.runs() {
                prop_assert_eq!(run.blocks.start, next);
                prop_assert!(!run.blocks.is_empty());
                next = run.blocks.end;
            }
            prop_assert_eq!(next, headers[0].truncation_blocks());
        }
    }
}
