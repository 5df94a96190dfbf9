//! Which bytes follow one another in a file that is put together while the whole file below it passes by.

use std::ops::Range;

use pgark_postgres::{BlockRun, BlockSource, Reconstruction, RelationFile};

/// What comes next in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'b> {
    /// Bytes of the whole file that pass by.
    Passing(&'b [u8]),
    /// A range of what a newer backup has of the file.
    Newer { member: usize, range: Range<u64> },
    /// So many bytes that are zero.
    Zeros(u64),
}

/// Follows the plan of a file.
#[derive(Debug)]
pub(super) struct Merging {
    runs: Vec<BlockRun>,
    /// The backup that has the whole file.
    base: usize,
    /// The run that is not handed out to its end.
    next: usize,
    /// How much of the whole file has passed by.
    position: u64,
}

impl Merging {
    pub(super) fn new(plan: &Reconstruction, base: usize) -> Self {
        Self { runs: plan.runs().to_vec(), base, next: 0, position: 0 }
    }

    /// Hands out what can be told once the next bytes of the whole file are there; without any, what follows its end.
    pub(super) fn pass<E>(&mut self, bytes: &[u8], mut each: impl FnMut(Piece<'_>) -> Result<(), E>) -> Result<(), E> {
        let begin = self.position;
        let end = begin.saturating_add(bytes.len() as u64);
        self.position = end;
        while let Some(BlockRun { blocks, source }) = self.runs.get(self.next) {
            let length = blocks.len() as u64 * RelationFile::BLOCK_BYTES as u64;
            match *source {
                BlockSource::Zeros => each(Piece::Zeros(length))?,
                BlockSource::File { member, offset } if member != self.base => {
                    each(Piece::Newer { member, range: offset..offset.saturating_add(length) })?;
                }
                BlockSource::File { offset, .. } => {
                    let last = offset.saturating_add(length);
                    let passing =
                        bytes.get(within(bytes, offset.max(begin) - begin)..within(bytes, last.max(begin) - begin));
                    if let Some(passing) = passing.filter(|passing| !passing.is_empty()) {
                        each(Piece::Passing(passing))?;
                    }
                    if last > end {
                        return Ok(());
                    }
                }
            }
            self.next += 1;
        }
        Ok(())
    }
}

fn within(bytes: &[u8], position: u64) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use pgark_postgres::{ChainFile, IncrementalHeader};

    use super::*;

    const BLOCK: usize = RelationFile::BLOCK_BYTES;

    fn filled(blocks: &[u8]) -> Vec<u8> {
        blocks.iter().flat_map(|byte| [*byte; BLOCK]).collect()
    }

    /// Puts a file together of one below, passing by in pieces of several sizes, and changes; a byte for each block.
    fn merge(below: &[u8], whole: u32, changes: &[(u32, u8)], limit_block: Option<u32>) -> Vec<u8> {
        let header = IncrementalHeader::new(whole, changes.iter().map(|(block, _)| *block)).unwrap();
        let bytes: Vec<u8> = changes.iter().map(|(_, byte)| *byte).collect();
        let (below, newer) = (filled(below), [header.to_bytes(), filled(&bytes)].concat());
        let chain =
            [ChainFile::Incremental { header: &header, limit_block }, ChainFile::Whole { bytes: below.len() as u64 }];
        let plan = Reconstruction::plan(&chain).unwrap();
        let results: Vec<Vec<u8>> = [1, 7, BLOCK, 100_000]
            .iter()
            .map(|&size| {
                let mut merging = Merging::new(&plan, 1);
                let mut result = Vec::new();
                let mut put = |piece: Piece<'_>| -> Result<(), ()> {
                    match piece {
                        Piece::Passing(bytes) => result.extend_from_slice(bytes),
                        Piece::Zeros(bytes) => result.resize(result.len() + usize::try_from(bytes).unwrap(), 0),
                        Piece::Newer { member, range } => {
                            assert_eq!(member, 0);
                            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                            result.extend_from_slice(&newer[range]);
                        }
                    }
                    Ok(())
                };
                below.chunks(size).for_each(|bytes| merging.pass(bytes, &mut put).unwrap());
                merging.pass(&[], &mut put).unwrap();
                result
            })
            .collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
        let result: Vec<u8> = results[0].iter().copied().step_by(BLOCK).collect();
        assert_eq!(filled(&result), results[0]);
        result
    }

    #[test]
    fn e02_e10_blocks_come_to_their_places() {
        assert_eq!(merge(&[1, 2, 3], 3, &[], None), [1, 2, 3]);
        assert_eq!(merge(&[1, 2, 3], 3, &[(1, 9)], None), [1, 9, 3]);
        assert_eq!(merge(&[1, 2, 3], 2, &[], None), [1, 2]);
        assert_eq!(merge(&[1, 2, 3], 6, &[(4, 8), (5, 9)], None), [1, 2, 3, 0, 8, 9]);
        assert_eq!(merge(&[], 2, &[(1, 7)], None), [0, 7]);
        assert_eq!(merge(&[1, 2], 0, &[], None), [0u8; 0]);
    }

    #[test]
    fn e01_what_was_cut_away_does_not_come_back() {
        assert_eq!(merge(&[1, 2, 3, 4], 4, &[(3, 9)], Some(1)), [1, 0, 0, 9]);
        assert_eq!(merge(&[1, 2, 3, 4], 4, &[], Some(0)), [0, 0, 0, 0]);
        assert_eq!(merge(&[1, 2, 3, 4], 5, &[(0, 8)], Some(7)), [8, 2, 3, 4, 0]);
    }
}
