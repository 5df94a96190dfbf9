//! Which of several hosts is wanted: `target_session_attrs` and `load_balance_hosts`.

use super::values::Values;
use crate::replication::connection_string::ConnectionStringError;

/// What a server must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    /// Anything that lets us in.
    Any,
    /// It takes writes.
    ReadWrite,
    /// It does not take writes.
    ReadOnly,
    /// It is not in recovery.
    Primary,
    /// It is in recovery.
    Standby,
    /// In recovery if there is one, else anything.
    PreferStandby,
}

const TARGETS: [(&str, TargetSession); 6] = [
    ("any", TargetSession::Any),
    ("read-write", TargetSession::ReadWrite),
    ("read-only", TargetSession::ReadOnly),
    ("primary", TargetSession::Primary),
    ("standby", TargetSession::Standby),
    ("prefer-standby", TargetSession::PreferStandby),
];

impl TargetSession {
    /// The name in connection strings.
    pub fn as_str(self) -> &'static str {
        TARGETS.iter().find(|(_, target)| *target == self).map_or("", |(name, _)| name)
    }

    pub(super) fn parse(values: &Values) -> Result<Self, ConnectionStringError> {
        let expected = "one of any, read-write, read-only, primary, standby and prefer-standby";
        values.choice("target_session_attrs", &TARGETS, Self::Any, expected)
    }

    /// Tells whether a server in this state is what is wanted.
    pub(crate) fn accepts(self, in_recovery: bool, read_only: bool) -> bool {
        match self {
            Self::Any => true,
            Self::ReadWrite => !in_recovery && !read_only,
            Self::ReadOnly => in_recovery || read_only,
            Self::Primary => !in_recovery,
            Self::Standby | Self::PreferStandby => in_recovery,
        }
    }
}

/// Tells whether hosts are tried in random order.
pub(super) fn parse_load_balance(values: &Values) -> Result<bool, ConnectionStringError> {
    values.choice("load_balance_hosts", &[("disable", false), ("random", true)], false, "disable or random")
}
