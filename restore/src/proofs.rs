//! Where the proofs of drills and verifications are kept: the place that `[proofs]` names, or a directory of `state_dir`.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use pgark_command::{Configuration, Side, format_duration, format_time, open_repository, printable};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{
    BackupId, ClusterRepository, ObjectKey, PROOF_FORMAT, Proof, ProofKind, ProvenBackup, ReadSegments, Repository,
    RepositoryOptions,
};
use serde::Serialize;

/// So many of the newest proofs are looked at: a year of nightly ones, and more.
const NEWEST: usize = 500;

/// What a command has found out, without what all proofs have.
pub(crate) struct Finding {
    pub(crate) kind: ProofKind,
    pub(crate) seconds: f64,
    pub(crate) repository: String,
    pub(crate) passed: bool,
    pub(crate) summary: String,
    pub(crate) backups: Vec<ProvenBackup>,
    pub(crate) wal: Vec<ReadSegments>,
}

/// Stores a proof. The work is done by then: what goes wrong here is a warning.
pub(crate) async fn record(
    configuration: &Configuration,
    system_identifier: SystemIdentifier,
    finding: Finding,
) -> Option<ObjectKey> {
    let Finding { kind, seconds, repository, passed, summary, backups, wal } = finding;
    let proof = Proof {
        format: PROOF_FORMAT,
        kind,
        time: Timestamp::now(),
        seconds,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        repository,
        cluster: configuration.cluster.name.clone(),
        system_identifier,
        passed,
        summary,
        backups,
        wal,
        written_by: format!("pgark {}", env!("CARGO_PKG_VERSION")),
    };
    let recorded = async {
        let place = open(configuration, system_identifier)?;
        if configuration.proofs.place.is_none() {
            create_directory(&directory(configuration))?;
        }
        anyhow::Ok(place.record_proof(&proof).await?)
    };
    match recorded.await {
        Ok(key) => Some(key),
        Err(error) => {
            tracing::warn!("the proof could not be recorded: {error:#}");
            None
        }
    }
}

/// Reads the newest proofs, newest first.
pub(crate) async fn read(
    configuration: &Configuration,
    system_identifier: SystemIdentifier,
) -> anyhow::Result<Vec<Proof>> {
    if configuration.proofs.place.is_none() && !directory(configuration).exists() {
        return Ok(Vec::new());
    }
    let place = open(configuration, system_identifier)?;
    place.proofs(NEWEST).await.context("read the proofs of drills and verifications")
}

/// As [`read`], for reports: without its proofs a backup is as good as before.
pub(crate) async fn read_or_warn(configuration: &Configuration, system_identifier: SystemIdentifier) -> Vec<Proof> {
    read(configuration, system_identifier).await.unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        Vec::new()
    })
}

fn open(configuration: &Configuration, system_identifier: SystemIdentifier) -> anyhow::Result<ClusterRepository> {
    let place = match &configuration.proofs.place {
        Some(place) => open_repository(place, Side::Reading)?,
        None => {
            let url = format!("file://{}", directory(configuration).display());
            Repository::open(&RepositoryOptions { name: "proofs".to_owned(), url, ..RepositoryOptions::default() })?
        }
    };
    Ok(place.cluster(&configuration.cluster.name, system_identifier)?)
}

fn directory(configuration: &Configuration) -> std::path::PathBuf {
    configuration.state_dir.join("proofs")
}

fn create_directory(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}

/// What the newest proof of a backup says.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LastProof {
    pub(crate) time: Timestamp,
    pub(crate) by: ProofKind,
    pub(crate) passed: bool,
    /// When all of it was last proven: by a drill or a full verification that passed.
    pub(crate) last_whole: Option<Timestamp>,
}

impl LastProof {
    /// Looks for a backup in proofs that are sorted, newest first.
    pub(crate) fn of(id: &BackupId, proofs: &[Proof]) -> Option<Self> {
        let told =
            || proofs.iter().filter_map(|proof| Some((proof, proof.backups.iter().find(|told| told.id == *id)?)));
        let (newest, told_by_newest) = told().next()?;
        let whole = |(proof, told): &(&Proof, &ProvenBackup)| {
            told.passed && matches!(proof.kind, ProofKind::Drill | ProofKind::Full)
        };
        let last_whole = told().find(whole).map(|(proof, _)| proof.time);
        Some(Self { time: newest.time, by: newest.kind, passed: told_by_newest.passed, last_whole })
    }

    /// For a table.
    pub(crate) fn short(last: Option<&Self>) -> String {
        match last {
            None => "never".to_owned(),
            Some(last) => {
                let failed = if last.passed { "" } else { ", FAILED" };
                format!("{} {}{failed}", format_time(last.time), last.by.as_str())
            }
        }
    }
}

/// All that is known of one backup, newest first.
pub(crate) fn write_of_backup(report: &mut impl Write, id: &BackupId, proofs: &[Proof]) -> std::io::Result<()> {
    let mut any = false;
    for proof in proofs {
        let Some(told) = proof.backups.iter().find(|told| told.id == *id) else { continue };
        any = true;
        writeln!(
            report,
            "proof        {} {} {} on {} in {}: {}",
            format_time(proof.time),
            proof.kind.as_str(),
            if told.passed { "passed" } else { "failed" },
            printable(&proof.host),
            format_duration(std::time::Duration::from_secs_f64(proof.seconds.clamp(0.0, 1e9))),
            printable(&proof.summary)
        )?;
    }
    if !any {
        writeln!(report, "proof        none: pgark-restore drill --backup {id}, or pgark-restore verify {id}")?;
    }
    Ok(())
}
