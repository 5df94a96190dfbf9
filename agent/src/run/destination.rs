//! Where the WAL goes: all repositories, each tried until it takes what it is given.

use std::path::PathBuf;
use std::sync::Arc;

use pgark_command::StreamConfiguration;
use pgark_postgres::{SegmentName, WalFileName};
use pgark_repository::{
    ClusterRepository, ErrorKind, PreparedPiece, PreparedWalFile, RepositoryError, WalPiece, WalStored,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::backoff::Backoff;

/// What the configuration says.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) cluster: String,
    pub(crate) level: i32,
    /// Where the segments that are not stored yet lie.
    pub(crate) spool: PathBuf,
    pub(crate) stream: StreamConfiguration,
}

/// The name of a segment is taken by other WAL.
#[derive(Debug, thiserror::Error)]
#[error(
    "segment {segment} of this server is not the one in the repository `{repository}`: two servers write timeline {}; \
     let only one of them archive here, or promote one so that it gets a timeline of its own",
    segment.timeline
)]
pub(crate) struct Foreign {
    segment: SegmentName,
    repository: String,
    source: RepositoryError,
}

/// All repositories of the cluster.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) repositories: Vec<ClusterRepository>,
    pub(crate) level: i32,
    /// One whole segment is in memory at a time.
    memory: Semaphore,
}

impl Destination {
    pub(crate) fn new(repositories: Vec<ClusterRepository>, level: i32) -> Self {
        Self { repositories, level, memory: Semaphore::new(1) }
    }

    /// Stores a whole segment in every repository. `read` gets its bytes once there is memory for them.
    pub(crate) async fn store_segment(
        &self,
        segment: SegmentName,
        read: impl FnOnce() -> anyhow::Result<Vec<u8>> + Send + 'static,
    ) -> anyhow::Result<()> {
        let _room = self.memory.acquire().await?;
        let level = self.level;
        let prepared = tokio::task::spawn_blocking(move || {
            anyhow::Ok(PreparedWalFile::prepare(WalFileName::Segment(segment), &read()?, level, 1)?)
        });
        self.store(segment, Prepared::Segment(prepared.await??)).await
    }

    /// Stores a piece in every repository.
    pub(crate) async fn store_piece(&self, piece: PreparedPiece) -> anyhow::Result<()> {
        self.store(piece.segment(), Prepared::Piece(piece)).await
    }

    async fn store(&self, segment: SegmentName, prepared: Prepared) -> anyhow::Result<()> {
        let prepared = Arc::new(prepared);
        let mut stores = JoinSet::new();
        for repository in &self.repositories {
            stores.spawn(until_stored(repository.clone(), segment, Arc::clone(&prepared)));
        }
        while let Some(stored) = stores.join_next().await {
            stored??;
        }
        Ok(())
    }

    /// Deletes pieces whose bytes are in other objects by now. What stays behind does no harm.
    pub(crate) async fn delete_pieces(
        &self,
        segment: SegmentName,
        is_obsolete: impl Fn(WalPiece) -> bool + Send + Sync,
    ) {
        for repository in &self.repositories {
            if let Err(error) = delete_pieces(repository, segment, &is_obsolete).await {
                tracing::debug!(%segment, error = &error as &dyn std::error::Error, "pieces were not deleted");
            }
        }
    }
}

enum Prepared {
    Segment(PreparedWalFile),
    Piece(PreparedPiece),
}

/// Tries until a repository has it.
async fn until_stored(
    repository: ClusterRepository,
    segment: SegmentName,
    prepared: Arc<Prepared>,
) -> Result<(), Foreign> {
    let mut backoff = Backoff::default();
    loop {
        let stored = match &*prepared {
            Prepared::Segment(file) => repository.store_wal_file(file).await,
            Prepared::Piece(piece) => store_piece(&repository, piece).await,
        };
        match stored {
            Ok(WalStored::New | WalStored::AlreadyThere) => return Ok(()),
            Err(source @ RepositoryError::Conflict { .. }) => {
                return Err(Foreign { segment, repository: repository.name().to_owned(), source });
            }
            Err(error) => {
                tracing::warn!(%segment, error = &error as &dyn std::error::Error, "WAL is not stored yet; trying again");
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn store_piece(repository: &ClusterRepository, piece: &PreparedPiece) -> Result<WalStored, RepositoryError> {
    match repository.store_wal_piece(piece).await {
        // A server that crashed may write its last WAL once more, and only that counts. A damaged one is no loss.
        Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Damaged) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "replacing a piece that is not what the server has written"
            );
            drop(error);
            repository.delete_wal_piece(piece.segment(), piece.piece(), repository.sealing()).await?;
            repository.store_wal_piece(piece).await
        }
        stored => stored,
    }
}

async fn delete_pieces(
    repository: &ClusterRepository,
    segment: SegmentName,
    is_obsolete: &(impl Fn(WalPiece) -> bool + Send + Sync),
) -> Result<(), RepositoryError> {
    for (piece, sealing) in repository.wal_pieces(segment).await? {
        if is_obsolete(piece) {
            repository.delete_wal_piece(segment, piece, sealing).await?;
        }
    }
    Ok(())
}
