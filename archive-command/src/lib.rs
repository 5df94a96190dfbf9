//! Ships one file of `pg_wal`.
//!
//! PostgreSQL may recycle the file as soon as this returns success, so nothing here returns early: the file is checked
//! against its name, stored in every required repository and durable there. Whatever happens takes at most the deadline,
//! since a shutdown of the server waits for it. A repository that is not required is given a few seconds more, and then
//! left alone for a while; what it missed is copied into it by a later call.
//!
//! PostgreSQL asks for one segment at a time. When more are ready, they are shipped side by side with it, and their own
//! calls find a note of it in the [`spool`]. No process stays behind: the call ends when all of them are done.

mod absence;
mod ready;
mod source;
mod spool;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::{join_all, try_join_all};
use pgark_command::{Configuration, RepositoryConfiguration, open_for_writing};
use pgark_postgres::{SegmentName, SystemIdentifier, WalFileName};
use pgark_repository::{
    ClusterRepository, PreparedWalFile, Repository, RepositoryError, WalCompressor, WalPlace, WalStored,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;

use self::absence::Absence;
use self::ready::{Ready, ready_after};
pub use self::source::{Content, SourceError, SourceFile};
use self::spool::{FileIdentity, Spool};

/// How long a call takes on further segments. Longer calls leave less idle time between them, but PostgreSQL waits for
/// one when it shuts down.
const TAKING_ON: Duration = Duration::from_secs(2);
/// How long a repository that is not required may take after the others are done, besides the time for its bytes.
const GRACE: Duration = Duration::from_secs(5);
/// Slower than this, it is as good as away.
const SLOWEST_BYTES_PER_SECOND: u64 = 4 << 20;
/// How long one call copies what was missed.
const MAKING_UP: Duration = Duration::from_secs(5);

/// Stores the file in the repositories; it is durable in all that are required on return.
///
/// # Errors
/// When the file is not what its name says, when a repository refuses it or cannot be reached, at the deadline of the
/// configuration, and on SIGTERM.
pub fn archive(
    file: &Path,
    configuration: &Configuration,
    repositories: &[&RepositoryConfiguration],
) -> anyhow::Result<()> {
    let spool = Spool::new(configuration, repositories);
    let segment = segment_of(file);
    if segment.is_some_and(|segment| spool.confirms(segment, file)) {
        tracing::debug!(file = %file.display(), "was stored by an earlier call");
        return Ok(());
    }
    let ahead = segment.map(|segment| ahead_of(segment, file, configuration, &spool)).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let deadline = configuration.archive.deadline;
        let stopped = async {
            tokio::select! {
                () = tokio::time::sleep(deadline) => format!("not done after {} s (archive.deadline)", deadline.as_secs_f64()),
                _ = terminate.recv() => "stopped by SIGTERM".to_owned(),
                _ = interrupt.recv() => "stopped by SIGINT".to_owned(),
            }
        };
        tokio::pin!(stopped);
        let is_one_of_many = ahead.at_once > 0 && !ahead.segments.is_empty();
        let shipper = Arc::new(Shipper::new(configuration, repositories, spool, is_one_of_many)?);
        let asked = shipper.clone().ship(file.to_owned());
        tokio::pin!(asked);
        // Polled once before the others begin, so that it is the first at the compressors.
        let mut first = futures_util::future::poll_immediate(&mut asked).await;
        let others = tokio::spawn(shipper.clone().ship_ahead(ahead));
        if first.is_none() {
            first = tokio::select! {
                stored = &mut asked => Some(stored),
                reason = &mut stopped => bail!("{reason}; PostgreSQL will try again"),
            };
        }
        let system_identifier = first.context("ship the file")??;
        // The answer is certain; the others may use what is left of the time.
        let rest = async {
            others.await?;
            shipper.make_up(system_identifier).await;
            Ok::<_, tokio::task::JoinError>(())
        };
        tokio::select! {
            ended = rest => ended.context("ship the segments behind it")?,
            reason = &mut stopped => tracing::info!(reason, "left the segments behind it to later calls"),
        }
        Ok(())
    });
    // A file system that hangs must not hold the process: its threads are left behind.
    runtime.shutdown_background();
    outcome
}

fn segment_of(file: &Path) -> Option<SegmentName> {
    match file.file_name()?.to_str()?.parse() {
        Ok(WalFileName::Segment(segment)) => Some(segment),
        _ => None,
    }
}

/// What is shipped besides the file that was asked for.
fn ahead_of(segment: SegmentName, file: &Path, configuration: &Configuration, spool: &Spool) -> Ready {
    let most = configuration.archive.ahead.saturating_sub(1);
    if most == 0 {
        return Ready::default();
    }
    let ahead = ready_after(segment, file, most);
    // Without a note each of them would be shipped twice.
    if !ahead.segments.is_empty()
        && let Err(error) = spool.prepare()
    {
        tracing::info!(%error, "segments are shipped one by one, since state_dir cannot be written");
        return Ready::default();
    }
    ahead
}

/// Ships files side by side.
struct Shipper {
    cluster: String,
    level: i32,
    compressor: Arc<WalCompressor>,
    /// Files that are read and compressed at once.
    compressors: Semaphore,
    required: Vec<Repository>,
    optional: Vec<(Repository, Absence)>,
    /// How many files are made up for at once.
    most: usize,
    spool: Spool,
}

impl Shipper {
    fn new(
        configuration: &Configuration,
        repositories: &[&RepositoryConfiguration],
        spool: Spool,
        is_one_of_many: bool,
    ) -> anyhow::Result<Self> {
        let workers = configuration.compression.workers().get();
        let cluster = &configuration.cluster.name;
        let (optional, required) =
            open_for_writing(repositories)?.into_iter().partition::<Vec<_>, _>(Repository::is_optional);
        let with_absence = |repository: Repository| {
            let absence = Absence::new(&configuration.state_dir, cluster, repository.name());
            (repository, absence)
        };
        Ok(Self {
            cluster: cluster.clone(),
            level: configuration.compression.level,
            compressor: Arc::new(WalCompressor::new(
                configuration.compression.level,
                if is_one_of_many { 1 } else { workers },
            )),
            compressors: Semaphore::new(workers),
            required,
            optional: optional.into_iter().map(with_absence).collect(),
            most: configuration.archive.ahead,
            spool,
        })
    }

    async fn ship(self: Arc<Self>, file: PathBuf) -> anyhow::Result<SystemIdentifier> {
        let permit = self.compressors.acquire().await?;
        let source = tokio::task::spawn_blocking(move || SourceFile::read(&file)).await.context("read the file")??;
        let (name, system_identifier) = (source.name, source.system_identifier);
        let places = self.required.iter().map(|repository| self.place(repository, system_identifier, &name));
        let (prepared, places) = tokio::join!(self.prepare(source, permit), try_join_all(places));
        let prepared = prepared?;
        let required = async { try_join_all(places?.iter().map(|place| store(place, &prepared))).await };
        let (required_done, is_done) = tokio::sync::watch::channel(false);
        let optional = self.optional.iter().map(|(repository, absence)| {
            let store = async { store(&self.place(repository, system_identifier, &name).await?, &prepared).await };
            store_if_there(repository, absence, prepared.name(), prepared.stored_bytes(), store, is_done.clone())
        });
        let required = async {
            let stored = required.await;
            required_done.send_replace(true);
            stored
        };
        let (stored, _) = tokio::join!(required, join_all(optional));
        stored?;
        Ok(system_identifier)
    }

    async fn prepare(&self, source: SourceFile, permit: SemaphorePermit<'_>) -> anyhow::Result<PreparedWalFile> {
        let (compressor, level) = (Arc::clone(&self.compressor), self.level);
        let prepared = tokio::task::spawn_blocking(move || match source.content {
            Content::Segment { file, size } => PreparedWalFile::read(&compressor, source.name, file, size),
            Content::Text(text) => PreparedWalFile::prepare(source.name, &text, level, 1),
        });
        let prepared = prepared.await.context("compress the file")?.context("read and compress the file")?;
        drop(permit);
        Ok(prepared)
    }

    async fn place(
        &self,
        repository: &Repository,
        system_identifier: SystemIdentifier,
        name: &WalFileName,
    ) -> Result<WalPlace, RepositoryError> {
        repository.cluster(&self.cluster, system_identifier)?.wal_place(name).await
    }

    /// Copies into repositories that are back what they have missed, as much as one call would ship.
    async fn make_up(&self, system_identifier: SystemIdentifier) {
        for (repository, absence) in self.optional.iter().filter(|(_, absence)| !absence.is_recent()) {
            let lacks = absence.lacks(self.most);
            let Some(source) = self.required.first().filter(|_| !lacks.is_empty()) else { continue };
            let places = [source, repository].map(|place| place.cluster(&self.cluster, system_identifier));
            let [Ok(source), Ok(place)] = places else { continue };
            let copies = lacks.iter().map(async |file| {
                match place.copy_wal_file(&source, file).await {
                    // It has never been stored, or is no longer kept.
                    Ok(_) | Err(RepositoryError::NotFound { .. }) => {
                        absence.made_up(file);
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            });
            let copied = tokio::time::timeout(MAKING_UP, join_all(copies)).await.unwrap_or_default();
            match copied.into_iter().find_map(Result::err) {
                None => tracing::debug!(repository = place.name(), "made up for what it missed"),
                Some(error) => tell_of_failed_copy(&place, absence, &lacks, error),
            }
        }
    }

    /// Ships what waits, several segments at once, and takes on new ones for [`TAKING_ON`].
    async fn ship_ahead(self: Arc<Self>, ahead: Ready) {
        let until = Instant::now() + TAKING_ON;
        let mut waiting = ahead.segments.into_iter().filter(|(segment, file)| !self.spool.confirms(*segment, file));
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < ahead.at_once
                && Instant::now() < until
                && let Some((segment, file)) = waiting.next()
            {
                under_way.spawn(self.clone().ship_one_ahead(segment, file));
            }
            if under_way.join_next().await.is_none() {
                return;
            }
        }
    }

    /// A failure is told by the call for that very segment.
    async fn ship_one_ahead(self: Arc<Self>, segment: SegmentName, file: PathBuf) {
        let shipped = async {
            let identity = FileIdentity::of(&std::fs::metadata(&file)?);
            self.clone().ship(file.clone()).await?;
            Ok::<_, anyhow::Error>(self.spool.keep(segment, &identity)?)
        };
        if let Err(error) = shipped.await {
            tracing::debug!(%segment, %error, "was not shipped ahead");
        }
    }
}

async fn store(place: &WalPlace, prepared: &PreparedWalFile) -> Result<(), RepositoryError> {
    match place.store(prepared).await? {
        WalStored::New => tracing::debug!(file = %prepared.name(), repository = place.repository(), "stored"),
        WalStored::AlreadyThere => {
            tracing::info!(file = %prepared.name(), repository = place.repository(), "was stored already");
        }
    }
    Ok(())
}

/// Stores a file in a repository that is not required, unless it was away a moment ago; what it misses is noted.
async fn store_if_there(
    repository: &Repository,
    absence: &Absence,
    file: &WalFileName,
    bytes: u64,
    store: impl Future<Output = Result<(), RepositoryError>>,
    mut required_done: tokio::sync::watch::Receiver<bool>,
) {
    let name = repository.name();
    let stored = async {
        if absence.is_recent() {
            return false;
        }
        let grace = async {
            // Closed only together with all of this.
            drop(required_done.wait_for(|done| *done).await);
            tokio::time::sleep(GRACE + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)).await;
        };
        let failure = tokio::select! {
            stored = store => match stored {
                Ok(()) => return true,
                Err(error) => anyhow::Error::from(error),
            },
            () = grace => anyhow::anyhow!("no answer in time"),
        };
        match absence.begin() {
            Ok(false) => tracing::debug!(repository = name, "is still away"),
            noted => {
                let error: &(dyn std::error::Error + 'static) = failure.as_ref();
                tracing::warn!(
                    repository = name,
                    error,
                    is_noted = noted.is_ok(),
                    "is away; archiving goes on without it, and it is filled up when it is back"
                );
            }
        }
        false
    };
    if stored.await {
        if absence.end() {
            tracing::warn!(repository = name, "is back");
        }
        absence.made_up(file);
    } else if let Err(error) = absence.missed(file) {
        tracing::debug!(%error, "what it missed cannot be noted");
    }
}

/// What cannot be copied at all is not tried again by each call.
fn tell_of_failed_copy(place: &ClusterRepository, absence: &Absence, lacks: &[WalFileName], error: RepositoryError) {
    let is_final = matches!(error, RepositoryError::Configuration { .. } | RepositoryError::Conflict { .. });
    let error: &(dyn std::error::Error + 'static) = &error;
    if is_final {
        lacks.iter().for_each(|file| absence.made_up(file));
        tracing::warn!(
            repository = place.name(),
            error,
            files = lacks.len(),
            "cannot be filled up by copying; pgark-agent run fetches from the server what that still has"
        );
    } else {
        tracing::debug!(repository = place.name(), error, "not filled up yet");
    }
}
