//! `pgark-restore verify`: reads what is stored and says what is wrong with it, all of it.
//!
//! Three proofs, from cheap to thorough. `stored`: every object of a backup has the size and the CRC-32 that `backup.json`
//! says, which needs no key. `content`: every file of a backup has the size and the checksum of PostgreSQL's manifest.
//! `wal`: the segments from each backup to the end of the archive are there, and their records follow each other.
//! Nothing stops at the first fault.

mod content;
mod stored;
mod wal;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use pgark_command::{
    Configuration, Environment, ExitCode, Failure, GlobalOptions, ProgressDisplay, Report, Side, format_size,
    open_repository,
};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{Backup, BackupId, ErrorKind, ObjectKey, RepositoryError};
use serde::Serialize;

use crate::catalogue::Catalogue;

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArguments {
    /// The backups [default: all]
    #[arg(value_name = "ID")]
    backups: Vec<BackupId>,

    /// Compare sizes and checksums of what is stored only: this needs no key, and reads no WAL
    #[arg(long)]
    quick: bool,

    /// Verify the cluster with this system identifier [default: the one with the newest backup]
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize)]
struct Fault {
    /// Of which backup; nothing for WAL that no backup can do without.
    backup: Option<BackupId>,
    /// Which object.
    object: String,
    /// What is wrong.
    reason: String,
    /// What cannot be restored because of it.
    consequence: String,
    /// False where the object could not be read, so that nothing is known.
    damaged: bool,
}

impl Fault {
    /// The object is the one that the error names, or else `key`.
    fn of_backup(backup: &Backup, key: &ObjectKey, error: &RepositoryError) -> Self {
        let named = match error {
            RepositoryError::NotFound { key, .. }
            | RepositoryError::Denied { key, .. }
            | RepositoryError::Unavailable { key, .. }
            | RepositoryError::Damaged { key, .. }
            | RepositoryError::NoKey { key, .. } => key,
            _ => key,
        };
        Self {
            backup: Some(backup.id.clone()),
            object: named.to_string(),
            reason: reason(error),
            consequence: format!("backup {} cannot be restored", backup.id),
            damaged: tells_of_damage(error),
        }
    }
}

/// Without the name of the object, which stands before it.
fn reason(error: &RepositoryError) -> String {
    match error {
        RepositoryError::Damaged { reason, .. } => reason.clone(),
        RepositoryError::NotFound { .. } => "it is missing".to_owned(),
        other => full_text(other),
    }
}

/// An error with its causes.
fn full_text(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn tells_of_damage(error: &RepositoryError) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound)
}

/// What was read, and what is wrong with it.
#[derive(Debug, Default, Serialize)]
struct Findings {
    objects: u64,
    stored_bytes: u64,
    files: u64,
    file_bytes: u64,
    segments: u64,
    faults: Vec<Fault>,
}

#[derive(Serialize)]
struct VerifyJson<'v> {
    repository: &'v str,
    cluster: &'v str,
    system_identifier: SystemIdentifier,
    quick: bool,
    backups: Vec<&'v BackupId>,
    seconds: f64,
    #[serde(flatten)]
    findings: &'v Findings,
}

/// Runs the command.
pub async fn verify(
    options: &GlobalOptions,
    environment: &Environment,
    configuration: &Configuration,
    arguments: &VerifyArguments,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let chosen = options.repository(environment, configuration)?;
    let repository = open_repository(chosen, Side::Reading)?;
    let (cluster, system_identifier) = (&configuration.cluster.name, arguments.system_identifier);
    let loaded = match arguments.quick {
        true => Catalogue::load_without_key(&repository, cluster, system_identifier).await,
        false => Catalogue::load(&repository, cluster, system_identifier).await,
    };
    let (catalogue, repository) = loaded.context("read the repository")?;
    let backups = choose(&catalogue, &arguments.backups)?;
    let jobs = configuration.restore.workers().get();
    let display = ProgressDisplay::detect(options);
    let mut findings = Findings::default();
    for backup in &backups {
        if arguments.quick {
            stored::verify(&repository, backup, jobs, &mut findings).await;
        } else {
            content::verify(&repository, backup, jobs, display, &mut findings).await;
        }
    }
    if !arguments.quick {
        wal::verify(&repository, &catalogue, &backups, &mut findings).await;
    }
    let mut report = Report::to_stdout();
    if arguments.json {
        let json = VerifyJson {
            repository: &catalogue.repository,
            cluster: &catalogue.cluster,
            system_identifier: catalogue.system_identifier,
            quick: arguments.quick,
            backups: backups.iter().map(|backup| &backup.id).collect(),
            seconds: started.elapsed().as_secs_f64(),
            findings: &findings,
        };
        report.json("verify", &json)?;
    } else {
        write_text(&mut report, &backups, &findings)?;
        report.flush()?;
    }
    verdict(&findings)
}

fn choose<'c>(catalogue: &'c Catalogue, wanted: &[BackupId]) -> Result<Vec<&'c Backup>, Failure> {
    if wanted.is_empty() {
        return Ok(catalogue.backups.finished.iter().collect());
    }
    let known = |id: &BackupId| {
        catalogue
            .backup(id)
            .ok_or_else(|| Failure::new(ExitCode::Unreachable, format!("there is no finished backup {id}")))
    };
    wanted.iter().map(known).collect()
}

fn write_text(report: &mut impl Write, backups: &[&Backup], findings: &Findings) -> std::io::Result<()> {
    let mut by_backup: BTreeMap<Option<&BackupId>, Vec<&Fault>> = BTreeMap::new();
    for fault in &findings.faults {
        by_backup.entry(fault.backup.as_ref()).or_default().push(fault);
    }
    for backup in backups {
        match by_backup.get(&Some(&backup.id)) {
            None => writeln!(report, "{}  ok", backup.id)?,
            Some(faults) => {
                writeln!(report, "{}  {} faults", backup.id, faults.len())?;
                write_faults(report, faults)?;
            }
        }
    }
    if let Some(faults) = by_backup.get(&None) {
        writeln!(report, "WAL  {} faults", faults.len())?;
        write_faults(report, faults)?;
    }
    write!(report, "read {} objects", findings.objects)?;
    if findings.files > 0 {
        write!(report, " with {} files of {}", findings.files, format_size(findings.file_bytes))?;
    }
    if findings.segments > 0 {
        write!(report, " and {} WAL segments", findings.segments)?;
    }
    writeln!(report, ", {} stored", format_size(findings.stored_bytes))
}

fn write_faults(report: &mut impl Write, faults: &[&Fault]) -> std::io::Result<()> {
    for fault in faults {
        writeln!(report, "  {}: {}; {}", fault.object, fault.reason, fault.consequence)?;
    }
    Ok(())
}

fn verdict(findings: &Findings) -> anyhow::Result<ExitCode> {
    let damaged = findings.faults.iter().filter(|fault| fault.damaged).count();
    let unread = findings.faults.len() - damaged;
    if damaged > 0 {
        let failure = Failure::new(ExitCode::Damaged, format!("{damaged} objects are damaged or missing"));
        return Err(failure.with_hint("take a new backup now, and restore only from what is listed as ok").into());
    }
    if unread > 0 {
        return Err(Failure::new(ExitCode::Failed, format!("{unread} objects could not be read")).into());
    }
    Ok(ExitCode::Done)
}
