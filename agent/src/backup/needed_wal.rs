//! Which archived files a backup needs to become consistent. Pure arithmetic over the manifest's WAL ranges.

use anyhow::{bail, ensure};
use pgark_postgres::{SegmentName, SegmentSize, WalRange};
use pgark_repository as repository;

use crate::replication::{BackupEnd, BackupStart};

/// The server writes less than this during one backup: nothing can keep up with 64 TiB of WAL in between.
const MAX_WAL_BYTES: u64 = 64 << 40;

/// The manifest's ranges must lead without a gap from where the server said that the backup starts to where it ends,
/// on timelines that only grow.
pub(super) fn check_ranges(ranges: &[WalRange], start: BackupStart, end: BackupEnd) -> anyhow::Result<()> {
    // The manifest lists the newest timeline first.
    let (Some(newest), Some(oldest)) = (ranges.first(), ranges.last()) else {
        bail!("the server's manifest names no WAL");
    };
    ensure!(
        (oldest.timeline, oldest.start) == (start.timeline, start.lsn)
            && (newest.timeline, newest.end) == (end.timeline, end.lsn),
        "the server's manifest needs WAL from {} on timeline {} to {} on {}, but the server said {} on {} to {} on {}",
        oldest.start,
        oldest.timeline,
        newest.end,
        newest.timeline,
        start.lsn,
        start.timeline,
        end.lsn,
        end.timeline
    );
    for pair in ranges.windows(2) {
        ensure!(
            pair[0].timeline > pair[1].timeline && pair[0].start == pair[1].end,
            "the server's manifest has a gap in its WAL between timelines {} and {}",
            pair[1].timeline,
            pair[0].timeline
        );
    }
    let bytes = end.lsn.bytes_since(start.lsn).unwrap_or(0);
    ensure!(
        (1..=MAX_WAL_BYTES).contains(&bytes),
        "the server says that the backup goes from {} to {}, which cannot be",
        start.lsn,
        end.lsn
    );
    Ok(())
}

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
    fn f09_ranges_that_make_no_sense_are_refused() {
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        let timeline = |number| TimelineId::new(number).unwrap();
        let check = |ranges: &[(u32, &str, &str)], end: (u32, &str)| {
            let range = |(number, start, end): &(u32, &str, &str)| WalRange {
                timeline: timeline(*number),
                start: lsn(start),
                end: lsn(end),
            };
            let ranges: Vec<WalRange> = ranges.iter().map(range).collect();
            let start = BackupStart { lsn: lsn("0/2000028"), timeline: timeline(1) };
            let end = BackupEnd { lsn: lsn(end.1), timeline: timeline(end.0) };
            check_ranges(&ranges, start, end).map_err(|error| error.to_string())
        };
        let one = (1, "0/2000028", "0/3000000");
        check(&[one], (1, "0/3000000")).unwrap();
        check(&[(3, "0/3000000", "0/4000000"), one], (3, "0/4000000")).unwrap();
        for (ranges, end, words) in [
            (&[][..], (1, "0/3000000"), "no WAL"),
            (&[one], (1, "0/3000001"), "but the server said"),
            (&[one], (2, "0/3000000"), "but the server said"),
            (&[(1, "0/2000029", "0/3000000")], (1, "0/3000000"), "but the server said"),
            (&[(2, "0/3000001", "0/4000000"), one], (2, "0/4000000"), "a gap"),
            (&[(1, "0/3000000", "0/4000000"), one], (1, "0/4000000"), "a gap"),
            (&[(1, "0/2000028", "FFFFFFFF/FFFFFFFF")], (1, "FFFFFFFF/FFFFFFFF"), "which cannot be"),
            (&[(1, "0/2000028", "0/2000028")], (1, "0/2000028"), "which cannot be"),
        ] {
            let refused = check(ranges, end).unwrap_err();
            assert!(refused.contains(words), "no {words:?} in {refused}");
        }
    }

    #[test]
    fn a32_two_timelines_need_the_segments_of_both() {
        assert_eq!(
            names(&[(2, "0/3000100", "0/4000000"), (1, "0/2000028", "0/3000100")]),
            ["000000010000000000000002", "000000010000000000000003", "000000020000000000000003"]
        );
    }
}
