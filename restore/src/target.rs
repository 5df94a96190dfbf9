//! What a restore aims at: the moment to stop, on which timeline, and what to do there.
//!
//! The names are PostgreSQL's. What the server would misread or accept in silence is refused here with a sentence:
//! two targets, a timeline `010` that it takes for 8, a name that it cuts off, a transaction number that cannot commit.

use std::fmt;

use pgark_command::TargetTime;
use pgark_postgres::{Lsn, TimelineId};
use thiserror::Error;

/// The server keeps the name of a restore point in 64 bytes, the last one a NUL.
const MAX_NAME_BYTES: usize = 63;
/// 1 and 2 stand for "bootstrap" and "frozen"; no transaction has them.
const FIRST_NORMAL_XID: u32 = 3;

/// Everything a user can say about where recovery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub stop: RecoveryTarget,
    /// Whether what stands at the stopping point is replayed; means something for a time, a position and a transaction.
    pub inclusive: bool,
    pub timeline: TargetTimeline,
    pub action: TargetAction,
}

/// Where replay stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// Nowhere before the WAL ends.
    EndOfArchive,
    /// As soon as the backup is consistent.
    Immediate,
    /// Before the first transaction that ended later.
    Time(TargetTime),
    /// At the first record that begins there or later.
    Lsn(Lsn),
    /// When this transaction ended.
    Xid(u32),
    /// At the restore point of this name.
    Name(String),
}

/// Which branch of the cluster's history is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The newest one that the archive knows.
    Latest,
    /// The one on which the backup was taken.
    Current,
    Number(TimelineId),
}

/// What the server does when it has reached the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TargetAction {
    /// Stay read-only until `pg_wal_replay_resume()`
    Pause,
    /// Become an ordinary server on a new timeline
    Promote,
    /// Stop the server
    Shutdown,
}

/// The options as they were typed.
#[derive(Clone, Debug, Default)]
pub struct TargetOptions {
    pub time: Option<TargetTime>,
    pub lsn: Option<String>,
    pub xid: Option<String>,
    pub name: Option<String>,
    pub immediate: bool,
    pub exclusive: bool,
    pub timeline: Option<String>,
    pub action: Option<TargetAction>,
}

/// The options do not name a target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    #[error("{first} and {second} exclude each other: recovery has one target")]
    Two { first: &'static str, second: &'static str },
    #[error("--target-lsn: {0}")]
    Lsn(#[from] pgark_postgres::LsnParseError),
    #[error("--target-lsn: no recovery stops at 0/0")]
    ZeroLsn,
    #[error(
        "--target-xid: `{text}` is not a transaction number; write it in decimal digits, from {FIRST_NORMAL_XID} on"
    )]
    Xid { text: String },
    #[error(
        "--target-xid: {number} is a transaction number with its epoch; PostgreSQL compares the lower 32 bits: {low}"
    )]
    XidWithEpoch { number: u64, low: u32 },
    #[error("--target-name: the name is empty")]
    EmptyName,
    #[error("--target-name: the name has {bytes} bytes; PostgreSQL keeps at most {MAX_NAME_BYTES}")]
    LongName { bytes: usize },
    #[error("--target-name: the name has a line break or another control character in it")]
    ControlInName,
    #[error(
        "--target-timeline: `{text}` is not a timeline; write `latest`, `current` or a decimal number without \
         leading zeros (file names carry it in hexadecimal: 0000000A is 10)"
    )]
    Timeline { text: String },
    #[error("--target-exclusive needs --target-time, --target-lsn or --target-xid")]
    ExclusiveOfNothing,
    #[error("--target-action {action} needs a target; recovery to the end of the archive always ends with a promotion")]
    ActionWithoutTarget { action: TargetAction },
}

impl TargetError {
    /// What the user can do, where the message does not say it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Lsn(_) | Self::ZeroLsn => {
                Some("write the position as pg_current_wal_lsn() shows it, like 16/B374D848")
            }
            _ => None,
        }
    }
}

impl TargetOptions {
    /// Turns the options into a target, or says what is wrong with them.
    pub fn parse(self) -> Result<Target, TargetError> {
        let timeline = self.timeline.as_deref().map(parse_timeline).transpose()?;
        let mut given: Vec<(&'static str, RecoveryTarget)> = Vec::new();
        if let Some(time) = self.time {
            given.push(("--target-time", RecoveryTarget::Time(time)));
        }
        if let Some(text) = &self.lsn {
            given.push(("--target-lsn", RecoveryTarget::Lsn(parse_lsn(text)?)));
        }
        if let Some(text) = &self.xid {
            given.push(("--target-xid", RecoveryTarget::Xid(parse_xid(text)?)));
        }
        if let Some(name) = self.name {
            given.push(("--target-name", RecoveryTarget::Name(check_name(name)?)));
        }
        if self.immediate {
            given.push(("--target-immediate", RecoveryTarget::Immediate));
        }
        if let [(first, _), (second, _), ..] = given.as_slice() {
            return Err(TargetError::Two { first, second });
        }
        let stop = given.pop().map_or(RecoveryTarget::EndOfArchive, |(_, stop)| stop);
        if self.exclusive && !stop.has_inclusivity() {
            return Err(TargetError::ExclusiveOfNothing);
        }
        if let (RecoveryTarget::EndOfArchive, Some(action @ (TargetAction::Pause | TargetAction::Shutdown))) =
            (&stop, self.action)
        {
            return Err(TargetError::ActionWithoutTarget { action });
        }
        // The backup alone decides an immediate recovery; other branches must not get into its way.
        let usual = if stop == RecoveryTarget::Immediate { TargetTimeline::Current } else { TargetTimeline::Latest };
        Ok(Target {
            stop,
            inclusive: !self.exclusive,
            timeline: timeline.unwrap_or(usual),
            action: self.action.unwrap_or(TargetAction::Pause),
        })
    }
}

impl Target {
    /// The end of the archive on the newest timeline.
    pub fn end_of_archive() -> Self {
        Self {
            stop: RecoveryTarget::EndOfArchive,
            inclusive: true,
            timeline: TargetTimeline::Latest,
            action: TargetAction::Pause,
        }
    }
}

impl RecoveryTarget {
    /// Whether "inclusive" means anything for it.
    pub fn has_inclusivity(&self) -> bool {
        matches!(self, Self::Time(_) | Self::Lsn(_) | Self::Xid(_))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.inclusive { "" } else { ", exclusive" };
        match &self.stop {
            RecoveryTarget::EndOfArchive => write!(formatter, "the end of the archive"),
            RecoveryTarget::Immediate => write!(formatter, "the end of the backup (immediate)"),
            RecoveryTarget::Time(time) => write!(formatter, "time {time}{side}"),
            RecoveryTarget::Lsn(lsn) => write!(formatter, "position {lsn}{side}"),
            RecoveryTarget::Xid(xid) => write!(formatter, "transaction {xid}{side}"),
            RecoveryTarget::Name(name) => write!(formatter, "restore point \"{}\"", pgark_command::printable(name)),
        }
    }
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => formatter.write_str("latest"),
            Self::Current => formatter.write_str("current"),
            Self::Number(timeline) => write!(formatter, "{timeline}"),
        }
    }
}

impl fmt::Display for TargetAction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        })
    }
}

fn parse_lsn(text: &str) -> Result<Lsn, TargetError> {
    let lsn: Lsn = text.trim().parse()?;
    if lsn.is_zero() { Err(TargetError::ZeroLsn) } else { Ok(lsn) }
}

/// Decimal digits only: the server would read `0x10` and `010` in other bases.
fn parse_xid(text: &str) -> Result<u32, TargetError> {
    let refused = || TargetError::Xid { text: text.chars().take(40).collect() };
    let plain = is_plain_decimal(text);
    let number: u64 = if plain { text.parse().map_err(|_| refused())? } else { return Err(refused()) };
    match u32::try_from(number) {
        Ok(xid) if xid >= FIRST_NORMAL_XID => Ok(xid),
        Ok(_) => Err(refused()),
        Err(_) => Err(TargetError::XidWithEpoch { number, low: number as u32 }),
    }
}

fn check_name(name: String) -> Result<String, TargetError> {
    if name.is_empty() {
        Err(TargetError::EmptyName)
    } else if name.len() > MAX_NAME_BYTES {
        Err(TargetError::LongName { bytes: name.len() })
    } else if name.chars().any(char::is_control) {
        Err(TargetError::ControlInName)
    } else {
        Ok(name)
    }
}

fn parse_timeline(text: &str) -> Result<TargetTimeline, TargetError> {
    match text {
        "latest" => Ok(TargetTimeline::Latest),
        "current" => Ok(TargetTimeline::Current),
        _ => {
            let number = if is_plain_decimal(text) { text.parse().ok() } else { None };
            number
                .map(TargetTimeline::Number)
                .ok_or_else(|| TargetError::Timeline { text: text.chars().take(40).collect() })
        }
    }
}

fn is_plain_decimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(change: impl FnOnce(&mut TargetOptions)) -> Result<Target, TargetError> {
        let mut options = TargetOptions::default();
        change(&mut options);
        options.parse()
    }

    #[test]
    fn nothing_given_means_the_end_of_the_archive() {
        assert_eq!(parse(|_| {}), Ok(Target::end_of_archive()));
    }

    #[test]
    fn d22_two_targets_are_refused() {
        let refused = parse(|options| {
            options.lsn = Some("0/3000000".to_owned());
            options.immediate = true;
        });
        assert_eq!(refused, Err(TargetError::Two { first: "--target-lsn", second: "--target-immediate" }));
    }

    #[test]
    fn d22_impossible_transactions_are_refused() {
        for text in ["0", "1", "2", "-5", "+5", "0x10", "010", "", "abc", "99999999999999999999999"] {
            let refused = parse(|options| options.xid = Some(text.to_owned()));
            assert!(matches!(refused, Err(TargetError::Xid { .. })), "{text}: {refused:?}");
        }
        let epoch = parse(|options| options.xid = Some("4294968041".to_owned()));
        assert_eq!(epoch, Err(TargetError::XidWithEpoch { number: 4_294_968_041, low: 745 }));
        assert_eq!(parse(|options| options.xid = Some("745".to_owned())).unwrap().stop, RecoveryTarget::Xid(745));
    }

    #[test]
    fn d22_names_that_the_server_would_cut_are_refused() {
        let named = |name: &str| parse(|options| options.name = Some(name.to_owned()));
        assert!(named(&"x".repeat(63)).is_ok());
        assert_eq!(named(&"x".repeat(64)), Err(TargetError::LongName { bytes: 64 }));
        assert_eq!(named(&"ü".repeat(32)), Err(TargetError::LongName { bytes: 64 }));
        assert_eq!(named(""), Err(TargetError::EmptyName));
        assert_eq!(named("a\nb"), Err(TargetError::ControlInName));
    }

    #[test]
    fn d26_timelines_are_decimal() {
        for text in ["010", "0x0A", "0", "0000000A", "-1", "1.0", "Latest", ""] {
            let refused = parse(|options| options.timeline = Some(text.to_owned()));
            assert!(matches!(refused, Err(TargetError::Timeline { .. })), "{text}: {refused:?}");
        }
        let ten = parse(|options| options.timeline = Some("10".to_owned())).unwrap().timeline;
        assert_eq!(ten, TargetTimeline::Number(TimelineId::new(10).unwrap()));
    }

    #[test]
    fn options_without_effect_are_refused() {
        assert_eq!(parse(|options| options.exclusive = true), Err(TargetError::ExclusiveOfNothing));
        let named = parse(|options| {
            options.name = Some("x".to_owned());
            options.exclusive = true;
        });
        assert_eq!(named, Err(TargetError::ExclusiveOfNothing));
        let pause = parse(|options| options.action = Some(TargetAction::Pause));
        assert_eq!(pause, Err(TargetError::ActionWithoutTarget { action: TargetAction::Pause }));
        assert!(parse(|options| options.action = Some(TargetAction::Promote)).is_ok());
    }

    #[test]
    fn an_immediate_recovery_stays_on_the_backups_timeline() {
        let immediate = parse(|options| options.immediate = true).unwrap();
        assert_eq!(immediate.timeline, TargetTimeline::Current);
        let lsn = parse(|options| options.lsn = Some("0/3000000".to_owned())).unwrap();
        assert_eq!(lsn.timeline, TargetTimeline::Latest);
    }
}
