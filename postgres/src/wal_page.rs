//! Headers of WAL pages.
//!
//! ```text
//! every page               first page of a segment, in addition
//!  0 u16 magic              24 u64 system identifier
//!  2 u16 flags              32 u32 segment size
//!  4 u32 timeline           36 u32 page size
//!  8 u64 page address
//! 16 u32 bytes left of a record from the page before, then 4 bytes of padding
//! ```
//!
//! The magic changes with every major version; a magic that is not known is refused, since neither flags nor records
//! can then be trusted to mean what they mean here.

use thiserror::Error;

use crate::little_endian::{u16_at, u32_at, u64_at};
use crate::{Lsn, SegmentName, SegmentSize, SegmentSizeError, SystemIdentifier, TimelineId};

const MAGICS: [(u16, u32); 6] = [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)];

const SHORT_HEADER_BYTES: usize = 24;
const LONG_HEADER_BYTES: usize = 40;

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const BACKUP_BLOCKS_REMOVABLE: u16 = 0x0004;
/// Since 13.5 and 14.1: the record that began on the page before will never be completed.
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL_FLAGS: u16 = FIRST_IS_CONTRECORD | LONG_HEADER | BACKUP_BLOCKS_REMOVABLE | FIRST_IS_OVERWRITE_CONTRECORD;

/// What the first page of a WAL segment says about the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The page magic, which stands for the major version.
    pub magic: u16,
    /// The PostgreSQL major version that wrote the page.
    pub major: u32,
    /// The timeline of the page; lower than the one in the file name just after a switch.
    pub timeline: TimelineId,
    /// The position of the segment's first byte.
    pub page_address: Lsn,
    /// The cluster that wrote the segment.
    pub system_identifier: SystemIdentifier,
    /// The size of the segment.
    pub segment_size: SegmentSize,
    /// The size of a WAL page in bytes.
    pub block_size: u32,
}

/// The bytes are not the WAL page that they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WalPageError {
    /// Fewer bytes than a page header has.
    #[error("WAL page header is cut short: expected {expected} bytes, found {found}")]
    Short {
        /// The bytes needed.
        expected: usize,
        /// The bytes there are.
        found: usize,
    },
    /// The magic belongs to no known major version.
    #[error(
        "page magic {magic:04X} is of no known version: expected D106 (13), D10D (14), D110 (15), D113 (16), D116 (17) or D118 (18)"
    )]
    UnknownMagic {
        /// The magic found.
        magic: u16,
    },
    /// The page was written by another major version than its neighbours.
    #[error("page magic is {found:04X}, expected {expected:04X}")]
    OtherMagic {
        /// The magic of the walk so far.
        expected: u16,
        /// The magic found.
        found: u16,
    },
    /// The flags have a bit that is not known, or the header has the wrong length for its place.
    #[error("page flags are {flags:04X}: expected a {expected} header and no unknown bit")]
    Flags {
        /// The flags found.
        flags: u16,
        /// "long" for the first page of a segment, else "short".
        expected: &'static str,
    },
    /// There is no timeline zero.
    #[error("timeline of the page is 0")]
    NoTimeline,
    /// The segment size in the header is impossible.
    #[error("segment size of the page")]
    SegmentSize(#[source] SegmentSizeError),
    /// The page size in the header is impossible.
    #[error("page size is {found}: expected a power of two from 1024 to 65536")]
    BlockSize {
        /// The size found.
        found: u32,
    },
    /// The segment does not begin at a segment boundary.
    #[error("page address is {found}: expected a multiple of the segment size {segment_size}")]
    NotAtBoundary {
        /// The address found.
        found: Lsn,
        /// The segment size in the same header.
        segment_size: SegmentSize,
    },
    /// The page belongs elsewhere; typical for a recycled file.
    #[error("page address is {found}, expected {expected}")]
    PageAddress {
        /// The address the page should have.
        expected: Lsn,
        /// The address found.
        found: Lsn,
    },
    /// The page is of a later timeline than its file name, or of an earlier one than the page before.
    #[error("timeline of the page is {found}, expected {expected}")]
    Timeline {
        /// What was expected, in words.
        expected: String,
        /// The timeline found.
        found: TimelineId,
    },
    /// The segment belongs to another cluster than its neighbours.
    #[error("system identifier is {found}, expected {expected}")]
    OtherSystem {
        /// The identifier of the walk so far.
        expected: SystemIdentifier,
        /// The identifier found.
        found: SystemIdentifier,
    },
    /// The file is longer or shorter than the header says.
    #[error("file has {found} bytes, expected {expected} as its header says")]
    FileLength {
        /// The segment size in the header.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// No segment of this name exists with the segment size in the header.
    #[error("segment name {name} does not exist with segments of {segment_size}")]
    Name {
        /// The name of the file.
        name: SegmentName,
        /// The segment size in the header.
        segment_size: SegmentSize,
    },
}

impl WalPageError {
    /// Whether the page looks like one of a PostgreSQL that came after the newest known one. The magic has risen with
    /// every major version so far.
    pub fn is_of_newer_version(&self) -> bool {
        let newest = MAGICS[MAGICS.len() - 1].0;
        matches!(*self, Self::UnknownMagic { magic } if magic > newest && magic >> 8 == newest >> 8)
    }
}

impl SegmentHeader {
    /// How many bytes from the beginning of the segment [`SegmentHeader::parse`] needs.
    pub const BYTES: usize = LONG_HEADER_BYTES;

    /// Reads the header of a segment's first page.
    pub fn parse(page: &[u8]) -> Result<Self, WalPageError> {
        let header = PageHeader::parse(page)?;
        let (Some(system_identifier), Some(segment_size), Some(block_size)) =
            (u64_at(page, 24), u32_at(page, 32), u32_at(page, 36))
        else {
            return Err(WalPageError::Short { expected: LONG_HEADER_BYTES, found: page.len() });
        };
        if !header.is_long() {
            return Err(WalPageError::Flags { flags: header.flags, expected: "long" });
        }
        let segment_size = SegmentSize::new(segment_size.into()).map_err(WalPageError::SegmentSize)?;
        if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
            return Err(WalPageError::BlockSize { found: block_size });
        }
        if segment_size.offset_of(header.address) != 0 {
            return Err(WalPageError::NotAtBoundary { found: header.address, segment_size });
        }
        Ok(Self {
            magic: header.magic,
            major: header.major,
            timeline: header.timeline,
            page_address: header.address,
            system_identifier: SystemIdentifier::new(system_identifier),
            segment_size,
            block_size,
        })
    }

    /// Checks that the segment is the one its file name says, and as long as its header says.
    pub fn check_name(&self, name: &SegmentName, file_len: u64) -> Result<(), WalPageError> {
        let segment_size = self.segment_size;
        if file_len != segment_size.bytes() {
            return Err(WalPageError::FileLength { expected: segment_size.bytes(), found: file_len });
        }
        if !name.is_valid_for(segment_size) {
            return Err(WalPageError::Name { name: *name, segment_size });
        }
        let expected = name.start(segment_size);
        if self.page_address != expected {
            return Err(WalPageError::PageAddress { expected, found: self.page_address });
        }
        // The first segment of a new timeline begins with a copy of the old one, headers included.
        if self.timeline > name.timeline {
            let expected = format!("at most {} as its name says", name.timeline);
            return Err(WalPageError::Timeline { expected, found: self.timeline });
        }
        Ok(())
    }
}

/// What every page says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageHeader {
    pub(crate) magic: u16,
    pub(crate) major: u32,
    pub(crate) flags: u16,
    pub(crate) timeline: TimelineId,
    pub(crate) address: Lsn,
    /// How many bytes of a record that began earlier are still to come, on this page and later ones.
    pub(crate) remaining: u32,
}

impl PageHeader {
    pub(crate) fn parse(page: &[u8]) -> Result<Self, WalPageError> {
        let (Some(magic), Some(flags), Some(timeline), Some(address), Some(remaining)) =
            (u16_at(page, 0), u16_at(page, 2), u32_at(page, 4), u64_at(page, 8), u32_at(page, 16))
        else {
            return Err(WalPageError::Short { expected: SHORT_HEADER_BYTES, found: page.len() });
        };
        let Some(&(_, major)) = MAGICS.iter().find(|(known, _)| *known == magic) else {
            return Err(WalPageError::UnknownMagic { magic });
        };
        let expected = if flags & LONG_HEADER != 0 { "long" } else { "short" };
        if flags & !ALL_FLAGS != 0 {
            return Err(WalPageError::Flags { flags, expected });
        }
        let timeline = TimelineId::new(timeline).ok_or(WalPageError::NoTimeline)?;
        Ok(Self { magic, major, flags, timeline, address: Lsn::new(address), remaining })
    }

    pub(crate) const fn is_long(&self) -> bool {
        self.flags & LONG_HEADER != 0
    }

    /// How many bytes the header occupies; records begin after it.
    pub(crate) const fn bytes(&self) -> usize {
        if self.is_long() { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES }
    }

    /// Whether the page begins in the middle of a record.
    pub(crate) const fn continues_record(&self) -> bool {
        self.flags & FIRST_IS_CONTRECORD != 0
    }

    /// Whether the server gave up the record that the page before ended in.
    pub(crate) const fn abandons_record(&self) -> bool {
        self.flags & FIRST_IS_OVERWRITE_CONTRECORD != 0
    }
}

/// Returns the page magic of a major version.
pub(crate) fn magic_of(major: u32) -> Option<u16> {
    MAGICS.iter().find(|(_, known)| *known == major).map(|(magic, _)| *magic)
}

#[cfg(test)]
mod tests;
