//! What a drill found, for people and for programs.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use pgark_command::{format_duration, format_size, format_time, printable};
use pgark_postgres::{Lsn, SystemIdentifier, TimelineId};
use pgark_repository::{BackupId, ReadSegments};
use serde::Serialize;

use super::checks::{Check, CheckResult};

/// The report, filled in as the drill goes on: what it did not come to is missing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DrillReport {
    pub(crate) passed: bool,
    /// Where and why it failed.
    pub(crate) failure: Option<FailureReport>,
    pub(crate) started: Timestamp,
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) cluster: String,
    pub(crate) system_identifier: Option<SystemIdentifier>,
    pub(crate) backup: Option<BackupId>,
    /// In words, like `2026-11-20 02:00:03+00`.
    pub(crate) target: String,
    pub(crate) is_random: bool,
    pub(crate) timeline: Option<TimelineId>,
    /// PostgreSQL's version here, as `15.20`.
    pub(crate) server_version: Option<String>,
    pub(crate) restored_files: u64,
    pub(crate) restored_bytes: u64,
    /// How many segments the plan replays.
    pub(crate) wal_segments: u64,
    #[serde(skip)]
    pub(crate) replayed: Vec<ReadSegments>,
    pub(crate) recovery: Option<RecoveryReport>,
    pub(crate) checks: Vec<Check>,
    pub(crate) notes: Vec<String>,
    pub(crate) seconds: Seconds,
    /// The directory, where it was kept.
    pub(crate) kept: Option<PathBuf>,
    /// The name of the recorded proof.
    pub(crate) proof: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct FailureReport {
    pub(crate) stage: &'static str,
    pub(crate) reason: String,
    pub(crate) exit_code: u8,
}

/// Where replay ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RecoveryReport {
    pub(crate) last_record: Option<Lsn>,
    /// Where a target ended it, in the server's words.
    pub(crate) stopped: Option<String>,
}

/// How long each stage took. Their sum is the total.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Seconds {
    /// Reading what is stored, planning, proving the target.
    pub(crate) plan: f64,
    /// Until the directory could be started.
    pub(crate) restore: f64,
    /// Until the server had reached the target and took connections.
    pub(crate) replay: f64,
    pub(crate) check: f64,
    /// Shutting down and removing the directory.
    pub(crate) clean_up: f64,
    pub(crate) total: f64,
}

impl DrillReport {
    /// One sentence for the proof.
    pub(crate) fn summary(&self) -> String {
        match &self.failure {
            Some(failure) => format!("failed at {}: {}", failure.stage, failure.reason),
            None => format!(
                "restored to {} in {}, replayed in {}, {} checks passed",
                self.target,
                duration(self.seconds.restore),
                duration(self.seconds.replay),
                self.checks.iter().filter(|check| check.result == CheckResult::Passed).count()
            ),
        }
    }

    pub(crate) fn write_text(&self, report: &mut impl Write) -> std::io::Result<()> {
        writeln!(report, "drill       {} on {}", format_time(self.started), printable(&self.host))?;
        writeln!(report, "cluster     {} in repository {}", self.cluster, self.repository)?;
        if let Some(backup) = &self.backup {
            writeln!(report, "backup      {backup}")?;
        }
        let chosen = if self.is_random { " (chosen at random)" } else { "" };
        writeln!(report, "target      {}{chosen}", printable(&self.target))?;
        if let Some(version) = &self.server_version {
            writeln!(report, "server      PostgreSQL {version}")?;
        }
        for (stage, seconds, detail) in self.stages() {
            let line = format!("{stage:<11} {:>12}  {}", duration(seconds), printable(&detail));
            writeln!(report, "{}", line.trim_end())?;
        }
        for check in &self.checks {
            let took = if check.result == CheckResult::Skipped { "-".to_owned() } else { duration(check.seconds) };
            let result = check.result.as_str();
            writeln!(report, "  {:<9} {took:>12}  {result}: {}", check.name, printable(&check.detail))?;
            for fault in &check.faults {
                writeln!(report, "            {}", printable(fault))?;
            }
            let unlisted = check.fault_count.saturating_sub(check.faults.len() as u64);
            if unlisted > 0 {
                writeln!(report, "            and {unlisted} more")?;
            }
        }
        writeln!(report, "total       {:>12}", duration(self.seconds.total))?;
        for note in &self.notes {
            writeln!(report, "note        {}", printable(note))?;
        }
        if let Some(kept) = &self.kept {
            writeln!(report, "kept        {}", kept.display())?;
        }
        match &self.failure {
            None => writeln!(report, "passed"),
            Some(failure) => writeln!(report, "FAILED at {}: {}", failure.stage, printable(&failure.reason)),
        }
    }

    /// The stages that the drill came to, with what each of them did.
    pub(crate) fn stages(&self) -> Vec<(&'static str, f64, String)> {
        let recovery = match &self.recovery {
            Some(RecoveryReport { stopped: Some(stopped), .. }) => format!(", stopped {stopped}"),
            Some(RecoveryReport { last_record: Some(lsn), .. }) => format!(", up to the record at {lsn}"),
            _ => String::new(),
        };
        let seconds = &self.seconds;
        let checked = self.checks.iter().filter(|check| check.result != CheckResult::Skipped).count();
        let stages = [
            ("plan", seconds.plan, String::new()),
            (
                "restore",
                seconds.restore,
                format!("{} files, {}", self.restored_files, format_size(self.restored_bytes)),
            ),
            ("replay", seconds.replay, format!("{} WAL segments{recovery}", self.wal_segments)),
            ("check", seconds.check, format!("{checked} checks")),
            ("clean up", seconds.clean_up, String::new()),
        ];
        stages.into_iter().filter(|(_, seconds, _)| *seconds > 0.0).collect()
    }
}

pub(crate) fn duration(seconds: f64) -> String {
    format_duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)))
}
