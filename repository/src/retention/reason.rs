//! Why something is kept or goes, in words for people and as names for programs.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::backup_id::BackupId;

/// Why a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum KeepReason {
    /// No policy says what may go, or nothing may go.
    Everything,
    /// Fewer full backups than the policy keeps are newer.
    Full {
        /// How many the policy keeps.
        keep: u32,
    },
    /// It ended within the window.
    InWindow {
        /// Where the window begins.
        since: Timestamp,
    },
    /// The first moments of the window are restored from it.
    WindowBegins {
        /// Where the window begins.
        since: Timestamp,
    },
    /// The WAL behind it belongs to a backup that runs.
    BackupRuns,
    /// The last one of a day.
    Daily {
        /// The day.
        period: String,
    },
    /// The last one of a week.
    Weekly {
        /// The ISO week.
        period: String,
    },
    /// The last one of a month.
    Monthly {
        /// The month.
        period: String,
    },
    /// The last one of a year.
    Yearly {
        /// The year.
        period: String,
    },
    /// Somebody holds it.
    Held {
        /// Why.
        reason: String,
    },
    /// Nothing newer can be restored.
    LastRestorable,
    /// The store does not let it be deleted yet.
    Locked {
        /// What the store said.
        words: String,
    },
    /// A kept backup builds on it.
    ParentOf {
        /// That backup.
        id: BackupId,
    },
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("nothing is deleted"),
            Self::Full { keep: 1 } => f.write_str("the newest full backup (full = 1)"),
            Self::Full { keep } => write!(f, "among the newest full backups (full = {keep})"),
            Self::InWindow { since } => write!(f, "ended since {}", minute(*since)),
            Self::WindowBegins { since } => write!(f, "every moment since {} is restored from it", minute(*since)),
            Self::BackupRuns => f.write_str("a backup that runs needs the WAL behind it"),
            Self::Daily { period } | Self::Weekly { period } | Self::Monthly { period } | Self::Yearly { period } => {
                write!(f, "the last of {period}")
            }
            Self::Held { reason } => write!(f, "held: {reason}"),
            Self::LastRestorable => f.write_str("the last backup that can be restored"),
            Self::Locked { words } => write!(f, "locked {words}"),
            Self::ParentOf { id } => write!(f, "{id} builds on it"),
        }
    }
}

/// Why WAL is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "rule", rename_all = "snake_case")]
pub enum WalReason {
    /// No policy says what may go, or nothing may go.
    Everything,
    /// Every moment since then can be restored.
    Moments {
        /// The first of these moments.
        since: Timestamp,
    },
    /// It makes a kept backup consistent.
    Consistency {
        /// That backup.
        id: BackupId,
    },
    /// A backup that runs began before another one ended, and may need it.
    BackupRuns,
}

impl fmt::Display for WalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("nothing is deleted"),
            Self::Moments { since } => write!(f, "every moment since {}", minute(*since)),
            Self::Consistency { id } => write!(f, "makes {id} consistent"),
            Self::BackupRuns => f.write_str("a backup that runs may need it"),
        }
    }
}

/// Why no backup and no WAL may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A commit mark cannot be read, so what its backup needs is not known.
    Unreadable {
        /// The backup.
        id: BackupId,
        /// Why it cannot be read.
        reason: String,
    },
    /// There are backups, and none that counts.
    NothingToRestore {
        /// The newest backup.
        newest: BackupId,
        /// What is wrong with it.
        fault: String,
    },
    /// There is no finished backup yet.
    NoBackup,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { id, reason } => {
                write!(f, "no backup and no WAL is deleted, because backup {id} may need any of it: {reason}")
            }
            Self::NothingToRestore { newest, fault } => {
                write!(
                    f,
                    "no backup and no WAL is deleted, because no full backup can be relied on; of {newest}, {fault}"
                )
            }
            Self::NoBackup => f.write_str("no WAL is deleted, because there is no finished backup yet"),
        }
    }
}

/// What becomes of a folder without a commit mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum LeftoverFate {
    /// It may still be written: it is kept, and so is the WAL since it began.
    Running {
        /// When it counts as interrupted unless something is written to it.
        until: Timestamp,
    },
    /// Its backup was interrupted.
    DeleteInterrupted {
        /// When something was last written to it.
        last_written: Timestamp,
    },
    /// It is what is left of a backup whose deletion was interrupted.
    FinishDeletion,
}

impl LeftoverFate {
    /// Whether it may still be written.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }
}

impl fmt::Display for LeftoverFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { until } => {
                write!(f, "not finished: it runs, or is deleted after {} unless it goes on", minute(*until))
            }
            Self::DeleteInterrupted { last_written } => {
                write!(f, "interrupted: nothing was written to it since {}", minute(*last_written))
            }
            Self::FinishDeletion => f.write_str("the rest of a backup whose deletion was interrupted"),
        }
    }
}

/// A moment in UTC, to the minute.
fn minute(time: Timestamp) -> String {
    let utc = TimeZone::UTC.to_datetime(time);
    format!("{} {:02}:{:02}+00", utc.date(), utc.time().hour(), utc.time().minute())
}
