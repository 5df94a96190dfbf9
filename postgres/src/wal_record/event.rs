//! The records that matter for recovery targets.
//!
//! ```text
//! data        headers (0xFD u16 origin, 0xFC u32 top-level xid), 0xFF u8 length or 0xFE u32 length, main data
//! commit,     i64 time; with info 0x80: u32 contents, then as its bits say: database (8 bytes), subtransactions
//! abort       (n × 4), relations (n × 12), statistics (n × 12, from 18 on n × 16), for commits invalidations
//!             (n × 16), then the xid of a prepared transaction
//! restore     i64 time, 64 bytes of name that end in NUL
//! point
//! ```

use super::record::Record;
use super::record::RecordHeader;
use crate::Lsn;
use crate::little_endian::{i64_at, u32_at};

const RESOURCE_MANAGER_XLOG: u8 = 0;
const RESOURCE_MANAGER_TRANSACTION: u8 = 1;
const XLOG_RESTORE_POINT: u8 = 0x70;
const TRANSACTION_HAS_CONTENTS: u8 = 0x80;

const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
/// Since 15.
const HAS_STATISTICS: u32 = 1 << 8;

/// All that is read of an ordinary commit lies at its beginning.
const BEGINNING_BYTES: usize = 256;
/// A prepared transaction's xid stands behind its lists, so its record is kept whole up to this size.
const MAX_PREPARED_BYTES: usize = 64 * 1024 * 1024;

/// Something that recovery can be told to stop at.
///
/// Times are microseconds since 2000-01-01 00:00 UTC, by the clock of the server. They do not always rise with the
/// position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEvent {
    /// A transaction was committed, also one that had been prepared.
    Commit {
        /// The transaction.
        xid: u32,
        /// When it was committed.
        time: i64,
        /// Where the record begins.
        start_lsn: Lsn,
        /// Where the next record can begin.
        end_lsn: Lsn,
    },
    /// A transaction or subtransaction was rolled back, also one that had been prepared.
    Abort {
        /// The transaction.
        xid: u32,
        /// When it was rolled back.
        time: i64,
        /// Where the record begins.
        start_lsn: Lsn,
        /// Where the next record can begin.
        end_lsn: Lsn,
    },
    /// A restore point was made.
    RestorePoint {
        /// Its name, at most 63 bytes in the encoding of its database.
        name: Vec<u8>,
        /// When it was made.
        time: i64,
        /// Where the record begins.
        start_lsn: Lsn,
        /// Where the next record can begin; this is what `pg_create_restore_point` returned.
        end_lsn: Lsn,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Commit,
    Abort,
    CommitPrepared,
    AbortPrepared,
    RestorePoint,
}

impl Kind {
    fn of(header: &RecordHeader) -> Option<Self> {
        match (header.resource_manager, header.info) {
            (RESOURCE_MANAGER_XLOG, XLOG_RESTORE_POINT) => Some(Self::RestorePoint),
            (RESOURCE_MANAGER_TRANSACTION, info) => match info & !TRANSACTION_HAS_CONTENTS {
                0x00 => Some(Self::Commit),
                0x20 => Some(Self::Abort),
                0x30 => Some(Self::CommitPrepared),
                0x40 => Some(Self::AbortPrepared),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Returns how much of a record's data [`parse`] looks at.
pub(super) fn bytes_needed(header: &RecordHeader) -> usize {
    let most = match Kind::of(header) {
        None => 0,
        Some(Kind::CommitPrepared | Kind::AbortPrepared) => MAX_PREPARED_BYTES,
        Some(_) => BEGINNING_BYTES,
    };
    most.min(header.data_bytes())
}

/// Reads a record that was checked, or says what is wrong with it.
pub(super) fn parse(record: &Record<'_>, end_lsn: Lsn, major: u32) -> Result<Option<WalEvent>, &'static str> {
    let Some(kind) = Kind::of(&record.header) else { return Ok(None) };
    let start_lsn = record.header.start;
    let main = main_data(record, major).ok_or("data headers that do not fit its length")?;
    let time = i64_at(main, 0).ok_or("no time")?;
    let xid = match kind {
        Kind::CommitPrepared | Kind::AbortPrepared => {
            prepared_xid(kind, record, main, major).ok_or("no prepared transaction")?
        }
        _ => record.header.xid,
    };
    Ok(Some(match kind {
        Kind::Commit | Kind::CommitPrepared => WalEvent::Commit { xid, time, start_lsn, end_lsn },
        Kind::Abort | Kind::AbortPrepared => WalEvent::Abort { xid, time, start_lsn, end_lsn },
        Kind::RestorePoint => {
            let field = main.get(8..72).ok_or("no name")?;
            let name = field.split(|&b| b == 0).next().unwrap_or_default().to_vec();
            WalEvent::RestorePoint { name, time, start_lsn, end_lsn }
        }
    }))
}

/// Returns the main data, or its beginning where no more was kept.
fn main_data<'a>(record: &Record<'a>, major: u32) -> Option<&'a [u8]> {
    let data = record.data;
    let mut at = 0;
    let (at, length) = loop {
        match data.get(at)? {
            0xFF => break (at + 2, usize::from(*data.get(at + 1)?)),
            0xFE => break (at + 5, u32_at(data, at + 1)? as usize),
            0xFD => at += 3,
            0xFC if major >= 14 => at += 5,
            _ => return None,
        }
    };
    if at.checked_add(length)? != record.header.data_bytes() {
        return None;
    }
    data.get(at..)
}

/// Finds the transaction that a `COMMIT PREPARED` or `ROLLBACK PREPARED` ends; the record's own xid is not it.
fn prepared_xid(kind: Kind, record: &Record<'_>, main: &[u8], major: u32) -> Option<u32> {
    if record.header.info & TRANSACTION_HAS_CONTENTS == 0 {
        return None;
    }
    let contents = u32_at(main, 8)?;
    if contents & HAS_TWO_PHASE == 0 {
        return None;
    }
    let mut at = 12;
    if contents & HAS_DATABASE != 0 {
        at += 8;
    }
    let statistics_bytes = if major >= 18 { 16 } else { 12 };
    let lists = [
        (HAS_SUBTRANSACTIONS, 4),
        (HAS_RELATIONS, 12),
        (if major >= 15 { HAS_STATISTICS } else { 0 }, statistics_bytes),
        (if kind == Kind::CommitPrepared { HAS_INVALIDATIONS } else { 0 }, 16),
    ];
    for (bit, item_bytes) in lists {
        if contents & bit != 0 {
            let items = u32_at(main, at)? as usize;
            at = items.checked_mul(item_bytes)?.checked_add(at)?.checked_add(4)?;
        }
    }
    u32_at(main, at)
}
