//! `[notify]`: the command that is told how things went.

use std::time::Duration;

use super::DAY;
use super::section::Section;

/// Who is told what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyConfiguration {
    /// A shell command; without it nobody is told.
    pub command: Option<String>,
    /// Which results it is told.
    pub on: Vec<NotifyResult>,
    /// After this long it is killed.
    pub deadline: Duration,
}

/// How something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifyResult {
    Success,
    Warning,
    Failure,
}

const ALL: [(&str, NotifyResult); 3] =
    [("success", NotifyResult::Success), ("warning", NotifyResult::Warning), ("failure", NotifyResult::Failure)];

impl NotifyConfiguration {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut on = Vec::new();
        for name in section.list("on") {
            match ALL.iter().find(|(known, _)| *known == name) {
                Some((_, result)) => on.push(*result),
                None => section.fault(format!("`on` lists `{name}`; it takes success, warning and failure")),
            }
        }
        if on.is_empty() {
            on = ALL.iter().map(|(_, result)| *result).collect();
        }
        Self {
            command: section.text("command"),
            on,
            deadline: section.duration("deadline", Duration::from_secs(30), Duration::from_secs(1), DAY),
        }
    }
}
