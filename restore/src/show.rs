//! `pgark-restore show ID`: everything about one backup.

use std::io::Write;

use anyhow::Context;
use clap::Args;
use pgark_command::{
    Configuration, Environment, ExitCode, GlobalOptions, Report, Side, format_duration, format_size, format_time,
    open_repository, printable,
};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{Backup, BackupId, BackupKind, Hold, Proof};
use serde::Serialize;

use crate::catalogue::Catalogue;
use crate::list::ratio;
use crate::plan::{PlanError, PlanJson, Request, plan};
use crate::proofs::{read_or_warn, write_of_backup};
use crate::target::{RecoveryTarget, Target, TargetTimeline};

/// Arguments of `show`.
#[derive(Args, Debug)]
pub struct ShowArguments {
    /// The backup, as `list` names it
    #[arg(value_name = "ID")]
    id: BackupId,

    /// Look at the cluster with this system identifier [default: the one with the newest backup]
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ShowJson<'s> {
    backup: &'s Backup,
    /// Why it is kept whatever retention says.
    hold: Option<&'s Hold>,
    /// What a restore to the end of the archive would do; nothing where it cannot be done.
    to_the_end: Option<PlanJson>,
    /// Why it cannot.
    problem: Option<String>,
    /// What drills and verifications found out about it, newest first.
    proofs: Vec<&'s Proof>,
}

/// Runs the command.
pub async fn show(
    options: &GlobalOptions,
    environment: &Environment,
    configuration: &Configuration,
    arguments: &ShowArguments,
) -> anyhow::Result<ExitCode> {
    let chosen = options.repositories(environment, configuration)?;
    let open = |repository| open_repository(repository, Side::Reading);
    let repositories = chosen.into_iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let loaded =
        Catalogue::load_all(&repositories, &configuration.cluster.name, arguments.system_identifier, false).await;
    let merged = loaded.context("read the repository")?;
    let catalogue = &merged.catalogue;
    let planned = |stop, timeline| {
        let target = Target { stop, timeline, ..Target::end_of_archive() };
        plan(catalogue, &Request { target, backup: Some(arguments.id.clone()) })
    };
    let to_the_end = planned(RecoveryTarget::EndOfArchive, TargetTimeline::Latest);
    let Some(backup) = catalogue.backup(&arguments.id) else {
        // The plan knows in which way it is not there.
        return Err(match to_the_end {
            Err(error) => error.into(),
            Ok(_) => PlanError::UnknownBackup { id: arguments.id.clone(), known: Vec::new() }.into(),
        });
    };
    let proofs = read_or_warn(configuration, catalogue.system_identifier).await;
    let hold = merged.holds().await.into_iter().find(|hold| hold.id == backup.id);
    let mut report = Report::to_stdout();
    if arguments.json {
        let problem = to_the_end.as_ref().err().map(ToString::to_string);
        let to_the_end = to_the_end.as_ref().ok().map(PlanJson::from);
        let (hold, proofs) = (hold.as_ref(), of_backup(backup, &proofs));
        report.json("show", &ShowJson { backup, hold, to_the_end, problem, proofs })?;
        return Ok(ExitCode::Done);
    }
    write_text(&mut report, backup)?;
    if let Some(hold) = &hold {
        let Hold { reason, host, time, .. } = hold;
        writeln!(report, "held         since {} from {}: {}", format_time(*time), printable(host), printable(reason))?;
    }
    match &to_the_end {
        Ok(plan) => {
            writeln!(
                report,
                "restorable   from {} to {} on timeline {}",
                backup.stop_lsn, plan.reachable, plan.timeline
            )?;
        }
        Err(error) => writeln!(report, "restorable   not to the end of the archive: {error}")?,
    }
    write_of_backup(&mut report, &backup.id, &proofs)?;
    report.flush()?;
    Ok(ExitCode::Done)
}

fn of_backup<'p>(backup: &Backup, proofs: &'p [Proof]) -> Vec<&'p Proof> {
    proofs.iter().filter(|proof| proof.backups.iter().any(|told| told.id == backup.id)).collect()
}

fn write_text(report: &mut impl Write, backup: &Backup) -> std::io::Result<()> {
    let server = &backup.server;
    let kind = match backup.kind {
        BackupKind::Full => "full",
        BackupKind::Incremental => "incremental",
    };
    let took = backup.stop_time.duration_since(backup.start_time).unsigned_abs();
    writeln!(report, "backup       {} ({kind})", backup.id)?;
    if let Some(parent) = &backup.parent {
        writeln!(report, "parent       {parent}")?;
    }
    if let Some(consolidated) = &backup.consolidated {
        writeln!(report, "made from    the chain of {}", consolidated.from)?;
    }
    writeln!(report, "cluster      {}, system {}", backup.cluster, server.system_identifier)?;
    writeln!(
        report,
        "server       PostgreSQL {}.{}, {}; data checksums {}",
        server.major(),
        server.version_num % 10_000,
        if server.standby { "a standby" } else { "a primary" },
        if server.data_checksums { "on" } else { "off" }
    )?;
    if let Some(directory) = &server.data_directory {
        writeln!(report, "directory    {} (mode {})", printable(directory), server.data_directory_mode)?;
    }
    for included in &backup.included {
        writeln!(report, "included     {} ({} files)", printable(&included.directory), included.files)?;
    }
    for file in backup.files_left_out() {
        writeln!(report, "not included {}", printable(file))?;
    }
    writeln!(report, "started      {}", format_time(backup.start_time))?;
    writeln!(report, "ended        {} (after {})", format_time(backup.stop_time), format_duration(took))?;
    writeln!(report, "positions    {} … {}", backup.start_lsn, backup.stop_lsn)?;
    writeln!(report, "timeline     {}", backup.timeline)?;
    writeln!(report, "WAL          {} … {}", backup.wal.first, backup.wal.last)?;
    writeln!(
        report,
        "content      {} files, {} directories, {}",
        backup.totals.files,
        backup.totals.directories,
        format_size(backup.totals.raw_size)
    )?;
    writeln!(
        report,
        "stored       {} in {} parts (ratio {})",
        format_size(backup.totals.stored_size),
        backup.parts.len(),
        ratio(backup.totals.raw_size, backup.totals.stored_size)
    )?;
    for tablespace in &backup.tablespaces {
        let place = if tablespace.in_place { " (in the data directory)" } else { "" };
        writeln!(report, "tablespace   {} {}{place}", tablespace.oid, printable(&tablespace.location))?;
    }
    if backup.recipients.is_empty() {
        writeln!(report, "encryption   none")?;
    }
    for recipient in &backup.recipients {
        writeln!(report, "encryption   {}", printable(recipient))?;
    }
    if let Some(words) = &backup.damaged_pages {
        writeln!(report, "damaged      pages in the source: {}", printable(words))?;
    }
    for file in &backup.damaged_files {
        writeln!(report, "damaged      {}", printable(file))?;
    }
    for (key, value) in &backup.annotations {
        writeln!(report, "note         {}={}", printable(key), printable(value))?;
    }
    writeln!(report, "written by   {}", printable(&backup.written_by))
}
