//! WAL segments: their size, their names, and the other file names that lie next to them.
//!
//! A name is 24 upper-case hexadecimal digits: timeline, "log" (a 4 GiB unit) and the segment within the log. How many
//! segments a log has depends on the segment size, which `initdb` chose and which therefore always comes as a value
//! read from the server or from a file. `pg_walfile_name()` changed its answer at segment boundaries in version 17;
//! the arithmetic here is our own: a position on a boundary belongs to the segment that begins there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::text_serde::serde_as_text;
use crate::timeline::hex_u32;
use crate::{Lsn, TimelineId};

const MEBIBYTE: u64 = 1024 * 1024;

/// The size of a cluster's WAL segments in bytes: a power of two from 1 MiB to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u32);

/// The name of a WAL segment.
///
/// The order is PostgreSQL's own of file names: timeline first. Across timelines it says nothing about time.
/// A name from outside may have a segment part that does not exist for the cluster's segment size: ask
/// [`SegmentName::is_valid_for`]. Arithmetic on such a name, or at the end of the number space, saturates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline in the name; pages inside may carry a lower one just after a switch.
    pub timeline: TimelineId,
    /// The 4 GiB unit, the high half of the position.
    pub log: u32,
    /// The segment within the 4 GiB unit.
    pub segment: u32,
}

/// A name that PostgreSQL may offer to `archive_command` or ask of `restore_command`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A complete segment.
    Segment(SegmentName),
    /// The last segment of an old timeline, cut short by a promotion.
    Partial(SegmentName),
    /// The note a finished base backup leaves in the archive.
    BackupHistory {
        /// The segment in which the backup started.
        segment: SegmentName,
        /// The start position within that segment.
        offset: u32,
    },
    /// The history file of a timeline.
    History(TimelineId),
}

/// The number is not a WAL segment size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SegmentSizeError {
    /// The number is out of range or not a power of two.
    #[error("{bytes} is not a WAL segment size: expected a power of two from 1 MiB to 1 GiB")]
    NotASize {
        /// The number found.
        bytes: u64,
    },
    /// The text is not a setting with a known unit.
    #[error("{text:?} is not a value of wal_segment_size: expected a number with a unit, like 16MB")]
    NotASetting {
        /// The text found.
        text: String,
    },
}

/// The text is not the name of a WAL file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name:?} is not {expected}")]
pub struct WalFileNameError {
    name: String,
    expected: &'static str,
}

impl SegmentSize {
    /// The size that `initdb` chooses by default, 16 MiB.
    pub const DEFAULT: Self = Self(16 * 1024 * 1024);

    /// Checks a size in bytes.
    pub fn new(bytes: u64) -> Result<Self, SegmentSizeError> {
        let in_range = (MEBIBYTE..=1024 * MEBIBYTE).contains(&bytes) && bytes.is_power_of_two();
        match u32::try_from(bytes) {
            Ok(size) if in_range => Ok(Self(size)),
            _ => Err(SegmentSizeError::NotASize { bytes }),
        }
    }

    /// Reads the answer of `SHOW wal_segment_size`, like `16MB`.
    pub fn from_setting(text: &str) -> Result<Self, SegmentSizeError> {
        let not_a_setting = || SegmentSizeError::NotASetting { text: text.to_owned() };
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let unit = match unit {
            "B" | "" => 1,
            "kB" => 1024,
            "MB" => MEBIBYTE,
            "GB" => 1024 * MEBIBYTE,
            _ => return Err(not_a_setting()),
        };
        let number: u64 = number.parse().map_err(|_| not_a_setting())?;
        Self::new(number.saturating_mul(unit))
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Returns how many segments make up 4 GiB.
    pub const fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// Returns the beginning of the segment that contains `lsn`.
    pub const fn start_of(self, lsn: Lsn) -> Lsn {
        Lsn::new(lsn.as_u64() - self.offset_of(lsn))
    }

    /// Returns how far `lsn` lies inside its segment.
    pub const fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.as_u64() % self.bytes()
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = SegmentSizeError;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.bytes()
    }
}

impl fmt::Display for SegmentSize {
    /// Writes the form that `SHOW wal_segment_size` has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes() / MEBIBYTE {
            1024 => write!(f, "1GB"),
            mebibytes => write!(f, "{mebibytes}MB"),
        }
    }
}

impl SegmentName {
    /// Returns the name of the segment that holds the byte at `lsn`.
    pub fn containing(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        Self::from_number(timeline, lsn.as_u64() / size.bytes(), size)
    }

    /// Returns the name of the segment with this number, counted from the beginning of the log.
    ///
    /// A number past the end of the position space gives the last segment there is.
    pub fn from_number(timeline: TimelineId, number: u64, size: SegmentSize) -> Self {
        let number = number.min(u64::MAX / size.bytes());
        // Both halves fit: the number is at most 2^64 / size, and a log has 2^32 / size segments.
        let log = (number / size.segments_per_log()) as u32;
        let segment = (number % size.segments_per_log()) as u32;
        Self { timeline, log, segment }
    }

    /// Returns the number of the segment, counted from the beginning of the log.
    pub const fn number(self, size: SegmentSize) -> u64 {
        self.log as u64 * size.segments_per_log() + self.segment as u64
    }

    /// Returns the position of the segment's first byte.
    pub const fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.number(size).saturating_mul(size.bytes()))
    }

    /// Returns the position just after the segment's last byte.
    pub const fn end(self, size: SegmentSize) -> Lsn {
        self.start(size).saturating_add(size.bytes())
    }

    /// Returns the segment that follows on the same timeline; the last one of all follows itself.
    pub fn next(self, size: SegmentSize) -> Self {
        Self::from_number(self.timeline, self.number(size).saturating_add(1), size)
    }

    /// Returns the segment before this one on the same timeline, if there is one.
    pub fn previous(self, size: SegmentSize) -> Option<Self> {
        let number = self.number(size).checked_sub(1)?;
        Some(Self::from_number(self.timeline, number, size))
    }

    /// Tells whether a segment of this name can exist in a cluster with this segment size.
    pub const fn is_valid_for(self, size: SegmentSize) -> bool {
        (self.segment as u64) < size.segments_per_log()
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.get(), self.log, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = WalFileNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        parse_segment(name).ok_or_else(|| WalFileNameError {
            name: name.to_owned(),
            expected: "a WAL segment name of 24 upper-case hexadecimal digits",
        })
    }
}

serde_as_text!(SegmentName);

impl WalFileName {
    /// Returns the timeline in the name.
    pub const fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory { segment, .. } => segment.timeline,
            Self::History(timeline) => timeline,
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => write!(f, "{segment}"),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{}.history", timeline.hex()),
        }
    }
}

impl FromStr for WalFileName {
    type Err = WalFileNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        parse_wal_file(name).ok_or_else(|| WalFileNameError {
            name: name.to_owned(),
            expected: "the name of a WAL segment, partial segment, backup history or timeline history file",
        })
    }
}

serde_as_text!(WalFileName);

fn parse_segment(name: &str) -> Option<SegmentName> {
    if name.len() != 24 {
        return None;
    }
    let timeline = hex_u32(name.get(..8)?).and_then(TimelineId::new)?;
    Some(SegmentName { timeline, log: hex_u32(name.get(8..16)?)?, segment: hex_u32(name.get(16..)?)? })
}

fn parse_wal_file(name: &str) -> Option<WalFileName> {
    let Some((stem, suffix)) = name.split_once('.') else {
        return parse_segment(name).map(WalFileName::Segment);
    };
    match suffix {
        "history" => hex_u32(stem).and_then(TimelineId::new).map(WalFileName::History),
        "partial" => parse_segment(stem).map(WalFileName::Partial),
        _ => {
            let offset = hex_u32(suffix.strip_suffix(".backup")?)?;
            Some(WalFileName::BackupHistory { segment: parse_segment(stem)?, offset })
        }
    }
}

#[cfg(test)]
mod tests;
