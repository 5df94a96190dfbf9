//! Where relations were cut since the parent of an incremental backup began.
//!
//! A block behind such a cut is not in the incremental file unless WAL wrote it again, and then the parent's block is
//! none of this relation any more: taking it would bring deleted rows back. The WAL summaries know the cuts (they call
//! them limit blocks), and the index of the backup says them of each file.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use pgark_postgres::{Lsn, RelationFile, RelationFork, TimelineHistory, TimelineId, reconstructed_path};
use pgark_repository::Backup;

use crate::replication::{BackupStart, ReplicationConnection};
use crate::server::Server;

/// More than any cluster has; memory is bounded by it.
const MOST: usize = 4_000_000;

/// The cuts, by relation and fork.
#[derive(Debug, Default)]
pub(super) struct LimitBlocks(HashMap<RelationFile, u32>);

/// A stretch of one timeline.
type Stretch = (TimelineId, Lsn, Lsn);

impl LimitBlocks {
    /// The cut of an incremental file, counted from its beginning; nothing where its segment was not cut.
    pub(super) fn of(&self, path: &[u8]) -> Option<u32> {
        let file = RelationFile::parse(&reconstructed_path(path)?)?;
        let limit = *self.0.get(&RelationFile { segment: 0, ..file })?;
        Some(file.block_in_segment(limit)).filter(|block| *block < RelationFile::MAX_BLOCKS)
    }

    /// Asks the server for the cuts between the parent's start and that of the backup under way. Cuts from before are
    /// in the parent already.
    pub(super) async fn between(
        history: Option<&TimelineHistory>,
        parent: &Backup,
        start: BackupStart,
        sql: &Server,
    ) -> anyhow::Result<Self> {
        let stretches = stretches(history, (parent.timeline, parent.start_lsn), start);
        ensure!(
            !stretches.is_empty(),
            "timeline {} does not lead from the parent's start {} on timeline {}",
            start.timeline,
            parent.start_lsn,
            parent.timeline
        );
        let wanted: Vec<String> = stretches
            .iter()
            .map(|(timeline, begin, end)| {
                format!("(s.tli = {timeline} AND s.start_lsn >= '{begin}' AND s.end_lsn <= '{end}')")
            })
            .collect();
        let query = format!(
            "SELECT c.reltablespace, c.reldatabase, c.relfilenode, c.relforknumber, min(c.relblocknumber) \
             FROM pg_catalog.pg_available_wal_summaries() s, \
             LATERAL pg_catalog.pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c \
             WHERE c.is_limit_block AND c.relfilenode <> 0 AND ({}) GROUP BY 1, 2, 3, 4 LIMIT {MOST}",
            wanted.join(" OR ")
        );
        let rows = sql.rows("the limit blocks of its WAL summaries", &query).await?;
        ensure!(rows.len() < MOST, "more than {MOST} relations were cut since the parent");
        let mut limits = HashMap::with_capacity(rows.len());
        for row in &rows {
            let column = |number: usize| -> anyhow::Result<u32> {
                let text = row.get(number).context("a column of its limit blocks is null")?;
                text.parse().with_context(|| format!("`{text}` is in its limit blocks"))
            };
            let fork = match column(3)? {
                0 => RelationFork::Main,
                1 => RelationFork::FreeSpaceMap,
                2 => RelationFork::VisibilityMap,
                _ => RelationFork::Init,
            };
            let relation =
                RelationFile { tablespace: column(0)?, database: column(1)?, number: column(2)?, fork, segment: 0 };
            limits.insert(relation, column(4)?);
        }
        Ok(Self(limits))
    }
}

/// The history of a backup's timeline, where its parent is on another one.
pub(super) async fn history_since(
    parent: &Backup,
    timeline: TimelineId,
    replication: &mut ReplicationConnection,
) -> anyhow::Result<Option<TimelineHistory>> {
    if timeline == parent.timeline {
        return Ok(None);
    }
    let file = replication.timeline_history(timeline).await?;
    Ok(Some(TimelineHistory::parse(timeline, &file.content)?))
}

/// The WAL from the parent's start to that of the backup; nothing if one does not lead to the other.
fn stretches(history: Option<&TimelineHistory>, parent: (TimelineId, Lsn), start: BackupStart) -> Vec<Stretch> {
    let (parent_timeline, parent_start) = parent;
    let path = match history {
        None => vec![(parent_timeline, parent_start, None)],
        Some(history) => history.path(),
    };
    if path.last().is_none_or(|(timeline, _, _)| *timeline != start.timeline) {
        return Vec::new();
    }
    if history.is_some_and(|history| !history.contains(parent_timeline, parent_start)) {
        return Vec::new();
    }
    let cut = |(timeline, begin, end): (TimelineId, Lsn, Option<Lsn>)| {
        (timeline, begin.max(parent_start), end.unwrap_or(start.lsn).min(start.lsn))
    };
    path.into_iter().map(cut).filter(|(_, begin, end)| begin < end).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn found(history: Option<&str>, from: (u32, u64), to: (u32, u64)) -> Vec<(u32, u64, u64)> {
        let history = history.map(|text| TimelineHistory::parse(timeline(to.0), text.as_bytes()).unwrap());
        let parent = (timeline(from.0), Lsn::new(from.1));
        let start = BackupStart { timeline: timeline(to.0), lsn: Lsn::new(to.1) };
        let stretches = stretches(history.as_ref(), parent, start);
        stretches.into_iter().map(|(line, begin, end)| (line.get(), begin.as_u64(), end.as_u64())).collect()
    }

    #[test]
    fn e06_the_wal_since_the_parent_is_that_of_the_path() {
        assert_eq!(found(None, (1, 100), (1, 300)), [(1, 100, 300)]);
        let history = "1\t0/C8\tpromoted\n2\t0/12C\tpromoted\n";
        assert_eq!(found(Some(history), (1, 100), (3, 400)), [(1, 100, 200), (2, 200, 300), (3, 300, 400)]);
        assert_eq!(found(Some(history), (2, 250), (3, 400)), [(2, 250, 300), (3, 300, 400)]);
    }

    #[test]
    fn e06_a_parent_on_another_branch_is_none() {
        let history = "1\t0/C8\tpromoted\n";
        assert_eq!(found(Some(history), (1, 201), (2, 400)), []);
        assert_eq!(found(Some(history), (3, 100), (2, 400)), []);
        // The server has left the timeline on which it was when it was asked.
        assert_eq!(found(None, (1, 100), (2, 300)), []);
    }

    #[test]
    fn e02_a_cut_counts_from_the_beginning_of_its_segment() {
        let relation =
            RelationFile { tablespace: 1663, database: 5, number: 16384, fork: RelationFork::Main, segment: 0 };
        let limits = LimitBlocks(HashMap::from([(relation, 131_080)]));
        assert_eq!(limits.of(b"base/5/INCREMENTAL.16384.1"), Some(8));
        assert_eq!(limits.of(b"base/5/INCREMENTAL.16384.2"), Some(0));
        for path in
            ["base/5/INCREMENTAL.16384", "base/5/16384.1", "base/5/INCREMENTAL.16384_vm", "base/5/INCREMENTAL.1"]
        {
            assert_eq!(limits.of(path.as_bytes()), None, "{path}");
        }
    }
}
