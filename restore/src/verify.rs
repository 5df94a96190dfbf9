//! `pgark-restore verify`: reads what is stored and says what is wrong with it, all of it.
//!
//! Four proofs, from cheap to thorough. `objects`: the store lists every object of a backup with its size. `stored`: its
//! bytes have the CRC-32 that `backup.json` says, which needs no key. `content`: every file of a backup has the size and
//! the checksum of PostgreSQL's manifest, and every page its own. `wal`: the segments from each backup to the end of the
//! archive are there, and their records follow each other. `sample` chooses what is read when not all is. Nothing stops
//! at the first fault.

mod content;
mod objects;
mod run;
mod sample;
mod stored;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use pgark_command::{
    Configuration, Environment, ExitCode, Failure, GlobalOptions, ProgressDisplay, Report, Side, format_size,
    format_time, open_repository,
};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{Backup, BackupId, ErrorKind, ObjectKey, RepositoryError};
use serde::Serialize;

use self::run::{Run, Selection};
use self::sample::{LastReads, Sample};
use crate::catalogue::Catalogue;
use crate::proofs;

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArguments {
    /// The backups [default: all]
    #[arg(value_name = "ID")]
    backups: Vec<BackupId>,

    /// Compare sizes and checksums of what is stored only: this needs no key, and reads no WAL
    #[arg(long)]
    quick: bool,

    /// Read PERCENT of the stored bytes: what was read longest ago, and all that would be overdue by tomorrow
    ///
    /// verify.reread_within of the configuration says within which time everything is read again. What the store lists
    /// is compared for all objects in any case.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, conflicts_with = "backups")]
    sample: Option<f64>,

    /// Verify the cluster with this system identifier [default: the one with the newest backup]
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent: Option<f64> = text.trim_end_matches('%').parse().ok();
    percent
        .filter(|percent| (0.0..=100.0).contains(percent))
        .ok_or_else(|| "expected a number from 0 to 100".to_owned())
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
        Self { damaged: tells_of_damage(error), ..Self::damage(backup, named, reason(error)) }
    }

    /// An object without which the backup cannot be restored.
    fn damage(backup: &Backup, key: &ObjectKey, reason: String) -> Self {
        Self {
            backup: Some(backup.id.clone()),
            object: key.to_string(),
            reason,
            consequence: lost(&backup.id),
            damaged: true,
        }
    }
}

fn lost(id: &BackupId) -> String {
    format!("backup {id} cannot be restored")
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

impl Findings {
    /// Adds what is wrong with an object that nothing is known to be wrong with yet.
    fn add(&mut self, fault: Fault) {
        if !self.faults.iter().any(|known| known.backup == fault.backup && known.object == fault.object) {
            self.faults.push(fault);
        }
    }

    /// Adds one of several things that are wrong with an object.
    fn add_another(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    fn faults_of(&self, backup: &Backup) -> usize {
        self.faults.iter().filter(|fault| fault.backup.as_ref() == Some(&backup.id)).count()
    }

    /// What takes a backup away takes those away that build on it.
    fn note_for_children(&mut self, catalogue: &Catalogue, backups: &[&Backup]) {
        for child in backups {
            // A parent that is missing was found already.
            let chain = catalogue.chain_below(child).unwrap_or_default();
            let parents: Vec<(&BackupId, String)> = chain.iter().map(|older| (&older.id, lost(&older.id))).collect();
            let is_lost = |fault: &&Fault| {
                parents.iter().any(|(id, lost)| fault.backup.as_ref() == Some(*id) && fault.consequence == *lost)
            };
            let lost_too = |fault: &Fault| Fault {
                backup: Some(child.id.clone()),
                object: fault.object.clone(),
                reason: fault.reason.clone(),
                consequence: lost(&child.id),
                damaged: fault.damaged,
            };
            let faults: Vec<Fault> = self.faults.iter().filter(is_lost).map(lost_too).collect();
            faults.into_iter().for_each(|fault| self.add(fault));
        }
    }

    fn has_fault(&self, backup: Option<&BackupId>, object: &str) -> bool {
        self.faults.iter().any(|fault| fault.backup.as_ref() == backup && fault.object == object)
    }
}

#[derive(Serialize)]
struct VerifyJson<'v> {
    repository: &'v str,
    cluster: &'v str,
    system_identifier: SystemIdentifier,
    quick: bool,
    /// With `--sample`.
    sample: Option<SampleJson>,
    backups: Vec<&'v BackupId>,
    seconds: f64,
    #[serde(flatten)]
    findings: &'v Findings,
    /// The name of the recorded proof.
    proof: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
struct SampleJson {
    percent: f64,
    /// Objects and segments that there are.
    of_objects: u64,
    of_stored_bytes: u64,
    /// All of it was read at this time or later, or stored then.
    oldest_read: Option<Timestamp>,
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
    let loaded = Catalogue::load_for_report(&repository, cluster, system_identifier).await;
    let (catalogue, repository) = loaded.context("read the repository")?;
    refuse_without_key(&catalogue, arguments.quick)?;
    let run = Run {
        repository: &repository,
        catalogue: &catalogue,
        backups: choose(&catalogue, &arguments.backups)?,
        quick: arguments.quick,
        jobs: configuration.restore.workers().get(),
        display: ProgressDisplay::detect(options),
    };
    let mut findings = Findings::default();
    run.note_unreadable(&arguments.backups, &mut findings);
    let stock = run.stock();
    let sample = arguments.sample.map(|percent| Sample { percent, reread_within: configuration.verify.reread_within });
    let selection = match &sample {
        None => Selection::everything(&stock),
        Some(sample) => {
            let proofs = proofs::read_or_warn(configuration, catalogue.system_identifier).await;
            Selection::sample(&stock, sample, &LastReads::new(&proofs, arguments.quick), Timestamp::now())
        }
    };
    run.read(&stock, &selection, &mut findings).await;
    findings.note_for_children(&catalogue, &run.backups);
    let finding = run.proof(&stock, &selection, sample.is_some(), started.elapsed(), &findings);
    let proof = proofs::record(configuration, catalogue.system_identifier, finding).await;
    let sample = sample.map(|sample| selection.report(&stock, sample.percent));
    let mut report = Report::to_stdout();
    if arguments.json {
        let json = VerifyJson {
            repository: &catalogue.repository,
            cluster: &catalogue.cluster,
            system_identifier: catalogue.system_identifier,
            quick: arguments.quick,
            sample,
            backups: run.backups.iter().map(|backup| &backup.id).collect(),
            seconds: started.elapsed().as_secs_f64(),
            findings: &findings,
            proof: proof.map(|key| key.to_string()),
        };
        report.json("verify", &json)?;
    } else {
        write_text(&mut report, &run.backups, &findings, sample)?;
        report.flush()?;
    }
    verdict(&findings)
}

/// A full verification needs the private key; the first history that is encrypted to another one tells.
fn refuse_without_key(catalogue: &Catalogue, quick: bool) -> Result<(), Failure> {
    let lacks_key = |error: &&RepositoryError| matches!(error, RepositoryError::NoKey { .. });
    let errors = catalogue.unreadable_histories.iter().map(|(_, error)| error.as_ref());
    match errors.into_iter().find(lacks_key) {
        Some(error) if !quick => Err(Failure::new(ExitCode::Usage, format!("read the repository: {error}"))
            .with_hint("with --quick sizes and checksums are verified without a key")),
        _ => Ok(()),
    }
}

fn choose<'c>(catalogue: &'c Catalogue, wanted: &[BackupId]) -> Result<Vec<&'c Backup>, Failure> {
    if wanted.is_empty() {
        return Ok(catalogue.backups.finished.iter().collect());
    }
    let is_unreadable = |id: &BackupId| catalogue.backups.unreadable.iter().any(|unreadable| unreadable.id == *id);
    let known = |id: &BackupId| {
        catalogue
            .backup(id)
            .ok_or_else(|| Failure::new(ExitCode::Unreachable, format!("there is no finished backup {id}")))
    };
    let mut chosen: Vec<&Backup> =
        wanted.iter().filter(|id| !is_unreadable(id)).map(known).collect::<Result<_, _>>()?;
    // A backup is as good as those on which it builds.
    let chains: Vec<&Backup> =
        chosen.iter().flat_map(|backup| catalogue.chain_below(backup).unwrap_or_default()).collect();
    chosen.extend(chains);
    chosen.sort_by(|one, other| one.id.cmp(&other.id));
    chosen.dedup_by(|one, other| one.id == other.id);
    Ok(chosen)
}

fn write_text(
    report: &mut impl Write,
    backups: &[&Backup],
    findings: &Findings,
    sample: Option<SampleJson>,
) -> std::io::Result<()> {
    let mut by_backup: BTreeMap<Option<&BackupId>, Vec<&Fault>> = BTreeMap::new();
    for fault in &findings.faults {
        by_backup.entry(fault.backup.as_ref()).or_default().push(fault);
    }
    for backup in backups {
        by_backup.entry(Some(&backup.id)).or_default();
    }
    for (backup, faults) in by_backup.iter().filter_map(|(backup, faults)| Some(((*backup)?, faults))) {
        match faults.len() {
            0 => writeln!(report, "{backup}  ok")?,
            count => writeln!(report, "{backup}  {count} faults")?,
        }
        write_faults(report, faults)?;
    }
    if let Some(faults) = by_backup.get(&None) {
        writeln!(report, "WAL  {} faults", faults.len())?;
        write_faults(report, faults)?;
    }
    write!(report, "read {} objects", findings.objects)?;
    if findings.files > 0 && sample.is_none() {
        write!(report, " with {} files of {}", findings.files, format_size(findings.file_bytes))?;
    }
    if findings.segments > 0 {
        write!(report, " and {} WAL segments", findings.segments)?;
    }
    writeln!(report, ", {} stored", format_size(findings.stored_bytes))?;
    if let Some(sample) = sample {
        let oldest = sample.oldest_read.map_or(String::new(), |oldest| {
            format!("; everything was read or stored at {} or later", format_time(oldest))
        });
        let size = format_size(sample.of_stored_bytes);
        writeln!(report, "of {} objects and segments, {size} stored{oldest}", sample.of_objects)?;
    }
    Ok(())
}

fn write_faults(report: &mut impl Write, faults: &[&Fault]) -> std::io::Result<()> {
    for fault in faults {
        writeln!(report, "  {}: {}; {}", fault.object, fault.reason, fault.consequence)?;
    }
    Ok(())
}

fn verdict(findings: &Findings) -> anyhow::Result<ExitCode> {
    // One object may be told of for several backups.
    let objects = |damaged| {
        let faults = findings.faults.iter().filter(|fault| fault.damaged == damaged);
        faults.map(|fault| &fault.object).collect::<BTreeSet<_>>().len()
    };
    let (damaged, unread) = (objects(true), objects(false));
    if damaged > 0 {
        let failure = Failure::new(ExitCode::Damaged, format!("{damaged} objects are damaged or missing"));
        return Err(failure.with_hint("take a new backup now, and restore only from what is listed as ok").into());
    }
    if unread > 0 {
        return Err(Failure::new(ExitCode::Failed, format!("{unread} objects could not be read")).into());
    }
    Ok(ExitCode::Done)
}
