//! The name of a backup: when it began, and its kind. Sorts by time as text does.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Everything.
    Full,
    /// What changed since its parent.
    Incremental,
}

impl BackupKind {
    /// The kind of a backup that builds on this one, or on none.
    #[must_use]
    pub fn with_parent(parent: Option<&BackupId>) -> Self {
        if parent.is_some() { Self::Incremental } else { Self::Full }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incr",
        }
    }
}

/// A backup's id, `20261120T020003Z-full`: UTC start time and kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    /// The id of a backup that starts at `start` (whole seconds count).
    #[must_use]
    pub fn new(start: Timestamp, kind: BackupKind) -> Self {
        let start = start.to_zoned(TimeZone::UTC);
        Self(format!("{}-{}", start.strftime("%Y%m%dT%H%M%SZ"), kind.suffix()))
    }

    /// The start time in it; nothing if the digits make no time.
    #[must_use]
    pub fn start(&self) -> Option<Timestamp> {
        let (time, _) = self.0.split_once('-')?;
        let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
        TimeZone::UTC.to_timestamp(time).ok()
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no backup id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a backup id; an id looks like 20261120T020003Z-full")]
pub struct BackupIdError(String);

impl FromStr for BackupId {
    type Err = BackupIdError;

    fn from_str(text: &str) -> Result<Self, BackupIdError> {
        let shape = |pattern: &[u8]| {
            text.len() == pattern.len()
                && text.bytes().zip(pattern).all(|(byte, pattern)| match pattern {
                    b'0' => byte.is_ascii_digit(),
                    other => byte == *other,
                })
        };
        if shape(b"00000000T000000Z-full") || shape(b"00000000T000000Z-incr") {
            Ok(Self(text.to_owned()))
        } else {
            Err(BackupIdError(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for BackupId {
    type Error = BackupIdError;

    fn try_from(text: String) -> Result<Self, BackupIdError> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_and_sorts_by_time() {
        let first = BackupId::new("2026-11-20T02:00:03.9Z".parse().unwrap(), BackupKind::Full);
        assert_eq!(first.as_str(), "20261120T020003Z-full");
        assert_eq!(first.as_str().parse::<BackupId>().unwrap(), first);
        let second = BackupId::new("2026-11-20T02:00:04Z".parse().unwrap(), BackupKind::Incremental);
        assert!(first < second);
        assert_eq!(first.start(), Some("2026-11-20T02:00:03Z".parse().unwrap()));
        assert_eq!("20269920T020003Z-full".parse::<BackupId>().unwrap().start(), None);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "../../etc", "20261120T020003Z-fullx", "20261120t020003Z-full", "20261120T02000３Z-full"] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
    }
}
