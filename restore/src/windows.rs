//! What can be restored: for each timeline the stretches of WAL without a gap.

use std::collections::BTreeMap;

use pgark_postgres::{Lsn, SegmentName, SegmentSize, TimelineId};
use pgark_repository::{BackupList, WholeSegment};
use serde::Serialize;

use crate::catalogue::Catalogue;

/// A stretch of archived WAL on one timeline, without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Stretch {
    pub(crate) first: SegmentName,
    pub(crate) last: SegmentName,
    pub(crate) segments: u64,
    pub(crate) stored_size: u64,
    pub(crate) end_lsn: Lsn,
    /// The segment that is being written, of which there are pieces up to `end_lsn`; not among those counted above.
    pub(crate) open_segment: Option<SegmentName>,
}

/// The archived WAL of a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TimelineWal {
    pub(crate) timeline: TimelineId,
    /// Where it came from, unless it is the first one or its history is missing.
    pub(crate) parent: Option<TimelineId>,
    pub(crate) begin_lsn: Option<Lsn>,
    pub(crate) has_history: bool,
    pub(crate) stretches: Vec<Stretch>,
}

/// Sorts what is archived by timeline.
pub(crate) fn timelines(catalogue: &Catalogue) -> Vec<TimelineWal> {
    let size = segment_size(&catalogue.backups);
    let mut found: BTreeMap<TimelineId, TimelineWal> = BTreeMap::new();
    let entry = |timeline: TimelineId| {
        let history = catalogue.histories.get(&timeline);
        let origin = history.and_then(|history| history.entries().last());
        TimelineWal {
            timeline,
            parent: origin.map(|entry| entry.timeline),
            begin_lsn: origin.map(|entry| entry.switch_lsn),
            has_history: history.is_some(),
            stretches: Vec::new(),
        }
    };
    for timeline in &catalogue.wal.histories {
        found.insert(*timeline, entry(*timeline));
    }
    for (&name, &WholeSegment { stored_size, .. }) in &catalogue.wal.segments {
        let wal = found.entry(name.timeline).or_insert_with(|| entry(name.timeline));
        match wal.stretches.last_mut() {
            Some(last) if last.last.next(size) == name => {
                last.last = name;
                last.segments += 1;
                last.stored_size += stored_size;
                last.end_lsn = name.end(size);
            }
            _ => wal.stretches.push(Stretch {
                first: name,
                last: name,
                segments: 1,
                stored_size,
                end_lsn: name.end(size),
                open_segment: None,
            }),
        }
    }
    for (&name, open) in &catalogue.wal.open {
        let wal = found.entry(name.timeline).or_insert_with(|| entry(name.timeline));
        let end_lsn = name.start(size).saturating_add(open.covered().into());
        let before = wal.stretches.iter_mut().find(|stretch| stretch.last.next(size) == name);
        if let (Some(stretch), true) = (before, open.covered() > 0) {
            stretch.stored_size += open.stored_size();
            stretch.end_lsn = end_lsn;
            stretch.open_segment = Some(name);
        }
    }
    found.into_values().collect()
}

/// The cluster's segment size, as its backups tell it.
pub(crate) fn segment_size(backups: &BackupList) -> SegmentSize {
    let newest = backups.finished.last();
    newest
        .and_then(|backup| SegmentSize::new(backup.server.wal_segment_size.into()).ok())
        .unwrap_or(SegmentSize::DEFAULT)
}
