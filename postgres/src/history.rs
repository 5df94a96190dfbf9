//! Timeline history files: which timeline holds the WAL at a position.
//!
//! A history file has a line for each ancestor, oldest first: its number (decimal), the position where the next one
//! branched off, and a reason for people. Timeline 1 has no file. Positions can only be compared along one such path.
//!
//! Recovery that was asked for a timeline but stopped before reaching it writes a switch position *below* the one
//! before it. The server reads such a file from its end, so a newer ancestor's switch also ends all older ones; the
//! ranges here are computed the same way, and the skipped ancestor has an empty one.

use thiserror::Error;

use crate::{Lsn, LsnParseError, TimelineId};

/// The largest history file that is read; a line is under 200 bytes, so this is thousands of promotions.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The ancestors of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    entries: Vec<HistoryEntry>,
}

/// An ancestor, and where its child branched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The position written in the file where the next timeline begins.
    pub switch_lsn: Lsn,
    /// Why the switch happened, for people; bytes that are not UTF-8 are replaced.
    pub reason: String,
}

/// The content is not a timeline history.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HistoryError {
    /// Far larger than any real history file.
    #[error("history of timeline {timeline} has {bytes} bytes, more than the {MAX_BYTES} that are read")]
    TooLarge {
        /// The timeline the file belongs to.
        timeline: TimelineId,
        /// The size found.
        bytes: usize,
    },
    /// A line does not have the form `timeline <tab> position <tab> reason`.
    #[error(
        "history of timeline {timeline}, line {line}: expected a timeline number and a WAL position, found {found:?}"
    )]
    Line {
        /// The timeline the file belongs to.
        timeline: TimelineId,
        /// The line, counted from 1.
        line: usize,
        /// The line's text.
        found: String,
    },
    /// The position of a line cannot be read.
    #[error("history of timeline {timeline}, line {line}")]
    Position {
        /// The timeline the file belongs to.
        timeline: TimelineId,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with the position.
        #[source]
        source: LsnParseError,
    },
    /// Ancestors must rise, and stay below the timeline itself.
    #[error("history of timeline {timeline}, line {line}: timeline {found} must be above {after} and below {timeline}")]
    Order {
        /// The timeline the file belongs to.
        timeline: TimelineId,
        /// The line, counted from 1.
        line: usize,
        /// The timeline found.
        found: TimelineId,
        /// The ancestor on the line before, or zero.
        after: u32,
    },
    /// Every timeline but the first has a parent.
    #[error("history of timeline {timeline} names no parent")]
    NoParent {
        /// The timeline the file belongs to.
        timeline: TimelineId,
    },
}

impl TimelineHistory {
    /// Returns the history of timeline 1, which has no file.
    pub const fn first() -> Self {
        Self { timeline: TimelineId::FIRST, entries: Vec::new() }
    }

    /// Reads the history file of `timeline`.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        if content.len() > MAX_BYTES {
            return Err(HistoryError::TooLarge { timeline, bytes: content.len() });
        }
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (index, bytes) in content.split(|&b| b == b'\n').enumerate() {
            let text = String::from_utf8_lossy(bytes);
            let text = text.trim_ascii();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let entry = parse_line(timeline, index + 1, text)?;
            let after = entries.last().map_or(0, |previous| previous.timeline.get());
            if entry.timeline.get() <= after || entry.timeline >= timeline {
                return Err(HistoryError::Order { timeline, line: index + 1, found: entry.timeline, after });
            }
            entries.push(entry);
        }
        if entries.is_empty() && timeline != TimelineId::FIRST {
            return Err(HistoryError::NoParent { timeline });
        }
        Ok(Self { timeline, entries })
    }

    /// Returns the timeline whose history this is.
    pub const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Returns the ancestors as the file lists them, oldest first.
    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// Returns the timeline of this path that holds the byte at `lsn`.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        // From the end, as the server does: a switch below an older one ends the older timeline as well.
        let mut holder = self.timeline;
        for entry in self.entries.iter().rev() {
            if lsn >= entry.switch_lsn {
                break;
            }
            holder = entry.timeline;
        }
        holder
    }

    /// Returns where `timeline` ends on this path, or nothing if it is the last one or not on the path.
    ///
    /// A backup on that timeline is usable on this path if its stop position is at or below this one.
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.path().into_iter().find(|&(ancestor, _, _)| ancestor == timeline).and_then(|(_, _, end)| end)
    }

    /// Tells whether the byte at `lsn` on `timeline` belongs to this path.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.timeline_at(lsn) == timeline
    }

    /// Returns each timeline of the path, oldest first, with where it begins and where it ends (exclusive).
    ///
    /// The last one is the timeline itself and has no end. The ranges touch, and one may be empty.
    pub fn path(&self) -> Vec<(TimelineId, Lsn, Option<Lsn>)> {
        let mut ends: Vec<Lsn> = self.entries.iter().map(|entry| entry.switch_lsn).collect();
        let mut lowest = Lsn::MAX;
        for end in ends.iter_mut().rev() {
            lowest = lowest.min(*end);
            *end = lowest;
        }
        let mut begin = Lsn::ZERO;
        let mut path = Vec::with_capacity(ends.len() + 1);
        for (entry, end) in self.entries.iter().zip(ends) {
            path.push((entry.timeline, begin, Some(end)));
            begin = end;
        }
        path.push((self.timeline, begin, None));
        path
    }
}

fn parse_line(timeline: TimelineId, line: usize, text: &str) -> Result<HistoryEntry, HistoryError> {
    let malformed = || HistoryError::Line { timeline, line, found: text.chars().take(200).collect() };
    let (ancestor, rest) = text.split_once(|c: char| c.is_ascii_whitespace()).ok_or_else(malformed)?;
    let ancestor = ancestor.parse().map_err(|_| malformed())?;
    let rest = rest.trim_ascii_start();
    let (position, reason) = rest.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((rest, ""));
    let switch_lsn = position.parse().map_err(|source| HistoryError::Position { timeline, line, source })?;
    Ok(HistoryEntry { timeline: ancestor, switch_lsn, reason: reason.trim_ascii().to_owned() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIVE: &[u8] = b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000110\tbefore 2026-01-01 00:00:00+00\n\
        # a comment\n4\t1/28\tat restore point \"\xff\"\n";

    fn id(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn five() -> TimelineHistory {
        TimelineHistory::parse(id(5), FIVE).unwrap()
    }

    #[test]
    fn ancestors_are_read() {
        let history = five();
        assert_eq!(history.timeline(), id(5));
        let entries: Vec<_> = history.entries().iter().map(|e| (e.timeline.get(), e.switch_lsn.as_u64())).collect();
        assert_eq!(entries, [(1, 0x300_0000), (2, 0x500_0110), (4, 0x1_0000_0028)]);
        assert_eq!(history.entries()[0].reason, "no recovery target specified");
        assert_eq!(history.entries()[2].reason, "at restore point \"\u{fffd}\"");
    }

    #[test]
    fn a_switch_position_belongs_to_the_child() {
        let history = five();
        for (lsn, timeline) in [
            (0, 1),
            (0x2FF_FFFF, 1),
            (0x300_0000, 2),
            (0x500_010F, 2),
            (0x500_0110, 4),
            (0x1_0000_0027, 4),
            (0x1_0000_0028, 5),
            (u64::MAX, 5),
        ] {
            assert_eq!(history.timeline_at(Lsn::new(lsn)), id(timeline), "{lsn:X}");
            assert!(history.contains(id(timeline), Lsn::new(lsn)));
            assert!(!history.contains(id(3), Lsn::new(lsn)));
        }
        assert_eq!(history.switch_point(id(2)), Some(Lsn::new(0x500_0110)));
        assert_eq!(history.switch_point(id(3)), None);
        assert_eq!(history.switch_point(id(5)), None);
    }

    #[test]
    fn the_first_timeline_holds_everything() {
        let first = TimelineHistory::first();
        assert_eq!(first.timeline_at(Lsn::MAX), TimelineId::FIRST);
        assert_eq!(first.path(), [(TimelineId::FIRST, Lsn::ZERO, None)]);
        assert_eq!(TimelineHistory::parse(TimelineId::FIRST, b""), Ok(first));
    }

    #[test]
    fn recovery_that_stopped_before_its_timeline_leaves_an_empty_range() {
        let history = TimelineHistory::parse(id(3), b"1\t0/5000000\tx\n2\t0/4000000\ty\n").unwrap();
        let lsn = Lsn::new;
        assert_eq!(
            history.path(),
            [
                (id(1), Lsn::ZERO, Some(lsn(0x400_0000))),
                (id(2), lsn(0x400_0000), Some(lsn(0x400_0000))),
                (id(3), lsn(0x400_0000), None)
            ]
        );
        assert_eq!(history.timeline_at(lsn(0x3FF_FFFF)), id(1));
        assert_eq!(history.timeline_at(lsn(0x480_0000)), id(3));
        assert_eq!(history.switch_point(id(1)), Some(lsn(0x400_0000)));
    }

    #[test]
    fn other_contents_are_refused() {
        let parse = |content: &[u8]| TimelineHistory::parse(id(5), content).unwrap_err();
        assert_eq!(parse(b""), HistoryError::NoParent { timeline: id(5) });
        assert_eq!(parse(b"# only\n\n"), HistoryError::NoParent { timeline: id(5) });
        for content in [&b"1"[..], b"x\t0/1\n", b"0\t0/1\n", b"-1\t0/1\n", b"\0", b"1\n"] {
            assert!(matches!(parse(content), HistoryError::Line { line: 1, .. }), "{content:?}");
        }
        assert!(matches!(parse(b"1\t0/1\tx\n2\t01\n"), HistoryError::Position { line: 2, .. }));
        for content in [&b"2\t0/1\n1\t0/2\n"[..], b"1\t0/1\n1\t0/2\n", b"1\t0/1\n5\t0/2\n", b"1\t0/1\n6\t0/2\n"] {
            assert!(matches!(parse(content), HistoryError::Order { line: 2, .. }), "{content:?}");
        }
        assert!(matches!(parse(&vec![b'\n'; MAX_BYTES + 1]), HistoryError::TooLarge { .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(content: Vec<u8>, at in 0..FIVE.len(), byte: u8) {
            let _unused = TimelineHistory::parse(id(5), &content);
            let mut mutated = FIVE.to_vec();
            mutated[at] = byte;
            let _unused = TimelineHistory::parse(id(5), &mutated);
        }

        // The server searches the ranges of the file from the newest to the oldest; see tliOfPointInHistory.
        #[test]
        fn the_holder_is_the_one_the_server_finds(switches in prop::collection::vec(0u64..50, 0..6), at in 0u64..60) {
            let text: String =
                switches.iter().enumerate().map(|(i, lsn)| format!("{}\t0/{lsn:X}\tx\n", i + 1)).collect();
            let timeline = id(switches.len() as u32 + 1);
            let history = TimelineHistory::parse(timeline, text.as_bytes()).unwrap();
            let mut expected = None;
            for newest in (0..=switches.len()).rev() {
                let begin = if newest == 0 { 0 } else { switches[newest - 1] };
                let end = switches.get(newest).copied().unwrap_or(u64::MAX);
                if expected.is_none() && begin <= at && at < end {
                    expected = Some(id(newest as u32 + 1));
                }
            }
            prop_assert_eq!(Some(history.timeline_at(Lsn::new(at))), expected);
        }
    }
}
