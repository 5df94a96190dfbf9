//! `[retention]`: what `pgark-agent expire` keeps.

use std::time::Duration;

use pgark_repository::RetentionPolicy;

use super::quantity::parse_duration;
use super::section::Section;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest window: ten thousand days.
const LONGEST_WINDOW: Duration = Duration::from_secs(10_000 * 24 * 60 * 60);
/// More of any kind than anybody keeps.
const MOST: u32 = 10_000;

/// What is kept, and when the rest is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionConfiguration {
    pub policy: RetentionPolicy,
    /// Whether `backup` expires what the policy does not keep, once the new backup is stored.
    pub after_backup: bool,
}

impl RetentionConfiguration {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let policy = RetentionPolicy {
            full: section.integer("full", 0, 0, MOST),
            window: section.parsed("window", None, parse_window),
            daily: section.integer("daily", 0, 0, MOST),
            weekly: section.integer("weekly", 0, 0, MOST),
            monthly: section.integer("monthly", 0, 0, MOST),
            yearly: section.integer("yearly", 0, 0, MOST),
            orphan_grace: section.duration("orphan_grace", DAY, HOUR, 30 * DAY),
        };
        let calendar = [policy.daily, policy.weekly, policy.monthly, policy.yearly];
        if calendar.iter().any(|periods| *periods > 0) && !policy.is_limited() {
            section.fault(
                "set `window` or `full`, too: they say since when every moment can be restored, which \
                 daily, weekly, monthly and yearly do not"
                    .to_owned(),
            );
        }
        let after_backup = section.boolean("after_backup").unwrap_or(false);
        Self { policy, after_backup }
    }
}

fn parse_window(text: &str) -> Result<Option<Duration>, String> {
    let window = parse_duration(text).map_err(|error| error.to_string())?;
    if (HOUR..=LONGEST_WINDOW).contains(&window) { Ok(Some(window)) } else { Err("expected 1h to 10000d".to_owned()) }
}
