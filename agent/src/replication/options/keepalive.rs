//! Keepalive probes, from `keepalives…` and `tcp_user_timeout`.

use std::time::Duration;

use super::values::Values;
use crate::replication::connection_string::ConnectionStringError;

/// How the kernel finds out that a TCP peer is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepalive {
    /// Whether it probes at all.
    pub enabled: bool,
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer.
    pub count: u32,
    /// How long sent data may stay unacknowledged; zero leaves it to the system.
    pub user_timeout: Duration,
}

impl Default for Keepalive {
    /// Finds a dead peer in two minutes, where the system's own values take more than two hours.
    fn default() -> Self {
        Self {
            enabled: true,
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(15),
            count: 4,
            user_timeout: Duration::ZERO,
        }
    }
}

pub(super) fn parse_keepalive(values: &Values) -> Result<Keepalive, ConnectionStringError> {
    let default = Keepalive::default();
    Ok(Keepalive {
        enabled: values.number("keepalives")? != Some(0),
        idle: values.seconds("keepalives_idle", default.idle)?,
        interval: values.seconds("keepalives_interval", default.interval)?,
        count: values.number("keepalives_count")?.filter(|&count| count > 0).unwrap_or(default.count),
        user_timeout: Duration::from_millis(values.number("tcp_user_timeout")?.unwrap_or(0).into()),
    })
}
