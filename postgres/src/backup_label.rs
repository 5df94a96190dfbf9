//! `backup_label`: where recovery of a base backup begins.
//!
//! The file must be stored and restored byte for byte; this reader only looks at it. It is as strict as the server,
//! which refuses to start on a label it cannot read, and stricter: a line that is not known is refused too, so that a
//! label with a newline in its name is caught before the backup counts. START TIME is in the server's own time zone,
//! with an abbreviation, and is not read.

use thiserror::Error;

use crate::{Lsn, SegmentName, TimelineId};

/// A label line is short; the free text is at most 1024 bytes.
const MAX_BYTES: usize = 16 * 1024;

/// The content of `backup_label`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// The segment that holds the start position, as the server names it.
    pub start_segment: SegmentName,
    /// The checkpoint record that recovery begins with.
    pub checkpoint_lsn: Lsn,
    /// How the backup was taken.
    pub backup_method: BackupMethod,
    /// Whether the source was a primary or a standby.
    pub backup_from: BackupSource,
    /// The free text given when the backup was started.
    pub label: Vec<u8>,
    /// The timeline the backup started on.
    pub start_timeline: Option<TimelineId>,
    /// For an incremental backup, where its parent started.
    pub incremental_from: Option<IncrementalFrom>,
}

/// How a base backup was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupMethod {
    /// Through the replication protocol, or by the non-exclusive functions.
    Streamed,
    /// By the exclusive function that 15 removed.
    PgStartBackup,
}

/// The kind of server a backup was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupSource {
    /// A primary.
    Primary,
    /// A standby.
    Standby,
}

/// The start of the backup that an incremental one builds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// The parent's start position.
    pub lsn: Lsn,
    /// The parent's start timeline.
    pub timeline: TimelineId,
}

/// The content is not a backup label.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BackupLabelError {
    /// Far larger than any real label.
    #[error("backup_label has {bytes} bytes, more than the {MAX_BYTES} that are read")]
    TooLarge {
        /// The size found.
        bytes: usize,
    },
    /// The last line has no newline.
    #[error("backup_label is cut short: its last line has no newline")]
    NoNewline,
    /// A line that the server always writes is missing.
    #[error("backup_label has no line {line:?}")]
    Missing {
        /// The beginning of the line.
        line: &'static str,
    },
    /// A line appears twice.
    #[error("backup_label has the line {line:?} twice")]
    Twice {
        /// The beginning of the line.
        line: &'static str,
    },
    /// A line is not one that a server writes.
    #[error("backup_label has an unknown line {found:?}")]
    Unknown {
        /// The line.
        found: String,
    },
    /// The value of a line cannot be read.
    #[error("backup_label has {found:?} after {line:?}")]
    Value {
        /// The beginning of the line.
        line: &'static str,
        /// The rest of it.
        found: String,
    },
    /// The two mentions of the timeline differ.
    #[error("backup_label starts on timeline {timeline}, but in segment {segment}")]
    TimelineMismatch {
        /// The timeline of its own line.
        timeline: TimelineId,
        /// The segment name.
        segment: SegmentName,
    },
}

const START_WAL: &str = "START WAL LOCATION: ";
const CHECKPOINT: &str = "CHECKPOINT LOCATION: ";
const METHOD: &str = "BACKUP METHOD: ";
const FROM: &str = "BACKUP FROM: ";
const START_TIME: &str = "START TIME: ";
const LABEL: &str = "LABEL: ";
const START_TIMELINE: &str = "START TIMELINE: ";
const INCREMENTAL_LSN: &str = "INCREMENTAL FROM LSN: ";
const INCREMENTAL_TIMELINE: &str = "INCREMENTAL FROM TLI: ";
const LINES: [&str; 9] =
    [START_WAL, CHECKPOINT, METHOD, FROM, START_TIME, LABEL, START_TIMELINE, INCREMENTAL_LSN, INCREMENTAL_TIMELINE];

impl BackupLabel {
    /// Reads a label.
    pub fn parse(content: &[u8]) -> Result<Self, BackupLabelError> {
        let lines = Lines::split(content)?;
        let (start_lsn, start_segment) = lines.required(START_WAL, |value| {
            let (lsn, file) = value.strip_suffix(')')?.split_once(" (file ")?;
            Some((lsn.parse().ok()?, file.parse::<SegmentName>().ok()?))
        })?;
        let backup_method = lines.required(METHOD, |value| match value {
            "streamed" => Some(BackupMethod::Streamed),
            "pg_start_backup" => Some(BackupMethod::PgStartBackup),
            _ => None,
        })?;
        let backup_from = lines.required(FROM, |value| match value {
            "primary" => Some(BackupSource::Primary),
            // 13 still wrote the older word.
            "master" => Some(BackupSource::Primary),
            "standby" => Some(BackupSource::Standby),
            _ => None,
        })?;
        let start_timeline: Option<TimelineId> = lines.optional(START_TIMELINE, |value| value.parse().ok())?;
        if let Some(timeline) = start_timeline
            && timeline != start_segment.timeline
        {
            return Err(BackupLabelError::TimelineMismatch { timeline, segment: start_segment });
        }
        let parent_lsn = lines.optional(INCREMENTAL_LSN, |value| value.parse().ok())?;
        let parent_timeline = lines.optional(INCREMENTAL_TIMELINE, |value| value.parse().ok())?;
        let incremental_from = match (parent_lsn, parent_timeline) {
            (Some(lsn), Some(timeline)) => Some(IncrementalFrom { lsn, timeline }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(BackupLabelError::Missing { line: INCREMENTAL_TIMELINE });
            }
            (None, Some(_)) => {
                return Err(BackupLabelError::Missing { line: INCREMENTAL_LSN });
            }
        };
        Ok(Self {
            start_lsn,
            start_segment,
            checkpoint_lsn: lines.required(CHECKPOINT, |value| value.parse().ok())?,
            backup_method,
            backup_from,
            label: lines.value(LABEL).ok_or(BackupLabelError::Missing { line: LABEL })?.to_vec(),
            start_timeline,
            incremental_from,
        })
    }
}

/// The value behind each known line.
struct Lines<'a>([Option<&'a [u8]>; LINES.len()]);

impl<'a> Lines<'a> {
    fn split(content: &'a [u8]) -> Result<Self, BackupLabelError> {
        if content.len() > MAX_BYTES {
            return Err(BackupLabelError::TooLarge { bytes: content.len() });
        }
        let content = content.strip_suffix(b"\n").ok_or(BackupLabelError::NoNewline)?;
        let mut values = [None; LINES.len()];
        for bytes in content.split(|&b| b == b'\n') {
            let known = LINES.iter().zip(&mut values).find_map(|(line, value)| {
                let rest = bytes.strip_prefix(line.as_bytes())?;
                Some((line, value, rest))
            });
            let Some((line, value, rest)) = known else {
                return Err(BackupLabelError::Unknown { found: lossy(bytes) });
            };
            if value.replace(rest).is_some() {
                return Err(BackupLabelError::Twice { line });
            }
        }
        Ok(Self(values))
    }

    fn value(&self, line: &'static str) -> Option<&'a [u8]> {
        LINES.iter().zip(self.0).find_map(|(known, value)| if *known == line { value } else { None })
    }

    fn optional<T>(
        &self,
        line: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, BackupLabelError> {
        let Some(value) = self.value(line) else {
            return Ok(None);
        };
        let read = std::str::from_utf8(value).ok().and_then(read);
        read.map(Some).ok_or_else(|| BackupLabelError::Value { line, found: lossy(value) })
    }

    fn required<T>(&self, line: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, BackupLabelError> {
        self.optional(line, read)?.ok_or(BackupLabelError::Missing { line })
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(200).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REAL: &[u8] = include_bytes!("../tests/samples/15/backup_label");

    fn edited(from: &str, to: &str) -> Result<BackupLabel, BackupLabelError> {
        let text = std::str::from_utf8(REAL).unwrap();
        assert!(text.contains(from), "{from:?}");
        BackupLabel::parse(text.replace(from, to).as_bytes())
    }

    #[test]
    fn a_real_label_is_read() {
        let label = BackupLabel::parse(REAL).unwrap();
        assert_eq!(label.backup_method, BackupMethod::Streamed);
        assert_eq!(label.backup_from, BackupSource::Primary);
        assert_eq!(label.label, b"sample");
        assert_eq!(label.start_timeline, Some(TimelineId::FIRST));
        assert_eq!(label.start_segment.timeline, TimelineId::FIRST);
        assert!(label.checkpoint_lsn > label.start_lsn);
        assert_eq!(label.incremental_from, None);
        let size = crate::SegmentSize::new(1024 * 1024).unwrap();
        assert_eq!(SegmentName::containing(TimelineId::FIRST, label.start_lsn, size), label.start_segment);
    }

    #[test]
    fn an_incremental_label_names_its_parent() {
        let real = include_bytes!("../tests/samples/18/backup_label");
        let parent = BackupLabel::parse(real).unwrap().incremental_from.unwrap();
        assert_eq!((parent.lsn, parent.timeline), (Lsn::new(0xC0_0028), TimelineId::FIRST));
        let half = edited("START TIMELINE: 1", "START TIMELINE: 1\nINCREMENTAL FROM LSN: 0/1C000028");
        assert_eq!(half, Err(BackupLabelError::Missing { line: INCREMENTAL_TIMELINE }));
    }

    #[test]
    fn a08_an_empty_label_is_read_and_a_newline_in_it_refused() {
        assert_eq!(edited("LABEL: sample", "LABEL: ").unwrap().label, b"");
        let split = edited("LABEL: sample", "LABEL: sam\nple");
        assert_eq!(split, Err(BackupLabelError::Unknown { found: "ple".to_owned() }));
    }

    #[test]
    fn f08_damaged_labels_are_refused() {
        assert!(matches!(edited("\n", "\r\n"), Err(BackupLabelError::Value { .. })));
        assert!(matches!(
            edited("START WAL LOCATION: 0/", "START WAL LOCATION: 0"),
            Err(BackupLabelError::Value { .. })
        ));
        assert!(matches!(
            edited("START TIMELINE: 1", "START TIMELINE: 2"),
            Err(BackupLabelError::TimelineMismatch { .. })
        ));
        assert!(matches!(edited("START TIMELINE: 1", "START TIMELINE: x"), Err(BackupLabelError::Value { .. })));
        assert!(matches!(edited("LABEL: sample", "LABEL: sample\nLABEL: b"), Err(BackupLabelError::Twice { .. })));
        assert!(matches!(edited("LABEL: sample", "LABEL: sample\nEXTRA: b"), Err(BackupLabelError::Unknown { .. })));
        assert!(matches!(edited("streamed", "guessed"), Err(BackupLabelError::Value { .. })));
        assert_eq!(edited("START TIMELINE: 1\n", "START TIMELINE: 1"), Err(BackupLabelError::NoNewline));
        assert_eq!(BackupLabel::parse(b""), Err(BackupLabelError::NoNewline));
        let text = std::str::from_utf8(REAL).unwrap();
        for line in text.lines().filter(|line| !line.starts_with("START TIME")) {
            let without = text.replace(&format!("{line}\n"), "");
            assert!(matches!(BackupLabel::parse(without.as_bytes()), Err(BackupLabelError::Missing { .. })), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(content: Vec<u8>, at in 0..REAL.len(), byte: u8, length in 0..REAL.len()) {
            let _unused = BackupLabel::parse(&content);
            let mut mutated = REAL.to_vec();
            mutated[at] = byte;
            let _unused = BackupLabel::parse(&mutated);
            let _unused = BackupLabel::parse(&REAL[..length]);
        }
    }
}
