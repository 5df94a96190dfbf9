//! Data pages of relations, and their checksums.
//!
//! ```text
//!  0 u32 high half of the LSN   8 u16 checksum   12 u16 end of the line pointers
//!  4 u32 low half               10 u16 flags     14 u16 begin of the rows; 0 in a page that was never used
//! ```
//!
//! The checksum is an FNV-1a of 32 lanes over the page with zeros in the place of the checksum, folded to 16 bits with the
//! page's number, so that a page that was written to another place is seen too.

use crate::{Lsn, RelationFile};

/// The size of a page in servers as they are packaged.
pub const PAGE_SIZE: usize = 8192;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where each lane begins; random numbers of PostgreSQL's.
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// The checksum that a page should have as the `block`th of its relation's fork.
#[must_use]
pub fn page_checksum(page: &[u8; PAGE_SIZE], block: u32) -> u16 {
    let mut sums = OFFSETS;
    let (rows, _) = page.as_chunks::<{ LANES * 4 }>();
    for (number, row) in rows.iter().enumerate() {
        let (words, _) = row.as_chunks::<4>();
        let mut row = [0; LANES];
        row.iter_mut().zip(words).for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
        if number == 0 {
            // The checksum's own place, the lower half of the third word.
            row[2] &= 0xFFFF_0000;
        }
        mix(&mut sums, &row);
    }
    mix(&mut sums, &[0; LANES]);
    mix(&mut sums, &[0; LANES]);
    let folded = sums.iter().fold(block, |all, sum| all ^ sum);
    // At most 65535: zero means "no checksum".
    (folded % 65_535 + 1) as u16
}

fn mix(sums: &mut [u32; LANES], row: &[u32; LANES]) {
    for (sum, word) in sums.iter_mut().zip(row) {
        let mixed = *sum ^ word;
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// What the pages of a backup must be like.
#[derive(Clone, Copy, Debug)]
pub struct PageRules {
    /// Where the backup started: a newer page may have been copied while it was written, and comes back from WAL.
    pub start_lsn: Lsn,
    /// How many blocks one file of a relation has at most.
    pub blocks_per_file: u32,
}

impl PageRules {
    /// A checker for a file of a backup; nothing for one that holds no pages.
    #[must_use]
    pub fn checker(self, path: &[u8]) -> Option<PageChecker> {
        let first = RelationFile::parse(path)?.segment.checked_mul(self.blocks_per_file)?;
        Some(PageChecker { start_lsn: self.start_lsn, block: first, partial: Vec::new(), wrong: WrongPages::default() })
    }
}

/// Pages whose checksum is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrongPages {
    /// How many.
    pub count: u64,
    /// The block number of the first one in its relation's fork.
    pub first: Option<u32>,
}

/// Checks the pages of one file as its bytes pass.
#[derive(Debug)]
pub struct PageChecker {
    start_lsn: Lsn,
    block: u32,
    /// The beginning of a page whose end has not passed yet.
    partial: Vec<u8>,
    wrong: WrongPages,
}

impl PageChecker {
    /// Takes the next bytes, whatever number.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        if !self.partial.is_empty() {
            let missing = (PAGE_SIZE - self.partial.len()).min(bytes.len());
            self.partial.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            let partial = std::mem::take(&mut self.partial);
            match partial.as_chunks::<PAGE_SIZE>().0.first() {
                Some(page) => self.page(page),
                None => {
                    self.partial = partial;
                    return;
                }
            }
        }
        let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
        pages.iter().for_each(|page| self.page(page));
        self.partial.extend_from_slice(rest);
    }

    /// What was found. Bytes behind the last whole page are none.
    #[must_use]
    pub fn finish(self) -> WrongPages {
        self.wrong
    }

    fn page(&mut self, page: &[u8; PAGE_SIZE]) {
        let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 2)) << 16;
        let is_new = half(14) == 0;
        let lsn = Lsn::new(word(0) << 32 | word(4));
        if !is_new && lsn < self.start_lsn && half(8) != page_checksum(page, self.block) {
            self.wrong.count += 1;
            self.wrong.first.get_or_insert(self.block);
        }
        self.block = self.block.wrapping_add(1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules() -> PageRules {
        PageRules { start_lsn: Lsn::new(1 << 40), blocks_per_file: 131_072 }
    }

    /// A used page with its checksum.
    fn page(block: u32, fill: u8) -> [u8; PAGE_SIZE] {
        let mut page = [fill; PAGE_SIZE];
        page[..8].fill(0);
        page[14] = 1;
        let checksum = page_checksum(&page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    #[test]
    fn only_old_used_pages_with_a_wrong_checksum_are_wrong() {
        let check = |bytes: &[u8]| {
            let mut checker = rules().checker(b"base/1/2.1").unwrap();
            checker.feed(bytes);
            checker.finish()
        };
        let first = 131_072;
        assert_eq!(check(&page(first, 3)).count, 0);
        assert_eq!(check(&[0; PAGE_SIZE]).count, 0);
        // The right page at another place, a flipped bit, and one that is newer than the backup.
        assert_eq!(check(&page(0, 3)), WrongPages { count: 1, first: Some(first) });
        let mut flipped = page(first, 3);
        flipped[5000] ^= 1;
        assert_eq!(check(&[page(first, 1), flipped].concat()), WrongPages { count: 1, first: Some(first + 1) });
        flipped[1] = 1;
        flipped[0..4].copy_from_slice(&0x0100_0000_u32.to_le_bytes());
        assert_eq!(check(&flipped).count, 0);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_arrive(cuts in proptest::collection::vec(1_usize..20_000, 1..12), wrong in 0_usize..4) {
            let mut bytes: Vec<u8> = (0..4).flat_map(|block| page(block, 7)).collect();
            bytes[wrong * PAGE_SIZE + 100] ^= 4;
            let mut checker = rules().checker(b"global/1260").unwrap();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                checker.feed(now);
                rest = later;
            }
            prop_assert_eq!(checker.finish(), WrongPages { count: 1, first: Some(wrong as u32) });
        }
    }
}
