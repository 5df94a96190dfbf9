//! What a finished backup tells its user.

use std::io::Write;
use std::time::Duration;

use pgark_command::{Report, format_duration, format_size, format_time};
use pgark_repository::{Backup, BackupId, BackupTargets};
use serde::Serialize;

use crate::expire::{Expired, sentence};

#[derive(Serialize)]
struct Summary<'a> {
    id: &'a str,
    /// The backup on which it builds.
    parent: Option<&'a str>,
    /// The last backup of the chain from which it was made.
    consolidated_from: Option<&'a str>,
    raw_bytes: u64,
    stored_bytes: u64,
    files: u64,
    seconds: f64,
    start_lsn: pgark_postgres::Lsn,
    stop_lsn: pgark_postgres::Lsn,
    timeline: pgark_postgres::TimelineId,
    stop_time: String,
    damaged_pages: Option<&'a str>,
    damaged_files: &'a [String],
    /// Repositories that are not required, and do not have it.
    left_out: Vec<LeftOut<'a>>,
    /// What was expired afterwards, where `retention.after_backup` is set.
    expired: Vec<ExpiredJson<'a>>,
}

#[derive(Serialize)]
struct LeftOut<'a> {
    repository: &'a str,
    reason: String,
}

#[derive(Serialize)]
struct ExpiredJson<'a> {
    repository: &'a str,
    backups: usize,
    wal_objects: u64,
    freed_bytes: u64,
    /// Why it failed; the backup is stored all the same.
    failure: Option<&'a str>,
}

/// Prints the summary to standard output.
pub(crate) fn print(backup: &Backup, targets: &BackupTargets, elapsed: Duration) -> std::io::Result<()> {
    let mut report = Report::to_stdout();
    let totals = &backup.totals;
    let on = match (&backup.parent, &backup.consolidated) {
        (Some(parent), _) => format!(" on {parent}"),
        (None, Some(consolidated)) => format!(" of the chain of {}", consolidated.from),
        (None, None) => String::new(),
    };
    writeln!(
        report,
        "backup {}{on}: {} in {} files, stored as {} ({:.1}:1), in {}\nWAL from {} to {} on timeline {}; any moment after {} can be restored",
        backup.id,
        format_size(totals.raw_size),
        totals.files,
        format_size(totals.stored_size),
        totals.raw_size as f64 / totals.stored_size.max(1) as f64,
        format_duration(elapsed),
        backup.start_lsn,
        backup.stop_lsn,
        backup.timeline,
        format_time(backup.stop_time),
    )?;
    for LeftOut { repository, reason } in left_out(targets) {
        writeln!(report, "not in `{repository}` ({reason}); it is copied into it when it is back")?;
    }
    report.flush()
}

/// Prints the summary to standard output, as JSON.
pub(crate) fn print_json(
    backup: &Backup,
    targets: &BackupTargets,
    elapsed: Duration,
    expired: &[Expired],
) -> std::io::Result<()> {
    let totals = &backup.totals;
    let summary = Summary {
        id: backup.id.as_str(),
        parent: backup.parent.as_ref().map(BackupId::as_str),
        consolidated_from: backup.consolidated.as_ref().map(|consolidated| consolidated.from.as_str()),
        raw_bytes: totals.raw_size,
        stored_bytes: totals.stored_size,
        files: totals.files,
        seconds: elapsed.as_secs_f64(),
        start_lsn: backup.start_lsn,
        stop_lsn: backup.stop_lsn,
        timeline: backup.timeline,
        stop_time: format_time(backup.stop_time),
        damaged_pages: backup.damaged_pages.as_deref(),
        damaged_files: &backup.damaged_files,
        left_out: left_out(targets),
        expired: expired
            .iter()
            .map(|Expired { repository, outcome, failure }| ExpiredJson {
                repository,
                backups: outcome.as_ref().map_or(0, |outcome| outcome.backups.len()),
                wal_objects: outcome.as_ref().map_or(0, |outcome| outcome.wal_objects),
                freed_bytes: outcome.as_ref().map_or(0, |outcome| outcome.freed_bytes),
                failure: failure.as_deref(),
            })
            .collect(),
    };
    Report::to_stdout().json("backup", &summary)
}

/// Says what was expired after the backup, and what failed.
pub(super) fn tell_expired(expired: &[Expired], as_json: bool) -> std::io::Result<()> {
    let mut report = Report::to_stdout();
    for Expired { repository, outcome, failure } in expired {
        if let Some(failure) = failure {
            tracing::error!(
                repository,
                "the backup is stored, but expiring others failed: {failure}; `pgark-agent expire` tries again"
            );
        }
        if let (false, Some(outcome)) = (as_json, outcome) {
            writeln!(report, "repository {repository}: {}", sentence(outcome))?;
        }
    }
    report.flush()
}

fn left_out(targets: &BackupTargets) -> Vec<LeftOut<'_>> {
    let left_out = targets.left_out();
    left_out.map(|(repository, error)| LeftOut { repository: repository.name(), reason: error.to_string() }).collect()
}
