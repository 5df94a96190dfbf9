//! Makes sure that the WAL of a backup is in every repository: waits for the archive, and fetches over the replication
//! protocol what nobody delivers. A temporary slot, made before the backup, keeps the WAL on the server meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use pgark_postgres::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use pgark_repository::{ClusterRepository, PreparedWalFile};

use crate::replication::{ConnectionOptions, ReplicationConnection, ReplicationError, SlotKind, WalMessage};

/// How often the repositories are asked while the archive is waited for.
const POLL: Duration = Duration::from_millis(500);
/// Idle connections are ended by `idle_session_timeout`; a question now and then is enough.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long the server may take to send what it has.
const FETCH_PATIENCE: Duration = Duration::from_secs(60);

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
        if timeline.get() == 1 {
            return Ok(());
        }
        let file = self.connection.timeline_history(timeline).await?;
        let history = TimelineHistory::parse(timeline, &file.content)
            .with_context(|| format!("read the server's {}", file.name))?;
        let ancestors = history.entries().iter().map(|entry| entry.timeline).filter(|id| id.get() > 1);
        for timeline in ancestors.chain([timeline]) {
            let name = WalFileName::History(timeline);
            let missing = missing_in(repositories, &name).await?;
            if missing.is_empty() {
                continue;
            }
            match self.connection.timeline_history(timeline).await {
                Ok(file) => store(&missing, name, &file.content, level).await?,
                Err(error) if error.is_missing_file() => {
                    bail!("{name} is in the repository no more than on the server; it is needed for recovery")
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
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
            tokio::time::sleep(POLL).await;
        }
        for segment in rest {
            let content = self.fetch_segment(segment, size).await.with_context(|| {
                format!("fetch {segment}, which the archive does not have, over the replication protocol")
            })?;
            let name = WalFileName::Segment(segment);
            store(&missing_in(repositories, &name).await?, name, &content, level).await?;
        }
        Ok(())
    }

    async fn fetch_segment(&mut self, segment: SegmentName, size: SegmentSize) -> anyhow::Result<Vec<u8>> {
        let (start, end) = (segment.start(size), segment.end(size));
        let mut content = Vec::with_capacity(usize::try_from(size.bytes())?);
        let mut stream = self.connection.start_replication(self.slot.as_deref(), start, segment.timeline).await?;
        let deadline = tokio::time::Instant::now() + FETCH_PATIENCE;
        while stream.position() < end {
            let Ok(message) = tokio::time::timeout_at(deadline, stream.next()).await else {
                bail!(
                    "the server has not finished the segment after {} s; run SELECT pg_switch_wal() on the primary",
                    FETCH_PATIENCE.as_secs()
                )
            };
            match message? {
                Some(WalMessage::Data { bytes, .. }) => {
                    let room = usize::try_from(size.bytes())? - content.len();
                    content.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Some(WalMessage::Keepalive { reply_requested: true, .. }) => {
                    // Nothing is acknowledged: the slot goes away with the connection.
                    stream.send_status(Lsn::ZERO, Lsn::ZERO, Lsn::ZERO, false).await?;
                }
                Some(WalMessage::Keepalive { .. }) => {}
                Some(WalMessage::TimelineEnd(_) | WalMessage::ServerShutdown) | None => {
                    bail!("the server ended its stream at {}", stream.position())
                }
            }
        }
        stream.stop().await?;
        let header = pgark_postgres::SegmentHeader::parse(&content)?;
        header.check_name(&segment, content.len() as u64)?;
        Ok(content)
    }

    /// Lets the server forget the slot.
    pub(super) async fn end(self) {
        self.connection.close().await;
    }
}

async fn missing_in(repositories: &[ClusterRepository], name: &WalFileName) -> anyhow::Result<Vec<ClusterRepository>> {
    let mut missing = Vec::new();
    for repository in repositories {
        if !repository.has_wal_file(name).await? {
            missing.push(repository.clone());
        }
    }
    Ok(missing)
}

async fn store(
    repositories: &[ClusterRepository],
    name: WalFileName,
    content: &[u8],
    level: i32,
) -> anyhow::Result<()> {
    let content = content.to_vec();
    let prepared = tokio::task::spawn_blocking(move || PreparedWalFile::prepare(name, &content, level, 1)).await??;
    for repository in repositories {
        repository.store_wal_file(&prepared).await?;
    }
    Ok(())
}
