//! Proves with the WAL itself that a target will be reached, before anything is restored.
//!
//! The server gives up when it has replayed everything without meeting its target, and a time target is only met by
//! the end of a *later* transaction: asked for "now" on an idle server it fails although every row is there. So the
//! archive is searched first: for a time backwards from its end, for a transaction or a name forwards from the backup.

use std::io;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use pgark_command::TargetTime;
use pgark_postgres::{Lsn, RecordWalker, SegmentName, WalEvent, WalFileName, WalRecordError};
use pgark_repository::RepositoryError;
use thiserror::Error;

use crate::archive::Archive;
use crate::fetch_wal::assemble;
use crate::plan::{PlannedSegment, RestorePlan, StopPoint};
use crate::target::RecoveryTarget;

/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_2000: i64 = 946_684_800_000_000;
/// How many segments are fetched ahead when many are searched.
const AHEAD: usize = 2;
/// How far back the last transaction is looked for when that is only news for the plan.
const LOOK_BACK: usize = 8;

/// The target is not in the archive's WAL, or WAL cannot be read.
#[derive(Debug, Error)]
pub enum ReachError {
    #[error("no transaction ended {} {target} in the archive; {}", after(*.inclusive), last_one(.last.as_ref()))]
    AfterLastTransaction { target: TargetTime, inclusive: bool, last: Option<StopPoint>, gap: Option<SegmentName> },
    #[error("transaction {xid} did not end between {from} and {to}, where the archive was searched")]
    XidNotFound { xid: u32, from: Lsn, to: Lsn, gap: Option<SegmentName> },
    #[error("there is no restore point \"{name}\" between {from} and {to}, where the archive was searched")]
    NameNotFound { name: String, from: Lsn, to: Lsn, gap: Option<SegmentName> },
    #[error("position {lsn} is behind the last record in the archive, which ends at {end}")]
    AfterLastRecord { lsn: Lsn, end: Lsn },
    #[error("WAL segment {segment} is in the archive's listing, but cannot be fetched any more")]
    Vanished { segment: SegmentName },
    #[error("archived WAL segment {segment} is damaged")]
    Damaged {
        segment: SegmentName,
        #[source]
        source: Box<WalRecordError>,
    },
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

fn after(inclusive: bool) -> &'static str {
    if inclusive { "after" } else { "at or after" }
}

fn last_one(last: Option<&StopPoint>) -> String {
    match last.and_then(|last| Some((last, TargetTime::from_unix_microseconds(last.time?).ok()?))) {
        Some((last, time)) => format!("the last one ended at {time} (position {})", last.lsn),
        None => "none ended after the backup".to_owned(),
    }
}

impl ReachError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let gap = |gap: &Option<SegmentName>| match gap {
            Some(missing) => format!("; what follows the missing segment {missing} was not searched"),
            None => String::new(),
        };
        match self {
            Self::AfterLastTransaction { last, gap: Some(missing), .. } => Some(match last {
                Some(last) => format!(
                    "segment {missing} is missing; --target-lsn {} restores the last transaction before the gap",
                    last.lsn
                ),
                None => format!("segment {missing} is missing; bring it into the archive with pgark-archive-command"),
            }),
            Self::AfterLastTransaction { .. } => Some(
                "to restore everything leave the target out; if the server still runs, SELECT pg_switch_wal() sends \
                 its last segment to the archive"
                    .to_owned(),
            ),
            Self::XidNotFound { gap: missing, .. } => Some(format!(
                "it may have ended before the backup (choose an older one with --backup) or on another timeline \
                 (--target-timeline){}",
                gap(missing)
            )),
            Self::NameNotFound { gap: missing, .. } => Some(format!(
                "check how it is spelled; it may also lie before the backup (choose an older one with --backup) or on \
                 another timeline (--target-timeline){}",
                gap(missing)
            )),
            Self::AfterLastRecord { .. } => {
                Some("without a target, recovery goes to the end of the archive".to_owned())
            }
            Self::Vanished { .. } => Some("plan again".to_owned()),
            Self::Damaged { .. } => Some("choose a target before it, or a newer backup".to_owned()),
            Self::Repository(_) => None,
        }
    }
}

/// Searches the plan's WAL for its target, and notes in the plan where recovery will stop.
pub async fn prove(archive: &Archive, plan: &mut RestorePlan) -> Result<(), ReachError> {
    let search = Search { archive, plan };
    match plan.target.stop.clone() {
        RecoveryTarget::Immediate => {}
        RecoveryTarget::EndOfArchive => plan.last_transaction = search.last_transaction(LOOK_BACK).await?,
        RecoveryTarget::Lsn(lsn) => {
            let (end, segment) = search.first_record_from(lsn).await?;
            plan.needed = plan.segments_before(end);
            plan.stop = Some(StopPoint { lsn, time: None, segment });
        }
        RecoveryTarget::Time(time) => {
            let (last, stop) = search.time(time.unix_microseconds()).await?;
            let Some(stop) = stop else {
                let gap = plan.gap();
                return Err(ReachError::AfterLastTransaction {
                    target: time,
                    inclusive: plan.target.inclusive,
                    last,
                    gap,
                });
            };
            plan.last_transaction = last;
            plan.needed = plan.segments_before(stop.lsn.saturating_add(1));
            plan.stop = Some(stop);
        }
        RecoveryTarget::Xid(xid) => {
            let found = search.forwards(|event, _| match event {
                WalEvent::Commit { xid: found, .. } | WalEvent::Abort { xid: found, .. } => *found == xid,
                WalEvent::RestorePoint { .. } => false,
            });
            let Some(stop) = found.await? else {
                let (from, to, gap) = search.searched();
                return Err(ReachError::XidNotFound { xid, from, to, gap });
            };
            plan.needed = plan.segments_before(stop.lsn.saturating_add(1));
            plan.stop = Some(stop);
        }
        RecoveryTarget::Name(name) => {
            let found = search.forwards(|event, _| match event {
                WalEvent::RestorePoint { name: found, .. } => found.as_slice() == name.as_bytes(),
                WalEvent::Commit { .. } | WalEvent::Abort { .. } => false,
            });
            let Some(stop) = found.await? else {
                let (from, to, gap) = search.searched();
                return Err(ReachError::NameNotFound { name, from, to, gap });
            };
            plan.needed = plan.segments_before(stop.lsn.saturating_add(1));
            plan.stop = Some(stop);
        }
    }
    Ok(())
}

/// Finds the last transaction in the WAL that is there, as advice for a plan that was refused.
pub async fn last_transaction(archive: &Archive, plan: &RestorePlan) -> Result<Option<StopPoint>, ReachError> {
    Search { archive, plan }.last_transaction(usize::MAX).await
}

/// Finds the last transaction if it ended in one of the last few segments.
pub(crate) async fn recent_transaction(archive: &Archive, plan: &RestorePlan) -> Result<Option<StopPoint>, ReachError> {
    Search { archive, plan }.last_transaction(LOOK_BACK).await
}

/// Shows every event from the end of the plan's backup to the end of its WAL, with the segment in which it was complete.
pub(crate) async fn walk_events(
    archive: &Archive,
    plan: &RestorePlan,
    mut show: impl FnMut(&WalEvent, SegmentName),
) -> Result<(), ReachError> {
    let search = Search { archive, plan };
    let shown = search.forwards(|event, segment| {
        show(event, segment);
        false
    });
    shown.await.map(drop)
}

/// Reads a segment of the plan.
pub(crate) async fn fetch_segment(
    archive: &Archive,
    plan: &RestorePlan,
    name: SegmentName,
) -> Result<Vec<u8>, ReachError> {
    Search { archive, plan }.fetch(name).await
}

struct Search<'s> {
    archive: &'s Archive,
    plan: &'s RestorePlan,
}

impl Search<'_> {
    /// The transactions that ended in a segment, also those whose record goes on in the next one.
    async fn transactions(&self, index: usize) -> Result<Vec<StopPoint>, ReachError> {
        let Some(&PlannedSegment { name, .. }) = self.plan.segments.get(index) else { return Ok(Vec::new()) };
        let end = name.end(self.plan.segment_size);
        // What happened before the backup was consistent cannot stop recovery.
        let start = name.start(self.plan.segment_size).max(self.plan.backup.stop_lsn);
        if start >= end {
            return Ok(Vec::new());
        }
        let mut walker = self.walker(start, name)?;
        let mut points = self.feed(&mut walker, name).await?;
        let is_open = walker.end_of_valid().is_none() && walker.valid_until() < end;
        if let (true, Some(next)) = (is_open, self.plan.segments.get(index + 1)) {
            let more = self.feed(&mut walker, next.name).await?;
            points.extend(more.into_iter().filter(|point| point.start_lsn() < end));
        }
        Ok(points.iter().filter_map(|event| transaction(event, name)).collect())
    }

    async fn last_transaction(&self, look_back: usize) -> Result<Option<StopPoint>, ReachError> {
        for index in (0..self.plan.segments.len()).rev().take(look_back) {
            if let Some(last) = self.transactions(index).await?.pop() {
                return Ok(Some(last));
            }
        }
        Ok(None)
    }

    /// The last transaction of the archive, and the one at which recovery to a time stops.
    async fn time(&self, target: i64) -> Result<(Option<StopPoint>, Option<StopPoint>), ReachError> {
        let inclusive = self.plan.target.inclusive;
        let stops =
            |point: &StopPoint| point.time.is_some_and(|time| if inclusive { time > target } else { time >= target });
        // Times do not strictly rise with the position, so a few segments with transactions are looked at.
        let mut last = None;
        let mut last_stop = None;
        let mut seen = 0;
        for index in (0..self.plan.segments.len()).rev() {
            let transactions = self.transactions(index).await?;
            if transactions.is_empty() {
                continue;
            }
            last = last.or_else(|| transactions.last().cloned());
            if let Some(stop) = transactions.iter().find(|point| stops(point)) {
                last_stop = Some((index, stop.clone()));
                break;
            }
            seen += 1;
            if seen == 3 {
                break;
            }
        }
        let Some((mut high, mut stop)) = last_stop else { return Ok((last, None)) };
        // The first segment in which a later transaction ended, by halving: recovery stops in it.
        let mut low = 0;
        while low < high {
            let middle = low + (high - low) / 2;
            // A segment without transactions tells nothing; the next one that has some decides.
            let mut place = middle;
            let mut transactions = Vec::new();
            while place < high && transactions.is_empty() {
                transactions = self.transactions(place).await?;
                place += 1;
            }
            let is_empty = transactions.is_empty();
            match transactions.into_iter().find(|point| stops(point)) {
                Some(earlier) => {
                    stop = earlier;
                    high = middle;
                }
                None if is_empty => high = middle,
                None => low = place,
            }
        }
        Ok((last, Some(stop)))
    }

    /// Searches from the end of the backup to the end of the archive.
    async fn forwards(
        &self,
        mut is_it: impl FnMut(&WalEvent, SegmentName) -> bool,
    ) -> Result<Option<StopPoint>, ReachError> {
        let start = self.plan.backup.stop_lsn;
        let first = self.plan.segments_before(start.saturating_add(1)).saturating_sub(1);
        let names: Vec<SegmentName> = self
            .plan
            .segments
            .iter()
            .skip(first)
            .map(|segment| segment.name)
            .skip_while(|name| name.end(self.plan.segment_size) <= start)
            .collect();
        let Some(&begin) = names.first() else { return Ok(None) };
        let mut walker = self.walker(start.max(begin.start(self.plan.segment_size)), begin)?;
        let mut fetched = stream::iter(
            names.into_iter().map(|name| async move { self.fetch(name).await.map(|bytes| (name, bytes)) }),
        )
        .buffered(AHEAD);
        while let Some((name, bytes)) = fetched.try_next().await? {
            let events = walk(&mut walker, name.start(self.plan.segment_size), name, &bytes)?;
            if let Some(event) = events.iter().find(|event| is_it(event, name)) {
                return Ok(Some(stop_point(event, name)));
            }
        }
        Ok(None)
    }

    /// Proves that a record begins at or after the position; returns where the WAL that is needed for it ends.
    async fn first_record_from(&self, lsn: Lsn) -> Result<(Lsn, SegmentName), ReachError> {
        let first = self.plan.segments_before(lsn.saturating_add(1)).saturating_sub(1);
        let mut walker = None;
        let mut end = lsn;
        for segment in self.plan.segments.iter().skip(first) {
            let walker = match &mut walker {
                Some(walker) => walker,
                none => none.insert(self.walker(lsn, segment.name)?),
            };
            self.feed(walker, segment.name).await?;
            end = walker.valid_until();
            if end > lsn {
                return Ok((end, segment.name));
            }
            if walker.end_of_valid().is_some() {
                break;
            }
        }
        Err(ReachError::AfterLastRecord { lsn, end })
    }

    fn searched(&self) -> (Lsn, Lsn, Option<SegmentName>) {
        (self.plan.backup.stop_lsn, self.plan.reachable, self.plan.gap())
    }

    fn walker(&self, start: Lsn, segment: SegmentName) -> Result<RecordWalker, ReachError> {
        RecordWalker::new(self.plan.segment_size, self.plan.backup.server.major(), start)
            .map_err(|source| ReachError::Damaged { segment, source: Box::new(source) })
    }

    async fn feed(&self, walker: &mut RecordWalker, name: SegmentName) -> Result<Vec<WalEvent>, ReachError> {
        let bytes = self.fetch(name).await?;
        walk(walker, name.start(self.plan.segment_size), name, &bytes)
    }

    async fn fetch(&self, name: SegmentName) -> Result<Vec<u8>, ReachError> {
        let limit = self.plan.segment_size.bytes() as usize;
        let fetched = self.archive.first(name, async |repository, _| {
            let output = Segment { bytes: Vec::with_capacity(limit), limit };
            repository.fetch_wal_file(&WalFileName::Segment(name), output).await
        });
        match fetched.await? {
            Some(segment) => Ok(segment.bytes),
            // The plan counts on its pieces, or it has been deleted.
            None => {
                let assembled = assemble(self.archive, name).await?;
                let mut bytes = assembled.ok_or(ReachError::Vanished { segment: name })?;
                bytes.resize(limit, 0);
                Ok(bytes)
            }
        }
    }
}

fn walk(
    walker: &mut RecordWalker,
    start: Lsn,
    segment: SegmentName,
    bytes: &[u8],
) -> Result<Vec<WalEvent>, ReachError> {
    walker.feed(start, bytes).map_err(|source| ReachError::Damaged { segment, source: Box::new(source) })
}

fn transaction(event: &WalEvent, segment: SegmentName) -> Option<StopPoint> {
    match event {
        WalEvent::Commit { .. } | WalEvent::Abort { .. } => Some(stop_point(event, segment)),
        WalEvent::RestorePoint { .. } => None,
    }
}

/// Where recovery to this event stops.
pub(crate) fn stop_point(event: &WalEvent, segment: SegmentName) -> StopPoint {
    StopPoint { lsn: event.start_lsn(), time: Some(event.time() + EPOCH_2000), segment }
}

/// What all events have.
trait Event {
    fn start_lsn(&self) -> Lsn;
    fn time(&self) -> i64;
}

impl Event for WalEvent {
    fn start_lsn(&self) -> Lsn {
        match self {
            Self::Commit { start_lsn, .. } | Self::Abort { start_lsn, .. } | Self::RestorePoint { start_lsn, .. } => {
                *start_lsn
            }
        }
    }

    fn time(&self) -> i64 {
        match self {
            Self::Commit { time, .. } | Self::Abort { time, .. } | Self::RestorePoint { time, .. } => *time,
        }
    }
}

/// A segment in memory, never more than a segment is long.
struct Segment {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Segment {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than a segment"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
