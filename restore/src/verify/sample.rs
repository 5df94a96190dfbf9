//! What a sampling run reads: what was read longest ago, so that run after run everything is read again.
//!
//! When an object was last read is what the proofs say. One that none of them tells about counts as read when it was
//! stored, because it was compared with its source then.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgark_postgres::SegmentName;
use pgark_repository::{BackupId, Proof, ProofKind};

/// The next run is taken to be no later than this.
const UNTIL_NEXT_RUN: SignedDuration = SignedDuration::from_hours(24);

/// How much is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) percent: f64,
    /// Nothing may wait longer.
    pub(super) reread_within: Duration,
}

/// Something stored that may be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) size: u64,
    pub(super) last_read: Timestamp,
}

impl Sample {
    /// Chooses so many percent of all bytes, beginning with what was read longest ago, and whatever would be overdue by
    /// the next run.
    pub(super) fn choose(&self, candidates: &[Candidate], now: Timestamp) -> Vec<bool> {
        let total: u64 = candidates.iter().map(|candidate| candidate.size).sum();
        let wanted = total as f64 * self.percent / 100.0;
        let limit = SignedDuration::try_from(self.reread_within).unwrap_or(SignedDuration::MAX);
        let is_due = |candidate: &Candidate| now.duration_since(candidate.last_read) + UNTIL_NEXT_RUN > limit;
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by_key(|&index| candidates[index].last_read);
        let mut chosen = vec![false; candidates.len()];
        let mut bytes = 0;
        for index in order {
            let candidate = &candidates[index];
            if (bytes as f64) < wanted || is_due(candidate) {
                chosen[index] = true;
                bytes += candidate.size;
            }
        }
        chosen
    }
}

/// What the proofs say about when something was last read.
pub(super) struct LastReads<'p> {
    proofs: Vec<&'p Proof>,
}

impl<'p> LastReads<'p> {
    /// Takes proofs that are sorted, newest first; for a full run only those that looked as closely.
    pub(super) fn new(proofs: &'p [Proof], quick: bool) -> Self {
        Self { proofs: proofs.iter().filter(|proof| quick || proof.kind != ProofKind::Quick).collect() }
    }

    pub(super) fn of_object(&self, id: &BackupId, name: &str) -> Option<Timestamp> {
        let tells = |proof: &&&Proof| {
            proof.backups.iter().filter(|told| told.id == *id).any(|told| match &told.read {
                // A drill does not bring included directories back.
                None => told.passed && !(proof.kind == ProofKind::Drill && name.starts_with("included/")),
                Some(stretches) => {
                    stretches.iter().any(|(first, last)| first.as_str() <= name && name <= last.as_str())
                }
            })
        };
        self.proofs.iter().find(tells).map(|proof| proof.time)
    }

    pub(super) fn of_segment(&self, segment: SegmentName) -> Option<Timestamp> {
        let tells = |proof: &&&Proof| {
            proof
                .wal
                .iter()
                .any(|read| read.first.timeline == segment.timeline && read.first <= segment && segment <= read.last)
        };
        self.proofs.iter().find(tells).map(|proof| proof.time)
    }
}

/// The stretches of what is true in a list, by the first and the last of each.
pub(super) fn stretches<T>(list: &[T], is_in: impl Fn(&T) -> bool) -> Vec<(&T, &T)> {
    let mut found: Vec<(&T, &T)> = Vec::new();
    let mut goes_on = false;
    for item in list {
        match (is_in(item), goes_on, found.last_mut()) {
            (true, true, Some((_, last))) => *last = item,
            (true, ..) => found.push((item, item)),
            (false, ..) => {}
        }
        goes_on = is_in(item);
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 24 * 3600;

    fn day(number: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + number * DAY).unwrap()
    }

    #[test]
    fn stretches_hold_what_is_true_and_nothing_else() {
        let list = [1, 2, 4, 6, 7, 8, 10];
        assert_eq!(stretches(&list, |number| number % 2 == 0), [(&2, &6), (&8, &10)]);
        assert!(stretches(&list, |_| false).is_empty());
    }

    proptest! {
        /// Night after night: each run is near its share, and nothing waits longer than it may.
        #[test]
        fn everything_is_read_again_in_time(
            sizes in proptest::collection::vec(1_u64..1000, 1..60),
            percent in 1.0_f64..30.0,
            days in 2_i64..40,
        ) {
            let sample = Sample { percent, reread_within: Duration::from_secs((days * DAY) as u64) };
            let mut candidates: Vec<Candidate> =
                sizes.iter().enumerate().map(|(index, &size)| Candidate { size, last_read: day(-(index as i64 % days)) }).collect();
            let total: u64 = sizes.iter().sum();
            for night in 1..100 {
                let chosen = sample.choose(&candidates, day(night));
                let bytes: u64 = chosen.iter().zip(&sizes).filter(|(chosen, _)| **chosen).map(|(_, size)| size).sum();
                prop_assert!(bytes as f64 >= total as f64 * percent / 100.0);
                for (candidate, chosen) in candidates.iter_mut().zip(&chosen) {
                    prop_assert!(*chosen || day(night + 1).duration_since(candidate.last_read).as_secs() <= days * DAY);
                    if *chosen {
                        candidate.last_read = day(night);
                    }
                }
            }
        }

        /// Where the share is enough by itself, no run reads more than it and one object.
        #[test]
        fn a_nightly_run_stays_cheap(count in 40_usize..200) {
            let sample = Sample { percent: 10.0, reread_within: Duration::from_secs(30 * DAY as u64) };
            let mut candidates = vec![Candidate { size: 100, last_read: day(0) }; count];
            for night in 1..60 {
                let chosen = sample.choose(&candidates, day(night));
                let read = chosen.iter().filter(|chosen| **chosen).count();
                prop_assert!(read <= count / 10 + 1, "{read} of {count}");
                candidates.iter_mut().zip(&chosen).filter(|(_, chosen)| **chosen).for_each(|(c, _)| c.last_read = day(night));
            }
        }
    }
}
