//! Makes sure that the WAL of a backup is in every required repository: waits for the archive, and fetches over the replication
//! protocol what nobody delivers. A temporary slot, made before the backup, keeps the WAL on the server meanwhile.

use std::time::{Duration, Instant};

use anyhow::Context;
use pgark_postgres::{SegmentName, SegmentSize, TimelineId, WalFileName};
use pgark_repository::{ClusterRepository, RepositoryError};

use crate::replication::{ConnectionOptions, ReplicationConnection, ReplicationError, SlotKind};
use crate::wal_source::{deliver_histories, fetch_segment, missing_in, store};

/// How long it takes until the repositories are asked again while the archive is waited for: most servers have archived
/// the last segment at once, and the others take long.
const FIRST_POLL: Duration = Duration::from_millis(50);
const POLL: Duration = Duration::from_millis(500);
/// Idle connections are ended by `idle_session_timeout`; a question now and then is enough.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long a repository that is not required may take for the WAL of a backup.
const OPTIONAL_PATIENCE: Duration = Duration::from_secs(60);

/// Holds the WAL on the server from before the backup until it is stored.
pub(super) struct WalHold {
    connection: ReplicationConnection,
    slot: Option<String>,
}

impl WalHold {
    /// Opens a second replication connection and makes a temporary slot that reserves WAL from now on.
    pub(super) async fn begin(options: &ConnectionOptions) -> anyhow::Result<Self> {
        let mut connection = ReplicationConnection::connect(options)
            .await
            .context("open a second replication connection, which holds the backup's WAL")?;
        // PostgreSQL 13 streams WAL only to who has asked this.
        connection.identify_system().await?;
        let name = format!("pgark_backup_{}", std::process::id());
        let slot = match connection.create_physical_slot(&name, SlotKind::Temporary, true).await {
            Ok(()) => Some(name),
            Err(error @ ReplicationError::NoSlotFree { .. }) => {
                tracing::warn!(
                    hint = error.hint(),
                    "no replication slot is free: the backup's WAL is not held on the server"
                );
                None
            }
            Err(error) => return Err(error).context("create a temporary replication slot"),
        };
        Ok(Self { connection, slot })
    }

    /// Keeps the connection alive; never returns unless it breaks.
    pub(super) async fn keep(&mut self) -> ReplicationError {
        loop {
            tokio::time::sleep(KEEPALIVE).await;
            if let Err(error) = self.connection.identify_system().await {
                return error;
            }
        }
    }

    /// Stores the histories of a timeline and of all its ancestors where they are missing.
    pub(super) async fn deliver_histories(
        &mut self,
        repositories: &[ClusterRepository],
        timeline: TimelineId,
        level: i32,
    ) -> anyhow::Result<()> {
        deliver_histories(&mut self.connection, repositories, timeline, level).await.map(drop)
    }

    /// Waits until every segment is in every repository, at most `patience`, then fetches the rest.
    pub(super) async fn deliver_segments(
        &mut self,
        repositories: &[ClusterRepository],
        segments: &[SegmentName],
        size: SegmentSize,
        patience: Duration,
        level: i32,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut rest: Vec<SegmentName> = segments.to_vec();
        let mut pause = FIRST_POLL;
        loop {
            let mut missing = Vec::new();
            for segment in rest {
                if !missing_in(repositories, &WalFileName::Segment(segment)).await?.is_empty() {
                    missing.push(segment);
                }
            }
            rest = missing;
            let (Some(first), elapsed) = (rest.first(), started.elapsed()) else { return Ok(()) };
            if elapsed >= patience {
                if !patience.is_zero() {
                    tracing::warn!(
                        segment = %first,
                        seconds = elapsed.as_secs(),
                        "the archive command did not deliver the backup's WAL; fetching it over the replication protocol"
                    );
                }
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL);
        }
        for segment in rest {
            let content =
                fetch_segment(&mut self.connection, self.slot.as_deref(), segment, size).await.with_context(|| {
                    format!("fetch {segment}, which the archive does not have, over the replication protocol")
                })?;
            let name = WalFileName::Segment(segment);
            store(&missing_in(repositories, &name).await?, name, &content, level).await?;
        }
        Ok(())
    }

    /// Stores what a repository lacks that is not required: from one of those that are, else from the server.
    pub(super) async fn deliver_to_optional(
        &mut self,
        (sources, repository): (&[ClusterRepository], &ClusterRepository),
        timeline: TimelineId,
        segments: &[SegmentName],
        size: SegmentSize,
        level: i32,
    ) -> Result<(), RepositoryError> {
        let delivery = async {
            let own = std::slice::from_ref(repository);
            deliver_histories(&mut self.connection, own, timeline, level).await?;
            for segment in segments {
                let name = WalFileName::Segment(*segment);
                if repository.has_wal_file(&name).await? {
                    continue;
                }
                if let Some(source) = sources.iter().find(|source| repository.can_copy_from(source)) {
                    repository.copy_wal_file(source, &name).await?;
                } else {
                    let content = fetch_segment(&mut self.connection, self.slot.as_deref(), *segment, size).await?;
                    store(own, name, &content, level).await?;
                }
            }
            anyhow::Ok(())
        };
        let unavailable = |reason: Box<dyn std::error::Error + Send + Sync>| RepositoryError::Unavailable {
            repository: repository.name().to_owned(),
            operation: "store the backup's WAL in",
            key: repository.keys().wal(),
            source: reason,
        };
        match tokio::time::timeout(OPTIONAL_PATIENCE, delivery).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.downcast().unwrap_or_else(|error| unavailable(error.into()))),
            Err(_) => Err(unavailable(format!("not done after {} s", OPTIONAL_PATIENCE.as_secs()).into())),
        }
    }

    /// Lets the server forget the slot.
    pub(super) async fn end(self) {
        self.connection.close().await;
    }
}
