//! What a check found: a line for each thing that was looked at, with the statement or command that mends it.

use std::io::Write;

use pgark_command::{Report, printable};
use serde::Serialize;

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Ok,
    Warning,
    Failure,
}

#[derive(Debug, Serialize)]
pub(super) struct Finding {
    /// What was looked at: a word that stays the same between versions.
    check: &'static str,
    result: Outcome,
    message: String,
    /// The statement or command that mends it.
    mend: Option<String>,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

/// The shape of `--json`.
#[derive(Serialize)]
struct CheckJson<'f> {
    findings: &'f [Finding],
    failures: usize,
    warnings: usize,
}

impl Findings {
    pub(super) fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Outcome::Ok, message.into(), None);
    }

    pub(super) fn warning(&mut self, check: &'static str, message: impl Into<String>, mend: impl Into<String>) {
        self.add(check, Outcome::Warning, message.into(), Some(mend.into()));
    }

    pub(super) fn failure(&mut self, check: &'static str, message: impl Into<String>, mend: impl Into<String>) {
        self.add(check, Outcome::Failure, message.into(), Some(mend.into()));
    }

    /// An error, with the hint that the command that meets it would give.
    pub(super) fn error(&mut self, check: &'static str, error: impl Into<anyhow::Error>) {
        let error = error.into();
        let hint = error.chain().find_map(|link| crate::judge(link)?.hint);
        self.add(check, Outcome::Failure, printable(&format!("{error:#}")), hint);
    }

    fn add(&mut self, check: &'static str, result: Outcome, message: String, mend: Option<String>) {
        self.0.push(Finding { check, result, message, mend });
    }

    pub(super) fn count(&self, result: Outcome) -> usize {
        self.0.iter().filter(|finding| finding.result == result).count()
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut report = Report::to_stdout();
        let (failures, warnings) = (self.count(Outcome::Failure), self.count(Outcome::Warning));
        if json {
            return Ok(report.json("check", &CheckJson { findings: &self.0, failures, warnings })?);
        }
        let width = self.0.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { check, result, message, mend } in &self.0 {
            let result = match result {
                Outcome::Ok => "ok",
                Outcome::Warning => "warning",
                Outcome::Failure => "failure",
            };
            writeln!(report, "{result:8} {check:width$}  {message}")?;
            if let Some(mend) = mend {
                writeln!(report, "{:8} {:width$}  to mend it: {mend}", "", "")?;
            }
        }
        match (failures, warnings) {
            (0, 0) => writeln!(report, "everything is in order")?,
            _ => writeln!(report, "{failures} failures, {warnings} warnings")?,
        }
        Ok(report.flush()?)
    }

    /// What is wrong, as one line.
    pub(super) fn summary(&self) -> String {
        let wrong = self.0.iter().filter(|finding| finding.result != Outcome::Ok);
        let lines: Vec<String> = wrong.map(|finding| format!("{}: {}", finding.check, finding.message)).collect();
        if lines.is_empty() { "everything is in order".to_owned() } else { lines.join("; ") }
    }
}
