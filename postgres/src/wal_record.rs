//! A walk over the records of the write-ahead log: when transactions ended, which restore points there are, and where
//! valid WAL ends.
//!
//! ```text
//! page      page header, then records, each beginning at a multiple of 8
//! record    0 u32 length   4 u32 xid   8 u64 previous record   16 u8 info   17 u8 resource manager   20 u32 CRC-32C
//!           24 … the record's data
//! ```
//!
//! A record that does not fit on its page goes on after the header of the next one, which repeats how many bytes are
//! missing; so records cross pages and segments. The checksum covers the data first and then the first 20 bytes of the
//! header. Old bytes may follow the last record (segments are recycled), so the first thing that does not fit is the
//! end of the log and no error; whether the log may end there is for the caller to judge.
//!
//! The walk holds one segment (the caller's) and, of a record that crosses pages, only what is needed from it.

mod event;
mod record;

use thiserror::Error;

pub use event::WalEvent;

use crate::little_endian::u32_at;
use crate::wal_page::{PageHeader, magic_of};
use crate::{Lsn, SegmentHeader, SegmentSize, SystemIdentifier, TimelineId, WalPageError};
use record::{PartialRecord, RECORD_HEADER_BYTES, Record, RecordHeader};

/// The server allocates a record in one piece, of less than 1 GiB.
const MAX_RECORD_BYTES: u32 = 0x3FFF_FFFF;

/// Walks the records of consecutive segments.
#[derive(Debug)]
pub struct RecordWalker {
    size: SegmentSize,
    major: u32,
    magic: u16,
    /// Records that begin before it are checked but not reported.
    start: Lsn,
    next_segment: Lsn,
    place: Place,
    /// The beginning of the last valid record; the next one must point back to it.
    previous: Option<Lsn>,
    /// Where the last valid record ended.
    valid_until: Lsn,
    timeline: Option<TimelineId>,
    system_identifier: Option<SystemIdentifier>,
}

/// Why the log ends where it does.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WalEndReason {
    /// A page is not the one that belongs there.
    #[error("page header does not fit")]
    Page(#[source] WalPageError),
    /// A length is no record's length; zero is usual where nothing was written yet.
    #[error("record length is {found}")]
    Length {
        /// The length found.
        found: u32,
    },
    /// The record does not follow the one before; usual where a recycled segment has old bytes.
    #[error("record points back to {found}, not to the record before it")]
    Previous {
        /// The position found.
        found: Lsn,
    },
    /// The checksum is wrong.
    #[error("record checksum is {found:08x}, expected {expected:08x}")]
    Checksum {
        /// The checksum of the bytes.
        expected: u32,
        /// The checksum in the record.
        found: u32,
    },
    /// The next page does not go on with the record, or goes on with a record where none is open.
    #[error("next page says that {found} bytes are missing, expected {expected}")]
    Continuation {
        /// How many bytes of the record are missing.
        expected: u32,
        /// How many the page says.
        found: u32,
    },
    /// The last piece that was fed is shorter than a segment.
    #[error("segment is cut short")]
    NoMoreBytes,
    /// The record is valid, but not understood.
    #[error("record cannot be read")]
    Content,
}

/// The walk cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WalRecordError {
    /// The record formats of this major version are not known.
    #[error("WAL of PostgreSQL {major} is not known: expected 13 to 18")]
    UnknownMajor {
        /// The version asked for.
        major: u32,
    },
    /// A segment was left out or fed twice.
    #[error("segment at {found} was fed, expected the one at {expected}")]
    WrongSegment {
        /// The beginning of the segment that must come next.
        expected: Lsn,
        /// The beginning of the segment that came.
        found: Lsn,
    },
    /// More bytes than a segment has.
    #[error("segment at {segment} has {found} bytes, expected {expected}")]
    SegmentLength {
        /// The beginning of the segment.
        segment: Lsn,
        /// The segment size.
        expected: u64,
        /// The bytes fed.
        found: u64,
    },
    /// Segments follow, although the log has already ended: what lies between is damaged or missing.
    #[error("WAL ends at {end}, but more segments follow")]
    AfterEnd {
        /// Where valid WAL ended.
        end: Lsn,
        /// Why it ended there.
        #[source]
        reason: WalEndReason,
    },
    /// A record with a valid checksum has a content that cannot be.
    #[error("record at {lsn} has {problem}")]
    Content {
        /// The beginning of the record.
        lsn: Lsn,
        /// What is wrong with it.
        problem: &'static str,
    },
}

#[derive(Debug)]
enum Place {
    /// No record has been found yet.
    Seeking,
    /// At the end of a record; the next one begins there, or after the page header if that is a page's beginning.
    Between(Lsn),
    /// In a record that goes on on the next page.
    Inside(Box<PartialRecord>),
    /// After a switch: the rest of the segment is empty.
    AwaitingSegment,
    Ended(Lsn, WalEndReason),
}

impl RecordWalker {
    /// Prepares a walk over the log of a cluster from `start` on.
    ///
    /// The start may be any position: what begins there or later is reported. The first segment to feed is the one that
    /// holds it, and is walked from its beginning, since only the records before tell whether the rest of a segment is
    /// empty.
    pub fn new(size: SegmentSize, major: u32, start: Lsn) -> Result<Self, WalRecordError> {
        let magic = magic_of(major).ok_or(WalRecordError::UnknownMajor { major })?;
        Ok(Self {
            size,
            major,
            magic,
            start,
            next_segment: size.start_of(start),
            place: Place::Seeking,
            previous: None,
            valid_until: start,
            timeline: None,
            system_identifier: None,
        })
    }

    /// Walks one segment and returns what it found, in the order of the log.
    ///
    /// Segments come whole and in order. Only the last one may be shorter, such as one that is still being received.
    /// After an error the walk is over.
    pub fn feed(&mut self, segment_start: Lsn, bytes: &[u8]) -> Result<Vec<WalEvent>, WalRecordError> {
        if let Place::Ended(end, reason) = &self.place {
            return Err(WalRecordError::AfterEnd { end: *end, reason: reason.clone() });
        }
        if segment_start != self.next_segment {
            return Err(WalRecordError::WrongSegment { expected: self.next_segment, found: segment_start });
        }
        let (expected, found) = (self.size.bytes(), bytes.len() as u64);
        if found > expected {
            return Err(WalRecordError::SegmentLength { segment: segment_start, expected, found });
        }
        self.next_segment = segment_start.saturating_add(expected);
        if matches!(self.place, Place::AwaitingSegment) {
            self.place = Place::Between(segment_start);
        }
        let mut events = Vec::new();
        match self.check_segment(segment_start, bytes) {
            Ok(header) => self.walk_pages(segment_start, bytes, header.block_size as usize, &mut events)?,
            Err(error) => self.end(WalEndReason::Page(error)),
        }
        if found < expected && !matches!(self.place, Place::Ended(..) | Place::AwaitingSegment) {
            self.end(WalEndReason::NoMoreBytes);
        }
        Ok(events)
    }

    /// Returns where valid WAL ends, once the walk has found something else there.
    ///
    /// That is normal in the last segment of a timeline, and damage in any other.
    pub const fn end_of_valid(&self) -> Option<Lsn> {
        match &self.place {
            Place::Ended(end, _) => Some(*end),
            _ => None,
        }
    }

    /// Returns why valid WAL ends there.
    pub const fn end_reason(&self) -> Option<&WalEndReason> {
        match &self.place {
            Place::Ended(_, reason) => Some(reason),
            _ => None,
        }
    }

    /// Returns where a record begins whose end has not been fed yet.
    pub fn pending_record(&self) -> Option<Lsn> {
        match &self.place {
            Place::Inside(partial) => Some(partial.start()),
            _ => None,
        }
    }

    /// Returns the end of the last complete record, or the start of the walk if there was none; after a switch record,
    /// the end of the segment.
    pub const fn valid_until(&self) -> Lsn {
        self.valid_until
    }

    /// Checks the segment's own header, which also says how large its pages are.
    fn check_segment(&mut self, segment_start: Lsn, bytes: &[u8]) -> Result<SegmentHeader, WalPageError> {
        let header = SegmentHeader::parse(bytes)?;
        if header.segment_size != self.size {
            let (expected, found) = (self.size.bytes(), header.segment_size.bytes());
            return Err(WalPageError::FileLength { expected, found });
        }
        if header.page_address != segment_start {
            return Err(WalPageError::PageAddress { expected: segment_start, found: header.page_address });
        }
        match self.system_identifier {
            Some(expected) if expected != header.system_identifier => {
                return Err(WalPageError::OtherSystem { expected, found: header.system_identifier });
            }
            _ => self.system_identifier = Some(header.system_identifier),
        }
        Ok(header)
    }

    fn walk_pages(
        &mut self,
        segment_start: Lsn,
        bytes: &[u8],
        page_bytes: usize,
        events: &mut Vec<WalEvent>,
    ) -> Result<(), WalRecordError> {
        for (index, page) in bytes.chunks_exact(page_bytes).enumerate() {
            let address = segment_start.saturating_add((index * page_bytes) as u64);
            if matches!(self.place, Place::AwaitingSegment | Place::Ended(..)) {
                break;
            }
            let mut page = match self.check_page(page, address, index == 0) {
                Ok(header) => Page { bytes: page, address, offset: header.bytes(), header },
                Err(error) => {
                    self.end(WalEndReason::Page(error));
                    break;
                }
            };
            let walked = self
                .enter_page(&mut page, events)
                .and_then(|records_follow| if records_follow { self.walk_records(&mut page, events) } else { Ok(()) });
            match walked {
                Ok(()) => {}
                Err(Stop::End(reason)) => self.end(reason),
                Err(Stop::Content { lsn, problem }) => {
                    self.place = Place::Ended(lsn, WalEndReason::Content);
                    return Err(WalRecordError::Content { lsn, problem });
                }
            }
        }
        Ok(())
    }

    fn check_page(&mut self, page: &[u8], address: Lsn, first: bool) -> Result<PageHeader, WalPageError> {
        let header = PageHeader::parse(page)?;
        if header.magic != self.magic {
            return Err(WalPageError::OtherMagic { expected: self.magic, found: header.magic });
        }
        if header.is_long() != first {
            let expected = if first { "long" } else { "short" };
            return Err(WalPageError::Flags { flags: header.flags, expected });
        }
        if header.address != address {
            return Err(WalPageError::PageAddress { expected: address, found: header.address });
        }
        match self.timeline {
            Some(before) if header.timeline < before => {
                let expected = format!("at least {before} as on the page before");
                return Err(WalPageError::Timeline { expected, found: header.timeline });
            }
            _ => self.timeline = Some(header.timeline),
        }
        Ok(header)
    }

    /// Moves to the first record that begins on the page, and tells whether there is one.
    fn enter_page(&mut self, page: &mut Page<'_>, events: &mut Vec<WalEvent>) -> Result<bool, Stop> {
        let header = page.header;
        match &mut self.place {
            Place::Seeking => {
                if header.continues_record() {
                    let rest = align(header.remaining as usize);
                    if rest >= page.left().len() {
                        return Ok(false);
                    }
                    page.offset += rest;
                }
            }
            Place::Between(position) => {
                let offset = position.bytes_since(page.address).unwrap_or_default() as usize;
                if offset > 0 {
                    page.offset = offset;
                } else if header.continues_record() {
                    return Err(Stop::End(WalEndReason::Continuation { expected: 0, found: header.remaining }));
                }
            }
            // The server crashed in the middle of the record and wrote others in its place.
            Place::Inside(_) if header.abandons_record() => {}
            Place::Inside(partial) => {
                let expected = partial.missing();
                let found = if header.continues_record() { header.remaining } else { 0 };
                if found != expected {
                    return Err(Stop::End(WalEndReason::Continuation { expected, found }));
                }
                let take = (expected as usize).min(page.left().len());
                let (rest, _) = page.left().split_at(take);
                if !partial.push(rest, self.previous)? {
                    return Ok(false);
                }
                page.offset = align(page.offset + take);
                // The place is set anew by what follows the record.
                let place = std::mem::replace(&mut self.place, Place::AwaitingSegment);
                let Place::Inside(partial) = place else { return Ok(false) };
                let Some(record) = partial.record() else { return Ok(false) };
                return self.finish_record(&record, page, events);
            }
            Place::AwaitingSegment | Place::Ended(..) => return Ok(false),
        }
        Ok(true)
    }

    /// Walks the records that begin on the page.
    fn walk_records(&mut self, page: &mut Page<'_>, events: &mut Vec<WalEvent>) -> Result<(), Stop> {
        loop {
            let start = page.position();
            self.place = Place::Between(start);
            let left = page.left();
            // Records begin at multiples of 8, so that a length is never split.
            let Some(length) = u32_at(left, 0) else { return Ok(()) };
            if (length as usize) < RECORD_HEADER_BYTES || length > MAX_RECORD_BYTES {
                return Err(Stop::End(WalEndReason::Length { found: length }));
            }
            let Some(bytes) = left.get(..length as usize) else {
                let mut partial = Box::new(PartialRecord::new(start, length));
                partial.push(left, self.previous)?;
                self.place = Place::Inside(partial);
                return Ok(());
            };
            let record = Record::whole(start, bytes, self.previous)?;
            page.offset += align(length as usize);
            if !self.finish_record(&record, page, events)? {
                return Ok(());
            }
        }
    }

    /// Checks a complete record and reports it; tells whether another one may follow on the page.
    fn finish_record(
        &mut self,
        record: &Record<'_>,
        page: &Page<'_>,
        events: &mut Vec<WalEvent>,
    ) -> Result<bool, Stop> {
        let RecordHeader { start, checksum: found, .. } = record.header;
        // Until the record has proved valid, the log ends before it.
        self.place = Place::Between(start);
        if found != record.checksum {
            return Err(Stop::End(WalEndReason::Checksum { expected: record.checksum, found }));
        }
        let is_switch = record.header.is_switch();
        let end = if is_switch { self.next_segment } else { page.position() };
        self.previous = Some(start);
        self.valid_until = end;
        if start >= self.start {
            match event::parse(record, end, self.major) {
                Ok(event) => events.extend(event),
                Err(problem) => return Err(Stop::Content { lsn: start, problem }),
            }
        }
        self.place = if is_switch { Place::AwaitingSegment } else { Place::Between(end) };
        Ok(!is_switch)
    }

    /// Ends the walk at the record that was being looked at.
    fn end(&mut self, reason: WalEndReason) {
        let end = match &self.place {
            Place::Between(position) => *position,
            Place::Inside(partial) => partial.start(),
            Place::Seeking | Place::AwaitingSegment => self.valid_until,
            Place::Ended(..) => return,
        };
        self.place = Place::Ended(end, reason);
    }
}

/// A page, and how far into it the walk has come.
struct Page<'a> {
    bytes: &'a [u8],
    address: Lsn,
    header: PageHeader,
    offset: usize,
}

impl<'a> Page<'a> {
    fn left(&self) -> &'a [u8] {
        self.bytes.get(self.offset..).unwrap_or_default()
    }

    fn position(&self) -> Lsn {
        self.address.saturating_add(self.offset as u64)
    }
}

/// Why a page is not walked to its end.
enum Stop {
    End(WalEndReason),
    Content { lsn: Lsn, problem: &'static str },
}

impl From<WalEndReason> for Stop {
    fn from(reason: WalEndReason) -> Self {
        Self::End(reason)
    }
}

/// Rounds up to the multiple of 8 at which the next record begins.
const fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

#[cfg(test)]
mod tests;
