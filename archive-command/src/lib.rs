//! Ships one file of `pg_wal`.
//!
//! PostgreSQL may recycle the file as soon as this returns success, so nothing here returns early: the file is checked
//! against its name, stored in every repository and durable there. Whatever happens takes at most the deadline, since
//! a shutdown of the server waits for it.

mod source;

use std::path::Path;

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use pgark_command::{Configuration, RepositoryConfiguration, Side, open_repository};
use pgark_repository::{PreparedWalFile, WalStored};
use tokio::signal::unix::{SignalKind, signal};

pub use source::{SourceError, SourceFile};

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let deadline = configuration.archive.deadline;
        tokio::select! {
            stored = store(file, configuration, repositories) => stored,
            () = tokio::time::sleep(deadline) => {
                bail!("not done after {} s (archive.deadline); PostgreSQL will try again", deadline.as_secs_f64())
            }
            _ = terminate.recv() => bail!("stopped by SIGTERM; PostgreSQL will try again"),
            _ = interrupt.recv() => bail!("stopped by SIGINT; PostgreSQL will try again"),
        }
    });
    // A file system that hangs must not hold the process: its threads are left behind.
    runtime.shutdown_background();
    outcome
}

async fn store(
    file: &Path,
    configuration: &Configuration,
    repositories: &[&RepositoryConfiguration],
) -> anyhow::Result<()> {
    let path = file.to_owned();
    let compression = configuration.compression;
    let prepared = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let source = SourceFile::read(&path)?;
        let prepared =
            PreparedWalFile::prepare(source.name, &source.content, compression.level, compression.workers().get())
                .context("compress the file")?;
        Ok((prepared, source.system_identifier))
    });
    let (prepared, system_identifier) = prepared.await.context("read the file")??;
    let stores = repositories.iter().map(async |repository| -> anyhow::Result<()> {
        let cluster =
            open_repository(repository, Side::Writing)?.cluster(&configuration.cluster.name, system_identifier)?;
        match cluster.store_wal_file(&prepared).await? {
            WalStored::New => tracing::debug!(file = %prepared.name(), repository = repository.name, "stored"),
            WalStored::AlreadyThere => {
                tracing::info!(file = %prepared.name(), repository = repository.name, "was stored already");
            }
        }
        Ok(())
    });
    try_join_all(stores).await.map(drop)
}
