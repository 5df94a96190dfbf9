//! WAL files that are fetched from a server and stored where they are missing.

use std::time::Duration;

use anyhow::{Context, bail};
use pgark_postgres::{Lsn, SegmentHeader, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use pgark_repository::{ClusterRepository, PreparedWalFile};

use crate::replication::{ReplicationConnection, WalMessage};

/// How long the server may take to send what it has.
const FETCH_PATIENCE: Duration = Duration::from_secs(60);

/// Stores the histories of a timeline and of all its ancestors where they are missing, and returns the timeline's own.
pub(crate) async fn deliver_histories(
    connection: &mut ReplicationConnection,
    repositories: &[ClusterRepository],
    timeline: TimelineId,
    level: i32,
) -> anyhow::Result<TimelineHistory> {
    if timeline == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let file = connection.timeline_history(timeline).await?;
    let history =
        TimelineHistory::parse(timeline, &file.content).with_context(|| format!("read the server's {}", file.name))?;
    let ancestors = history.entries().iter().map(|entry| entry.timeline).filter(|id| id.get() > 1);
    for timeline in ancestors.chain([timeline]) {
        let name = WalFileName::History(timeline);
        let missing = missing_in(repositories, &name).await?;
        if missing.is_empty() {
            continue;
        }
        match connection.timeline_history(timeline).await {
            Ok(file) => store(&missing, name, &file.content, level).await?,
            Err(error) if error.is_missing_file() => {
                bail!("{name} is in the repository no more than on the server; it is needed for recovery")
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(history)
}

/// Fetches a whole segment.
pub(crate) async fn fetch_segment(
    connection: &mut ReplicationConnection,
    slot: Option<&str>,
    segment: SegmentName,
    size: SegmentSize,
) -> anyhow::Result<Vec<u8>> {
    let (start, end) = (segment.start(size), segment.end(size));
    let mut content = Vec::with_capacity(usize::try_from(size.bytes())?);
    let mut stream = connection.start_replication(slot, start, segment.timeline).await?;
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
                // Nothing is acknowledged: a slot that was made for this goes away with the connection.
                stream.send_status(Lsn::ZERO, Lsn::ZERO, Lsn::ZERO, false).await;
            }
            Some(WalMessage::Keepalive { .. }) => {}
            Some(WalMessage::TimelineEnd(_) | WalMessage::ServerShutdown) | None => {
                bail!("the server ended its stream at {}", stream.position())
            }
        }
    }
    stream.stop().await?;
    SegmentHeader::parse(&content)?.check_name(&segment, content.len() as u64)?;
    Ok(content)
}

/// The repositories that do not have a file.
pub(crate) async fn missing_in(
    repositories: &[ClusterRepository],
    name: &WalFileName,
) -> anyhow::Result<Vec<ClusterRepository>> {
    let mut missing = Vec::new();
    for repository in repositories {
        if !repository.has_wal_file(name).await? {
            missing.push(repository.clone());
        }
    }
    Ok(missing)
}

/// Stores a file in each of the repositories.
pub(crate) async fn store(
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
