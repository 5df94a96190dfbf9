//! Where a stream begins: with the first segment that is not in every repository.

use std::collections::BTreeSet;

use pgark_postgres::{Lsn, SegmentName, SegmentSize, TimelineHistory};
use pgark_repository::{ClusterRepository, RepositoryError, WalInventory};

/// The way that a server has come, as the names of its segments.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    pub(crate) history: TimelineHistory,
    pub(crate) size: SegmentSize,
}

impl Path {
    /// The name under which recovery looks for a segment first: that of the newest timeline that begins in it or before.
    pub(crate) fn segment(&self, number: u64) -> SegmentName {
        let last =
            SegmentName::from_number(self.history.timeline(), number, self.size).end(self.size).saturating_sub(1);
        SegmentName::from_number(self.history.timeline_at(last), number, self.size)
    }

    pub(crate) fn is_on(&self, segment: SegmentName) -> bool {
        self.segment(segment.number(self.size)) == segment
    }

    pub(crate) fn containing(&self, lsn: Lsn) -> SegmentName {
        self.segment(lsn.as_u64() / self.size.bytes())
    }

    /// The segment after what was received on a timeline, if the path came by there.
    pub(crate) fn after(&self, newest: SegmentName, is_complete: bool) -> Option<SegmentName> {
        let number = newest.number(self.size) + u64::from(is_complete);
        let is_own = self.history.timeline() == newest.timeline;
        let number = match self.history.switch_point(newest.timeline) {
            Some(end) => number.min(end.as_u64() / self.size.bytes()),
            None if is_own => number,
            None => return None,
        };
        Some(self.segment(number))
    }
}

/// What the repositories have of a path.
#[derive(Debug, Default)]
pub(crate) struct Archived {
    /// For each repository the numbers of the segments.
    pub(crate) numbers: Vec<BTreeSet<u64>>,
    /// Whole segments of which there are still pieces.
    pub(crate) superseded: BTreeSet<SegmentName>,
}

impl Archived {
    /// Lists all repositories.
    pub(crate) async fn load(repositories: &[ClusterRepository], path: &Path) -> Result<Self, RepositoryError> {
        let mut archived = Self::default();
        for repository in repositories {
            archived.add(&repository.wal_inventory().await?, path);
        }
        Ok(archived)
    }

    fn add(&mut self, inventory: &WalInventory, path: &Path) {
        let on_path = inventory.segments.keys().filter(|segment| path.is_on(**segment));
        self.numbers.push(on_path.map(|segment| segment.number(path.size)).collect());
        self.superseded.extend(inventory.superseded.iter().copied());
    }

    /// The number of the first segment that is behind everything that every repository has.
    pub(crate) fn end(&self) -> Option<u64> {
        self.numbers.iter().filter_map(|numbers| numbers.last()).min().map(|last| last + 1)
    }
}

/// For messages: the first and the last of several segments.
pub(crate) fn describe(path: &Path, numbers: &[u64]) -> String {
    match (numbers.first(), numbers.last()) {
        (Some(first), Some(last)) if first == last => path.segment(*first).to_string(),
        (Some(first), Some(last)) => {
            format!("{} of the segments {} to {}", numbers.len(), path.segment(*first), path.segment(*last))
        }
        _ => "nothing".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use pgark_postgres::TimelineId;

    use super::*;

    fn path() -> Path {
        let three = TimelineId::new(3).unwrap();
        // Timeline 1 ends within segment 5, timeline 2 at the end of segment 8.
        let history = TimelineHistory::parse(three, b"1\t0/5001000\tx\n2\t0/9000000\tx\n").unwrap();
        Path { history, size: SegmentSize::DEFAULT }
    }

    fn segment(timeline: u32, number: u64) -> SegmentName {
        SegmentName::from_number(TimelineId::new(timeline).unwrap(), number, SegmentSize::DEFAULT)
    }

    #[test]
    fn a40_a_segment_has_the_newest_timeline_that_has_begun() {
        let timelines: Vec<u32> = (4..11).map(|number| path().segment(number).timeline.get()).collect();
        assert_eq!(timelines, [1, 2, 2, 2, 2, 3, 3]);
    }

    #[test]
    fn a40_the_stream_goes_on_where_the_old_timeline_was_left() {
        // In the middle of an old timeline: what is left of it comes first.
        assert_eq!(path().after(segment(1, 3), true), Some(segment(1, 4)));
        // Further than the server itself went: back to where it left.
        assert_eq!(path().after(segment(1, 7), false), Some(segment(2, 5)));
        assert_eq!(path().after(segment(2, 8), true), Some(segment(3, 9)));
        assert_eq!(path().after(segment(3, 12), false), Some(segment(3, 12)));
        assert_eq!(path().after(segment(4, 12), false), None);
    }

    #[test]
    fn the_stream_begins_behind_what_all_repositories_have() {
        let numbers = |numbers: &[u64]| numbers.iter().copied().collect::<BTreeSet<u64>>();
        let archived =
            Archived { numbers: vec![numbers(&[2, 3, 5, 6, 7]), numbers(&[4, 5, 6])], ..Archived::default() };
        assert_eq!(archived.end(), Some(7));
        assert_eq!(Archived::default().end(), None);
    }
}
