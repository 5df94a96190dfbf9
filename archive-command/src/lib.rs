//! Ships one file of `pg_wal`.
//!
//! PostgreSQL may recycle the file as soon as this returns success, so nothing here returns early: the file is checked
//! against its name, stored in every repository and durable there. Whatever happens takes at most the deadline, since
//! a shutdown of the server waits for it.
//!
//! PostgreSQL asks for one segment at a time. When more are ready, they are shipped side by side with it, and their own
//! calls find a note of it in the [`spool`]. No process stays behind: the call ends when all of them are done.

mod ready;
mod source;
mod spool;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use pgark_command::{Configuration, RepositoryConfiguration, Side, open_repository};
use pgark_postgres::{SegmentName, WalFileName};
use pgark_repository::{PreparedWalFile, Repository, WalStored};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::ready::ready_after;
pub use self::source::{SourceError, SourceFile};
use self::spool::{FileIdentity, Spool};

/// Stores the file in every one of the repositories; it is durable in all of them on return.
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
    let ahead = match segment {
        Some(segment) => ahead_of(segment, file, configuration, &spool),
        None => Vec::new(),
    };
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
        let shipper = Arc::new(Shipper::new(configuration, repositories, spool, !ahead.is_empty())?);
        let mut others = JoinSet::new();
        let asked = shipper.clone().ship(file.to_owned());
        tokio::pin!(asked);
        // Polled once before the others begin, so that it is the first at the compressors.
        let mut first = futures_util::future::poll_immediate(&mut asked).await;
        for (segment, file) in ahead {
            others.spawn(shipper.clone().ship_ahead(segment, file));
        }
        if first.is_none() {
            first = tokio::select! {
                stored = &mut asked => Some(stored),
                reason = &mut stopped => bail!("{reason}; PostgreSQL will try again"),
            };
        }
        first.context("ship the file")??;
        // The answer is certain; the others may use what is left of the time.
        tokio::select! {
            () = async { while others.join_next().await.is_some() {} } => {}
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
fn ahead_of(
    segment: SegmentName,
    file: &Path,
    configuration: &Configuration,
    spool: &Spool,
) -> Vec<(SegmentName, PathBuf)> {
    let most = configuration.archive.ahead.saturating_sub(1);
    if most == 0 {
        return Vec::new();
    }
    let ahead = ready_after(segment, file, most);
    // Without a note each of them would be shipped twice.
    if !ahead.is_empty()
        && let Err(error) = spool.prepare()
    {
        tracing::info!(%error, "segments are shipped one by one, since state_dir cannot be written");
        return Vec::new();
    }
    ahead.into_iter().filter(|(segment, file)| !spool.confirms(*segment, file)).collect()
}

/// Ships files side by side.
struct Shipper {
    cluster: String,
    level: i32,
    /// Threads for one file.
    threads: usize,
    /// Files that are read and compressed at once.
    compressors: Semaphore,
    repositories: Vec<Repository>,
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
        let open = |repository: &&RepositoryConfiguration| open_repository(repository, Side::Writing);
        Ok(Self {
            cluster: configuration.cluster.name.clone(),
            level: configuration.compression.level,
            threads: if is_one_of_many { 1 } else { workers },
            compressors: Semaphore::new(workers),
            repositories: repositories.iter().map(open).collect::<anyhow::Result<_>>()?,
            spool,
        })
    }

    async fn ship(self: Arc<Self>, file: PathBuf) -> anyhow::Result<()> {
        let (level, threads) = (self.level, self.threads);
        let permit = self.compressors.acquire().await?;
        let prepared = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let source = SourceFile::read(&file)?;
            let prepared =
                PreparedWalFile::prepare(source.name, &source.content, level, threads).context("compress the file")?;
            Ok((prepared, source.system_identifier))
        });
        let (prepared, system_identifier) = prepared.await.context("read the file")??;
        drop(permit);
        let stores = self.repositories.iter().map(async |repository| -> anyhow::Result<()> {
            match repository.cluster(&self.cluster, system_identifier)?.store_wal_file(&prepared).await? {
                WalStored::New => tracing::debug!(file = %prepared.name(), repository = repository.name(), "stored"),
                WalStored::AlreadyThere => {
                    tracing::info!(file = %prepared.name(), repository = repository.name(), "was stored already");
                }
            }
            Ok(())
        });
        try_join_all(stores).await.map(drop)
    }

    /// A failure is told by the call for that very segment.
    async fn ship_ahead(self: Arc<Self>, segment: SegmentName, file: PathBuf) {
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
