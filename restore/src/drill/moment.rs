//! A random moment that can be restored: over the years, drills of such moments prove all of the archive and not only
//! its end.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use jiff::Timestamp;
use pgark_command::TargetTime;

use crate::archive::Archive;
use crate::catalogue::Catalogue;
use crate::moments::{Window, reachable};
use crate::target::{RecoveryTarget, Target, TargetTimeline};

/// Chooses a moment, each as likely as any other, of all windows that `list` shows. Where no transaction has followed a
/// backup, it is the end of a backup.
pub(crate) async fn random(catalogue: &Catalogue, archive: &Archive) -> Target {
    let windows: Vec<Window> = reachable(catalogue, archive).await.into_iter().map(|way| way.window).collect();
    let mut target = choose(&windows, random_number());
    if target.stop == RecoveryTarget::Immediate {
        target.timeline = TargetTimeline::Latest;
    }
    target
}

/// As random as the keys of the standard library's hash tables are.
fn random_number() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn choose(windows: &[Window], random: u64) -> Target {
    let spans: Vec<(&Window, u64)> = windows.iter().filter_map(|window| Some((window, span(window)?))).collect();
    let total: u64 = spans.iter().map(|(_, span)| span).sum();
    let mut offset = random.checked_rem(total).unwrap_or(0);
    for (window, span) in spans {
        if offset < span {
            let moment = window.from.as_microsecond().saturating_add_unsigned(offset);
            let stop = TargetTime::from(Timestamp::from_microsecond(moment).unwrap_or(window.from));
            let timeline = TargetTimeline::Number(window.timeline);
            return Target { stop: RecoveryTarget::Time(stop), timeline, ..Target::end_of_archive() };
        }
        offset -= span;
    }
    Target { stop: RecoveryTarget::Immediate, ..Target::end_of_archive() }
}

/// Microseconds from the first moment of a window to its last transaction, before which every moment can be reached.
fn span(window: &Window) -> Option<u64> {
    let last = window.last_transaction?.as_microsecond();
    u64::try_from(last - window.from.as_microsecond()).ok().filter(|span| *span > 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(timeline: u32, from: i64, last: Option<i64>) -> Window {
        let time = |second| Timestamp::from_second(second).unwrap();
        Window {
            timeline: pgark_postgres::TimelineId::new(timeline).unwrap(),
            backups: Vec::new(),
            from: time(from),
            from_lsn: "0/1000000".parse().unwrap(),
            last_transaction: last.map(time),
            to_lsn: "0/2000000".parse().unwrap(),
            unreadable: None,
            gap_at: None,
        }
    }

    proptest! {
        #[test]
        fn every_choice_lies_in_a_window_of_its_timeline(random: u64) {
            let windows = [window(1, 100, Some(200)), window(2, 500, None), window(3, 900, Some(1000))];
            let target = choose(&windows, random);
            let RecoveryTarget::Time(time) = target.stop else { panic!("{target:?}") };
            let second = time.timestamp().as_second();
            match target.timeline {
                TargetTimeline::Number(timeline) if timeline.get() == 1 => prop_assert!((100..200).contains(&second)),
                TargetTimeline::Number(timeline) if timeline.get() == 3 => prop_assert!((900..1000).contains(&second)),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    #[test]
    fn without_a_transaction_it_is_the_end_of_a_backup() {
        assert_eq!(choose(&[window(1, 100, None), window(1, 100, Some(100))], 7).stop, RecoveryTarget::Immediate);
        assert_eq!(choose(&[], 7).stop, RecoveryTarget::Immediate);
    }
}
