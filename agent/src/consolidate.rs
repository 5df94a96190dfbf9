//! `pgark-agent consolidate`: makes a full backup of an incremental one and all on which it builds, inside the repository.
//!
//! The chain is proven first, as a restore does. Then its files are read as those of one backup (`pgark_restore`), and
//! written like those that a server sends: the commit mark comes last. The new backup is of the same moment and needs the
//! same WAL; its claim keeps the chain from expiry meanwhile. What the host of the server keeps for the next incremental
//! backup serves for the new one as well, because both are the same to the server.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use pgark_command::{
    Configuration, Environment, ExitCode, Failure, GlobalOptions, Overrides, Progress, ProgressDisplay,
    RepositoryConfiguration, Side, notify_about, notify_message, open_for_writing, open_repository,
};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{
    Backup, BackupId, BackupTargets, BackupWriter, BackupWriterOptions, CheckedBackup, Consolidated, Origin,
};
use pgark_restore::{
    Catalogue, Chain, CombinedBackup, CombinedFiles, CombinedPiece, Copies, ExtractError, Merged, RecoveryTarget,
    Request, Target, TargetTimeline, plan, read_included,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::backup::{WRITTEN_BY, Writing, give_up_in_time, host_name, summary, those_with};
use crate::stop_signal::stop_signal;

/// Pieces that wait between reading and writing.
const PIECES_AHEAD: usize = 16;

/// Arguments of `consolidate`.
#[derive(Args, Debug)]
pub struct ConsolidateArguments {
    /// The incremental backup, as `pgark-restore list` names it
    #[arg(value_name = "ID")]
    pub id: BackupId,

    /// Take the cluster with this system identifier [default: the one with the newest backup]
    #[arg(long, value_name = "NUMBER")]
    pub system_identifier: Option<SystemIdentifier>,

    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// Makes a full backup of a chain and returns when it is committed in every required repository.
///
/// # Errors
/// When the chain is not whole or not sound, or a repository fails: then there is no new backup, and the old ones are as
/// they were.
pub async fn consolidate(
    global: &GlobalOptions,
    environment: &Environment,
    arguments: &ConsolidateArguments,
) -> anyhow::Result<ExitCode> {
    let id = &arguments.id;
    let configuration = global.configuration(environment, &Overrides::none()).context("read the configuration")?;
    notify_about("consolidate", &configuration);
    let started = Instant::now();
    let stopped = stop_signal()?;
    tokio::pin!(stopped);
    let mut writing = Writing::Gone;
    let stored = {
        let store = async {
            let chosen = global.repositories(environment, &configuration)?;
            let merged = load(&chosen, &configuration, arguments.system_identifier).await?;
            let display = ProgressDisplay::detect(global);
            let source = Source::prove(&merged, id, &configuration, display).await?;
            source.store(&chosen, &configuration, &mut writing, display).await
        };
        tokio::select! {
            stored = store => stored,
            name = &mut stopped => Err(anyhow::anyhow!("stopped by {name}; nothing was committed")),
        }
    };
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) => {
            give_up_in_time(writing.abort()).await;
            return Err(error.context(format!("consolidate {id}")));
        }
    };
    let targets = stored.targets.clone();
    let backup = stored.commit().await.context("commit the backup")?;
    notify_message(format!("backup {} is stored", backup.id));
    match arguments.json {
        true => summary::print_json(&backup, &targets, started.elapsed(), &[])?,
        false => summary::print(&backup, &targets, started.elapsed())?,
    }
    Ok(ExitCode::Done)
}

async fn load(
    chosen: &[&RepositoryConfiguration],
    configuration: &Configuration,
    system_identifier: Option<SystemIdentifier>,
) -> anyhow::Result<Merged> {
    let open = |repository: &&RepositoryConfiguration| open_repository(repository, Side::Reading);
    let repositories = chosen.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let loaded = Catalogue::load_all(&repositories, &configuration.cluster.name, system_identifier, false).await;
    loaded.context("read the repository")
}

/// A chain that can be read as one backup.
struct Source {
    newest: Backup,
    copies: Copies,
    combined: Arc<CombinedBackup>,
    /// Of all files together.
    bytes: u64,
}

/// A backup that only needs its commit mark.
struct Stored {
    newest: Backup,
    checked: CheckedBackup,
    targets: BackupTargets,
}

impl Source {
    /// Finds the chain, and reads all of it that is not read while it is written.
    async fn prove(
        merged: &Merged,
        id: &BackupId,
        configuration: &Configuration,
        display: ProgressDisplay,
    ) -> anyhow::Result<Self> {
        let catalogue = &merged.catalogue;
        // A plan of a restore to the first moment knows whether the chain and its WAL are whole.
        let stop_timeline = catalogue.backup(id).map(|backup| backup.stop_timeline);
        let timeline = stop_timeline.map_or(TargetTimeline::Current, TargetTimeline::Number);
        let target = Target { stop: RecoveryTarget::Immediate, timeline, ..Target::end_of_archive() };
        let plan = plan(catalogue, &Request { target, backup: Some(id.clone()) })?;
        check(&plan.backup, &catalogue.backups.finished)?;
        let archive = merged.archive();
        let copies = archive.copies(&plan.backup);
        let mut survey = copies.survey().await.with_context(|| format!("read the backup {id}"))?;
        let older = plan.chain.iter().map(|older| archive.copies(older)).collect();
        let jobs = configuration.restore.workers().get();
        let chain = Chain::prove(&copies, older, &mut survey, jobs, display).await;
        let chain = chain.with_context(|| format!("read what {id} builds on"))?;
        let combined = Arc::new(CombinedBackup::new(copies.clone(), chain, &survey));
        Ok(Self { newest: plan.backup, copies, combined, bytes: survey.layout.bytes })
    }

    /// Writes everything but the commit mark.
    async fn store(
        self,
        chosen: &[&RepositoryConfiguration],
        configuration: &Configuration,
        writing: &mut Writing,
        display: ProgressDisplay,
    ) -> anyhow::Result<Stored> {
        let (cluster, system_identifier) = (&configuration.cluster.name, self.newest.server.system_identifier);
        let opened = open_for_writing(chosen)?.into_iter();
        let places = opened.map(|repository| repository.cluster(cluster, system_identifier));
        let places = those_with(places.collect::<Result<_, _>>()?, &self.newest).await?;
        let level = configuration.compression.level;
        let options = BackupWriterOptions {
            level,
            jobs: configuration.compression.workers().get(),
            part_bytes: configuration.backup.part_size,
        };
        let origin = Origin::ChainOf(self.newest.id.clone());
        let included = read_included(&self.copies, &self.newest).await?;
        let writer = BackupWriter::begin(places, origin, host_name(), WRITTEN_BY.to_owned(), options).await?;
        let targets = writer.targets().clone();
        *writing = Writing::Parts(Box::new(writer));
        let progress = Progress::start("consolidate", display);
        progress.set_total(self.bytes);
        let files = self.store_files(writing, &progress).await?;
        writing.begin_manifest().await?;
        self.store_manifest(files, writing).await?;
        let (mut checked, _) = writing.finish().await?;
        checked.include(included, level).await?;
        progress.finish();
        Ok(Stored { newest: self.newest, checked, targets })
    }

    async fn store_files(&self, writing: &mut Writing, progress: &Progress) -> anyhow::Result<CombinedFiles> {
        let Writing::Parts(writer) = writing else { bail!("the files come before the manifest") };
        let (combined, runtime) = (self.combined.clone(), Handle::current());
        let (sender, mut pieces) = mpsc::channel(PIECES_AHEAD);
        let reading = spawn_blocking(move || {
            // Nobody listens any more where writing has failed.
            combined.read(&runtime, &mut |piece| sender.blocking_send(piece).map_err(|_| ExtractError::Stopped))
        });
        while let Some(piece) = pieces.recv().await {
            match piece {
                CombinedPiece::Member(member) => writer.begin_member(&member, None).await?,
                CombinedPiece::Content(content) => {
                    writer.write(&content).await?;
                    progress.advance(content.len() as u64);
                }
            }
        }
        end_of(reading).await
    }

    async fn store_manifest(&self, files: CombinedFiles, writing: &mut Writing) -> anyhow::Result<()> {
        let Writing::Manifest(writer) = writing else { bail!("the manifest comes behind the files") };
        let (combined, runtime) = (self.combined.clone(), Handle::current());
        let (sender, mut lines) = mpsc::channel(PIECES_AHEAD);
        let reading = spawn_blocking(move || {
            let send =
                |line: &[u8]| sender.blocking_send(Bytes::copy_from_slice(line)).map_err(|_| ExtractError::Stopped);
            combined.read_manifest(&files, &runtime, send)
        });
        while let Some(line) = lines.recv().await {
            writer.write(line).await?;
        }
        end_of(reading).await
    }
}

impl Stored {
    async fn commit(self) -> anyhow::Result<Backup> {
        let Self { newest, checked, .. } = self;
        let manifest_sha256 = newest.manifest.sha256.clone();
        let consolidated = Consolidated { from: newest.id.clone(), manifest_sha256 };
        // What the writer knows better is replaced.
        let facts = |_| Backup {
            consolidated: Some(consolidated.clone()),
            written_by: WRITTEN_BY.to_owned(),
            ..newest.clone()
        };
        Ok(checked.commit(&facts).await?)
    }
}

/// Whether there is something to do.
fn check(backup: &Backup, all: &[Backup]) -> Result<(), Failure> {
    let id = &backup.id;
    if backup.parent.is_none() {
        return Err(Failure::new(ExitCode::Usage, format!("{id} is a full backup already")));
    }
    let is_made = |other: &&Backup| other.consolidated.as_ref().is_some_and(|made| made.from == *id);
    match all.iter().find(is_made) {
        Some(made) => Err(Failure::new(ExitCode::Usage, format!("{id} is consolidated already, as {}", made.id))),
        None => Ok(()),
    }
}

async fn end_of<T>(reading: JoinHandle<Result<T, ExtractError>>) -> anyhow::Result<T> {
    Ok(reading.await.context("the chain was not read to its end")??)
}
