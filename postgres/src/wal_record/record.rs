//! A single record: its header, its checksum, and as much of its data as is needed.

use super::WalEndReason;
use super::event::bytes_needed;
use crate::Lsn;
use crate::little_endian::{u32_at, u64_at};

pub(super) const RECORD_HEADER_BYTES: usize = 24;
/// The checksum stands at the end of the header and does not cover itself.
const CHECKED_HEADER_BYTES: usize = 20;

const RESOURCE_MANAGER_XLOG: u8 = 0;
/// The other bits of the info byte belong to the record machinery itself.
const INFO_MASK: u8 = 0xF0;
const XLOG_SWITCH: u8 = 0x40;

#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    pub(super) start: Lsn,
    pub(super) length: u32,
    pub(super) xid: u32,
    pub(super) previous: Lsn,
    pub(super) info: u8,
    pub(super) resource_manager: u8,
    pub(super) checksum: u32,
}

/// A record that was read to its end.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) header: RecordHeader,
    /// The data after the header, or just its beginning where that is enough.
    pub(super) data: &'a [u8],
    /// The checksum that the bytes have.
    pub(super) checksum: u32,
}

/// A record that goes on on a later page.
#[derive(Debug)]
pub(super) struct PartialRecord {
    start: Lsn,
    length: u32,
    read: u32,
    header_bytes: Vec<u8>,
    header: Option<RecordHeader>,
    data: Vec<u8>,
    data_needed: usize,
    data_checksum: u32,
}

impl RecordHeader {
    fn parse(start: Lsn, bytes: &[u8]) -> Option<Self> {
        Some(Self {
            start,
            length: u32_at(bytes, 0)?,
            xid: u32_at(bytes, 4)?,
            previous: Lsn::new(u64_at(bytes, 8)?),
            info: *bytes.get(16)? & INFO_MASK,
            resource_manager: *bytes.get(17)?,
            checksum: u32_at(bytes, CHECKED_HEADER_BYTES)?,
        })
    }

    pub(super) const fn is_switch(&self) -> bool {
        self.resource_manager == RESOURCE_MANAGER_XLOG && self.info == XLOG_SWITCH
    }

    /// How many bytes of data follow the header.
    pub(super) const fn data_bytes(&self) -> usize {
        (self.length as usize).saturating_sub(RECORD_HEADER_BYTES)
    }

    /// Checks that the record follows the one before it; the first of a walk need only point back at all.
    fn check_previous(&self, previous: Option<Lsn>) -> Result<(), WalEndReason> {
        let fits = match previous {
            Some(previous) => self.previous == previous,
            None => self.previous < self.start,
        };
        if fits { Ok(()) } else { Err(WalEndReason::Previous { found: self.previous }) }
    }
}

impl<'a> Record<'a> {
    /// Takes a record whose bytes lie together.
    pub(super) fn whole(start: Lsn, bytes: &'a [u8], previous: Option<Lsn>) -> Result<Self, WalEndReason> {
        let too_short = WalEndReason::Length { found: bytes.len() as u32 };
        let header = RecordHeader::parse(start, bytes).ok_or(too_short)?;
        header.check_previous(previous)?;
        let (header_bytes, data) = bytes.split_at(RECORD_HEADER_BYTES);
        let checksum = whole_checksum(crc32c::crc32c(data), header_bytes);
        Ok(Self { header, data, checksum })
    }
}

impl PartialRecord {
    pub(super) fn new(start: Lsn, length: u32) -> Self {
        Self {
            start,
            length,
            read: 0,
            header_bytes: Vec::with_capacity(RECORD_HEADER_BYTES),
            header: None,
            data: Vec::new(),
            data_needed: 0,
            data_checksum: 0,
        }
    }

    pub(super) const fn start(&self) -> Lsn {
        self.start
    }

    pub(super) const fn missing(&self) -> u32 {
        self.length - self.read
    }

    /// Takes the next bytes, at most the missing ones, and tells whether the record is complete.
    pub(super) fn push(&mut self, bytes: &[u8], previous: Option<Lsn>) -> Result<bool, WalEndReason> {
        let mut bytes = bytes;
        self.read += bytes.len() as u32;
        if self.header.is_none() {
            let (head, rest) = bytes.split_at(bytes.len().min(RECORD_HEADER_BYTES - self.header_bytes.len()));
            self.header_bytes.extend_from_slice(head);
            bytes = rest;
            if let Some(header) = RecordHeader::parse(self.start, &self.header_bytes) {
                header.check_previous(previous)?;
                self.data_needed = bytes_needed(&header);
                self.header = Some(header);
            }
        }
        self.data_checksum = crc32c::crc32c_append(self.data_checksum, bytes);
        let keep = bytes.len().min(self.data_needed - self.data.len());
        self.data.extend_from_slice(bytes.get(..keep).unwrap_or_default());
        Ok(self.header.is_some() && self.missing() == 0)
    }

    /// Returns the record; nothing while its header is not complete.
    pub(super) fn record(&self) -> Option<Record<'_>> {
        let header = self.header?;
        let checksum = whole_checksum(self.data_checksum, &self.header_bytes);
        Some(Record { header, data: &self.data, checksum })
    }
}

fn whole_checksum(data_checksum: u32, header_bytes: &[u8]) -> u32 {
    let header_bytes = header_bytes.get(..CHECKED_HEADER_BYTES).unwrap_or(header_bytes);
    crc32c::crc32c_append(data_checksum, header_bytes)
}
