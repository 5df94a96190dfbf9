//! Where the WAL goes: all repositories that are required, each tried until it takes what it is given, and a lane into
//! each that is not.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pgark_command::StreamConfiguration;
use pgark_postgres::{SegmentHeader, SegmentName, SegmentSize, WalFileName};
use pgark_repository::{
    ClusterRepository, ErrorKind, PreparedPiece, PreparedWalFile, RepositoryError, WalCompressor, WalPiece, WalStored,
};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::backoff::Backoff;
use super::lane::{Lane, Obsolete};
use crate::catch_up::delete_pieces;

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
    /// What counts as stored is in all of these.
    pub(crate) required: Vec<ClusterRepository>,
    /// Into the others.
    lanes: Vec<Lane>,
    /// Notified when there may be something to make up for.
    pub(crate) catch_up: Arc<Notify>,
    pub(crate) level: i32,
    segments: WalCompressor,
    pieces: WalCompressor,
    /// One whole segment is in memory at a time, compressed.
    memory: Semaphore,
}

impl Destination {
    pub(crate) fn new(repositories: Vec<ClusterRepository>, level: i32) -> Self {
        let catch_up = Arc::<Notify>::default();
        let (optional, required) = repositories.iter().cloned().partition::<Vec<_>, _>(ClusterRepository::is_optional);
        let lanes = optional.into_iter().map(|repository| Lane::new(repository, Arc::clone(&catch_up))).collect();
        Self {
            repositories,
            required,
            lanes,
            catch_up,
            level,
            segments: WalCompressor::new(level, 1),
            // They do not stay for long.
            pieces: WalCompressor::new(level.min(3), 1),
            memory: Semaphore::new(1),
        }
    }

    /// Whether a repository that is not required lacks something, or may.
    pub(crate) fn is_behind(&self) -> bool {
        self.lanes.iter().any(Lane::is_behind)
    }

    /// How often something was left out on each lane, for [`Self::caught_up`].
    pub(crate) fn left_out(&self) -> Vec<u64> {
        self.lanes.iter().map(Lane::left_out).collect()
    }

    /// Notes that everything was made up for that had been left out by then.
    pub(crate) fn caught_up(&self, left_out: &[u64]) {
        self.lanes.iter().zip(left_out).for_each(|(lane, left_out)| lane.caught_up(*left_out));
    }

    /// Waits until the lanes have stored what they were given, unless their repositories are away.
    pub(crate) async fn settle(&self, patience: Duration) {
        let settled = async {
            while !self.lanes.iter().all(Lane::is_idle) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        drop(tokio::time::timeout(patience, settled).await);
    }

    /// Stores a segment that some repositories lack. It is fetched once there is memory for it.
    pub(crate) async fn fill_gap(
        &self,
        segment: SegmentName,
        lacking: &[ClusterRepository],
        fetch: impl Future<Output = anyhow::Result<Vec<u8>>>,
    ) -> anyhow::Result<()> {
        let _room = self.memory.acquire().await?;
        crate::wal_source::store(lacking, WalFileName::Segment(segment), &fetch.await?, self.level).await
    }

    /// Stores a whole segment of `size` bytes in every repository. It is read once there is memory for it.
    pub(crate) async fn store_segment(
        self: Arc<Self>,
        segment: SegmentName,
        mut input: impl Read + Send + 'static,
        size: SegmentSize,
    ) -> anyhow::Result<()> {
        let _room = self.memory.acquire().await?;
        let destination = Arc::clone(&self);
        let prepared = tokio::task::spawn_blocking(move || {
            let mut head = [0; SegmentHeader::BYTES];
            input.read_exact(&mut head)?;
            SegmentHeader::parse(&head)
                .and_then(|header| header.check_name(&segment, size.bytes()))
                .with_context(|| format!("look at segment {segment}"))?;
            let (name, whole) = (WalFileName::Segment(segment), io::Cursor::new(head).chain(input));
            anyhow::Ok(PreparedWalFile::read(&destination.segments, name, whole, size.bytes())?)
        });
        let prepared = prepared.await?.with_context(|| format!("read and compress segment {segment}"))?;
        self.store(segment, Prepared::Segment(prepared)).await
    }

    /// Stores a piece in every repository.
    pub(crate) async fn store_piece(
        self: Arc<Self>,
        segment: SegmentName,
        piece: WalPiece,
        input: impl Read + Send + 'static,
    ) -> anyhow::Result<()> {
        let destination = Arc::clone(&self);
        let prepared =
            tokio::task::spawn_blocking(move || PreparedPiece::read(&destination.pieces, segment, piece, input));
        let prepared = prepared.await?.with_context(|| format!("read and compress a piece of {segment}"))?;
        self.store(segment, Prepared::Piece(prepared)).await
    }

    async fn store(&self, segment: SegmentName, prepared: Prepared) -> anyhow::Result<()> {
        let prepared = Arc::new(prepared);
        let mut stores = JoinSet::new();
        for lane in &self.lanes {
            lane.store(segment, &prepared);
        }
        for repository in &self.required {
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
        is_obsolete: impl Fn(WalPiece) -> bool + Send + Sync + 'static,
    ) {
        let is_obsolete: Obsolete = Arc::new(is_obsolete);
        for lane in &self.lanes {
            lane.delete_pieces(segment, Arc::clone(&is_obsolete));
        }
        for repository in &self.required {
            if let Err(error) = delete_pieces(repository, segment, &*is_obsolete).await {
                tracing::debug!(%segment, error = &error as &dyn std::error::Error, "pieces were not deleted");
            }
        }
    }
}

pub(crate) enum Prepared {
    Segment(PreparedWalFile),
    Piece(PreparedPiece),
}

impl Prepared {
    pub(crate) fn stored_bytes(&self) -> u64 {
        match self {
            Self::Segment(file) => file.stored_bytes(),
            Self::Piece(piece) => piece.stored_bytes(),
        }
    }
}

/// Tries until a repository has it.
async fn until_stored(
    repository: ClusterRepository,
    segment: SegmentName,
    prepared: Arc<Prepared>,
) -> Result<(), Foreign> {
    let mut backoff = Backoff::default();
    loop {
        match store_once(&repository, &prepared).await {
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

pub(crate) async fn store_once(
    repository: &ClusterRepository,
    prepared: &Prepared,
) -> Result<WalStored, RepositoryError> {
    match prepared {
        Prepared::Segment(file) => repository.store_wal_file(file).await,
        Prepared::Piece(piece) => store_piece(repository, piece).await,
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
