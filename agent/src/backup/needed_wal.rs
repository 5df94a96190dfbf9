//! Which archived files a backup needs to become consistent. Pure arithmetic over the manifest's WAL ranges.

use pgark_postgres::{SegmentName, SegmentSize, WalRange};
use pgark_repository as repository;

/// The segments from the first byte to the last of each range, oldest timeline first. The end is exclusive: a range
/// that ends on a segment's boundary does not need the segment behind it.
pub(super) fn needed_segments(ranges: &[WalRange], size: SegmentSize) -> Vec<SegmentName> {
    let mut segments = Vec::new();
    // The manifest lists the newest timeline first.
    for range in ranges.iter().rev() {
        if range.end <= range.start {
            continue;
        }
        let last = SegmentName::containing(range.timeline, (range.end.as_u64() - 1).into(), size);
        let mut segment = SegmentName::containing(range.timeline, range.start, size);
        loop {
            segments.push(segment);
            if segment == last {
                break;
            }
            segment = segment.next(size);
        }
    }
    segments
}

/// First and last of the segments, for the commit mark.
pub(super) fn wal_range(segments: &[SegmentName]) -> Option<repository::WalRange> {
    Some(repository::WalRange { first: *segments.first()?, last: *segments.last()? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use pgark_postgres::{Lsn, TimelineId};

    use super::*;

    fn names(ranges: &[(u32, &str, &str)]) -> Vec<String> {
        let size = SegmentSize::new(16 << 20).unwrap();
        let ranges: Vec<WalRange> = ranges
            .iter()
            .map(|(timeline, start, end)| WalRange {
                timeline: TimelineId::new(*timeline).unwrap(),
                start: start.parse::<Lsn>().unwrap(),
                end: end.parse::<Lsn>().unwrap(),
            })
            .collect();
        needed_segments(&ranges, size).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a28_an_end_on_a_boundary_does_not_need_the_next_segment() {
        assert_eq!(names(&[(1, "0/2000028", "0/3000000")]), ["000000010000000000000002"]);
        assert_eq!(names(&[(1, "0/2000028", "0/3000001")]), ["000000010000000000000002", "000000010000000000000003"]);
        assert_eq!(names(&[(1, "0/FF000028", "1/1000000")]).len(), 2);
    }

    #[test]
    fn a32_two_timelines_need_the_segments_of_both() {
        assert_eq!(
            names(&[(2, "0/3000100", "0/4000000"), (1, "0/2000028", "0/3000100")]),
            ["000000010000000000000002", "000000010000000000000003", "000000020000000000000003"]
        );
    }
}
