//! The stage at which the writing of a backup stands: the writer changes its type with the manifest.

use std::time::Duration;

use anyhow::bail;
use pgark_postgres::ManifestEnd;
use pgark_repository::{BackupWriter, CheckedBackup, ManifestWriter};

/// How long a backup that has failed waits until its uploads are aborted: a store that hangs must not hang the exit.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);

/// Waits for the end of what gives a backup up, but not for long.
pub(crate) async fn give_up_in_time(giving_up: impl Future<Output = ()>) {
    if tokio::time::timeout(ABORT_PATIENCE, giving_up).await.is_err() {
        tracing::warn!("a repository does not answer: pieces of an unfinished upload may be left in it");
    }
}

/// What is being written, outside of the steps that write it: they may be broken off at any point.
pub(crate) enum Writing {
    /// Files.
    Parts(Box<BackupWriter>),
    /// The manifest.
    Manifest(Box<ManifestWriter>),
    /// Taken out for a step that failed.
    Gone,
}

impl Writing {
    /// Ends the files.
    pub(crate) async fn begin_manifest(&mut self) -> anyhow::Result<()> {
        if let Self::Parts(writer) = std::mem::replace(self, Self::Gone) {
            *self = Self::Manifest(Box::new(writer.begin_manifest().await?));
        }
        Ok(())
    }

    /// Compares the manifest and ends the writing.
    pub(crate) async fn finish(&mut self) -> anyhow::Result<(CheckedBackup, ManifestEnd)> {
        match std::mem::replace(self, Self::Gone) {
            Self::Manifest(writer) => Ok(writer.finish().await?),
            other => {
                *self = other;
                bail!("the server sent no manifest")
            }
        }
    }

    /// Gives the backup up and aborts what is being uploaded.
    pub(crate) async fn abort(self) {
        match self {
            Self::Parts(writer) => writer.abort().await,
            Self::Manifest(writer) => writer.abort().await,
            Self::Gone => {}
        }
    }

    /// Gives back the id of a backup that did not begin.
    pub(crate) async fn withdraw(self) {
        match self {
            Self::Parts(writer) => writer.withdraw().await,
            other => other.abort().await,
        }
    }
}
