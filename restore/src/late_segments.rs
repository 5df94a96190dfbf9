//! Segments that are stored a moment after their successors.
//!
//! Several are shipped side by side, so for a moment the archive may lack one and have those behind it. What is decided
//! from such a moment would be a false alarm: the archive is looked at again until the gap has closed. Only segments that
//! were stored just now are a reason to wait, so a gap that is there for good costs nothing.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use pgark_postgres::{SegmentName, SegmentSize};
use pgark_repository::{ClusterRepository, RepositoryError, WalInventory, WholeSegment};

/// How long before now a segment was stored whose predecessors may still be on their way: more than the slowest upload of
/// one segment takes.
const JUST_NOW: SignedDuration = SignedDuration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(500);

/// Everything that is archived, at a moment at which no segment is late, if there is one soon.
pub(crate) async fn settled_inventory(
    place: &ClusterRepository,
    size: SegmentSize,
) -> Result<WalInventory, RepositoryError> {
    let began = Instant::now();
    loop {
        let inventory = place.wal_inventory().await?;
        match late_segment(&inventory, size, Timestamp::now()) {
            Some(segment) if began.elapsed() < PATIENCE => {
                tracing::debug!(%segment, repository = place.name(), "is not there yet, but later ones are");
                tokio::time::sleep(INTERVAL).await;
            }
            _ => return Ok(inventory),
        }
    }
}

/// A segment that is missing in front of one that was stored just now.
fn late_segment(inventory: &WalInventory, size: SegmentSize, now: Timestamp) -> Option<SegmentName> {
    let of_just_now = inventory.segments.iter().filter(|(_, whole)| is_of_just_now(whole, now));
    of_just_now.map(|(segment, _)| *segment).find_map(|segment| {
        let behind_nearest = nearest_before(inventory, segment, size)?.saturating_add(1);
        let late = SegmentName::from_number(segment.timeline, behind_nearest, size);
        (late < segment).then_some(late)
    })
}

/// The number of the nearest segment in front of one, on its timeline or else on any earlier one: which of those is the
/// parent is not known here.
fn nearest_before(inventory: &WalInventory, segment: SegmentName, size: SegmentSize) -> Option<u64> {
    let before = inventory.segments.range(..segment).map(|(before, _)| *before);
    match before.clone().next_back() {
        Some(last) if last.timeline == segment.timeline => Some(last.number(size)),
        _ => before.map(|before| before.number(size)).filter(|number| *number < segment.number(size)).max(),
    }
}

/// One from the future was stored just now by another clock.
fn is_of_just_now(segment: &WholeSegment, now: Timestamp) -> bool {
    now.duration_since(segment.stored) < JUST_NOW
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use pgark_postgres::TimelineId;

    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn segment((timeline, number): (u32, u64)) -> SegmentName {
        SegmentName::from_number(TimelineId::new(timeline).unwrap(), number, SIZE)
    }

    /// What is late in an archive of segments with the seconds that they are there.
    fn late(archived: impl IntoIterator<Item = ((u32, u64), i64)>) -> Option<SegmentName> {
        let now: Timestamp = "2026-11-22T02:00:00Z".parse().unwrap();
        let whole = |age| WholeSegment { stored_size: 1, stored: now - SignedDuration::from_secs(age) };
        let segments = archived.into_iter().map(|(name, age)| (segment(name), whole(age))).collect();
        late_segment(&WalInventory { segments, ..WalInventory::default() }, SIZE, now)
    }

    #[test]
    fn one_is_late_only_in_front_of_what_was_stored_just_now() {
        for (age, expected) in [(0, true), (59, true), (60, false), (90_000, false), (-600, true)] {
            let found = late([((1, 4), 300), ((1, 5), 200), ((1, 7), age), ((1, 8), 0)]);
            assert_eq!(found, expected.then(|| segment((1, 6))), "stored {age} s ago");
        }
        assert_eq!(late([]), None);
        assert_eq!(late((3..20).map(|number| ((1, number), 0))), None);
        // An archive that begins has nothing in front of it.
        assert_eq!(late([((1, 9), 0), ((1, 10), 0)]), None);
        // Names go on in the next log.
        assert_eq!(late([((1, 0xff), 0), ((1, 0x100), 0)]), None);
        assert_eq!(late([((1, 0xfe), 0), ((1, 0x100), 0)]), Some(segment((1, 0xff))));
    }

    #[test]
    fn a_timeline_follows_what_its_parent_has() {
        let parent = || (1..=5).map(|number| ((1, number), 300));
        assert_eq!(late(parent().chain([((2, 6), 0)])), None);
        assert_eq!(late(parent().chain([((2, 5), 0), ((2, 6), 0)])), None);
        assert_eq!(late(parent().chain([((2, 7), 0), ((2, 8), 0)])), Some(segment((2, 6))));
        assert_eq!(late(parent().chain([((2, 7), 300)])), None);
        // A parent that goes on hides it, and a child has nothing to say about its parent.
        assert_eq!(late(parent().chain([((1, 6), 0), ((2, 7), 0)])), None);
        assert_eq!(late([((1, 9), 0), ((2, 3), 300)]), None);
    }
}
