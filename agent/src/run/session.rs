//! One connection: from where the WAL goes on, and receiving it until the connection or the timeline ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use pgark_postgres::{Lsn, SegmentName, SegmentSize, SystemIdentifier};
use pgark_repository::Repository;
use tokio::task::JoinHandle;

use super::destination::{Destination, Settings};
use super::pipeline::Pipeline;
use super::place::{Archived, Path};
use super::{Stop, gaps, slot};
use crate::replication::{ConnectionOptions, ReplicationConnection, ReplicationError, WalMessage, WalStream};
use crate::server::Server;
use crate::wal_source::deliver_histories;

/// The server hears from us at least so often; it gives up after `wal_sender_timeout`, which is 60 s.
const STATUS: Duration = Duration::from_secs(5);
/// A server that says nothing for so long, although it was asked, is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// A server that shuts down waits until all is flushed; with a repository that does not answer it need not.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);
/// What has arrived is stored after the end of a session, or left to the next one.
const DRAIN: Duration = Duration::from_secs(10);
/// After a signal all is over in seconds.
const LAST_DRAIN: Duration = Duration::from_secs(5);
const GOODBYE: Duration = Duration::from_secs(1);
/// A repository that is not required may take the last pieces, if it is quick.
const LAST_SETTLE: Duration = Duration::from_secs(2);

/// How a session ended.
pub(crate) enum Ended {
    Stopped,
    /// The next one can follow at once: the timeline ended, or the stream begins elsewhere.
    Again,
    ServerShutdown,
}

/// The connection leads to another cluster than before.
#[derive(Debug, thiserror::Error)]
#[error("the server has system identifier {found}, the one before had {expected}; start pgark-agent run anew for it")]
pub(crate) struct OtherSystem {
    expected: SystemIdentifier,
    found: SystemIdentifier,
}

/// Receives WAL, session after session.
pub(crate) struct Receiver {
    connection: ConnectionOptions,
    repositories: Vec<Repository>,
    settings: Arc<Settings>,
    established: Option<Established>,
    streaming_since: Option<Instant>,
}

/// What is known since the first connection.
struct Established {
    system_identifier: SystemIdentifier,
    destination: Arc<Destination>,
    pipeline: Pipeline,
    /// The server has removed what comes before.
    lost_before: Option<Lsn>,
    healer: Option<JoinHandle<()>>,
}

impl Receiver {
    pub(crate) fn new(connection: ConnectionOptions, repositories: Vec<Repository>, settings: Arc<Settings>) -> Self {
        Self { connection, repositories, settings, established: None, streaming_since: None }
    }

    pub(crate) fn has_streamed(&self) -> bool {
        self.streaming_since.is_some()
    }

    pub(crate) fn streamed_for(&mut self) -> Duration {
        self.streaming_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Connects and receives.
    pub(crate) async fn session(&mut self, stop: &mut Stop) -> anyhow::Result<Ended> {
        // Only where nothing else heeds the signal, such as a repository that does not answer; a stream ends in order.
        let mut stopping = stop.clone();
        let too_long = async {
            // An error means that nobody will ever send one.
            if stopping.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LAST_DRAIN + GOODBYE * 2).await;
        };
        tokio::select! {
            ended = self.receive(stop) => ended,
            () = too_long => Ok(Ended::Stopped),
        }
    }

    async fn receive(&mut self, stop: &mut Stop) -> anyhow::Result<Ended> {
        let connecting = async {
            let mut replication = ReplicationConnection::connect(&self.connection).await?;
            let options = self.connection.only(replication.host());
            replication.known_server_version().await?;
            let identity = replication.identify_system().await?;
            let size = replication.show("wal_segment_size").await?;
            let server = Server::connect(&options).await?;
            anyhow::Ok((replication, options, identity, SegmentSize::from_setting(&size)?, server))
        };
        let (mut replication, options, identity, size, server) = tokio::select! {
            connected = connecting => connected?,
            _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
        };
        let was_established = self.established.is_some();
        let settings = Arc::clone(&self.settings);
        let established = self.establish(identity.system_identifier, size)?;
        let destination = Arc::clone(&established.destination);
        let history =
            deliver_histories(&mut replication, &destination.required, identity.timeline, destination.level).await?;
        // The others get them from these.
        destination.catch_up.notify_one();
        let path = Path { history, size };
        let (name, host) = (&settings.stream.slot, replication.host().clone());
        let held_from = slot::ensure(&mut replication, &server, name, was_established).await?;
        drop(server);
        let first = established.first_segment(&path, held_from, identity.position).await?;
        established.pipeline.begin(first);
        let start = first.start(size);
        let mut stream = match replication.start_replication(Some(name), start, first.timeline).await {
            Ok(stream) => stream,
            Err(error) if error.is_missing_file() => return established.skip(&path, first, held_from, error),
            Err(error) => return Err(error.into()),
        };
        tracing::info!(server = %host, slot = name, timeline = %first.timeline, from = %start, "receiving WAL");
        if established.healer.is_none() {
            let healer = gaps::keep_healing(options, Arc::clone(&destination), established.pipeline.watch_durable());
            established.healer = Some(tokio::spawn(healer));
        }
        let since = Instant::now();
        let result = stream_into(&mut established.pipeline, &mut stream, stop).await;
        let position = stream.position();
        let ended = match result {
            Err(error) => {
                let removed = error.downcast::<ReplicationError>();
                match removed {
                    Ok(error) if error.is_missing_file() && position == start => {
                        return established.skip(&path, first, held_from, error);
                    }
                    Ok(error) => Err(error.into()),
                    Err(error) => Err(error),
                }
            }
            Ok(Ended::Stopped) => {
                finish(&mut established.pipeline, stream).await?;
                Ok(Ended::Stopped)
            }
            ended => ended,
        };
        self.streaming_since = Some(since);
        ended
    }

    fn establish(&mut self, found: SystemIdentifier, size: SegmentSize) -> anyhow::Result<&mut Established> {
        let established = match self.established.take() {
            Some(established) if established.system_identifier == found => established,
            Some(Established { system_identifier: expected, .. }) => return Err(OtherSystem { expected, found }.into()),
            None => {
                let cluster = &self.settings.cluster;
                let places = self.repositories.iter().map(|repository| repository.cluster(cluster, found));
                let places = places.collect::<Result<Vec<_>, _>>()?;
                let destination = Arc::new(Destination::new(places, self.settings.level));
                let pipeline = Pipeline::new(Arc::clone(&destination), Arc::clone(&self.settings), size)?;
                Established { system_identifier: found, destination, pipeline, lost_before: None, healer: None }
            }
        };
        Ok(self.established.insert(established))
    }

    /// Stores what has arrived, for a while.
    pub(crate) async fn drain(&mut self) -> anyhow::Result<()> {
        if let Some(established) = &mut self.established {
            established.pipeline.drain(DRAIN).await?;
        }
        Ok(())
    }

    /// Ends what goes on in the background.
    pub(crate) async fn end(self) {
        let Some(established) = self.established else { return };
        established.destination.settle(LAST_SETTLE).await;
        if let Some(healer) = established.healer {
            healer.abort();
        }
        if established.pipeline.durable() < established.pipeline.received() {
            tracing::warn!("what arrived last is not stored; the server keeps it for the next start");
        }
    }
}

impl Established {
    /// The segment to begin with: after what was received here or is in the repositories, else what the slot holds.
    async fn first_segment(
        &mut self,
        path: &Path,
        held_from: Option<Lsn>,
        position: Lsn,
    ) -> anyhow::Result<SegmentName> {
        let newest = path.containing(position);
        let known = self.pipeline.newest().and_then(|(segment, complete)| path.after(segment, complete));
        let first = match known {
            Some(known) => known,
            None => {
                let archived = Archived::load(&self.destination.required, path).await.context("list the archive")?;
                for segment in &archived.superseded {
                    self.destination.delete_pieces(*segment, |_| true).await;
                }
                let held = held_from.map(|lsn| path.containing(lsn));
                archived.end().map(|end| path.segment(end)).or(held).unwrap_or(newest)
            }
        };
        let after_loss = self.lost_before.map(|lsn| path.containing(lsn));
        let number = |segment: SegmentName| segment.number(path.size);
        let first = after_loss.filter(|after| number(*after) > number(first)).unwrap_or(first);
        Ok(if number(first) > number(newest) { newest } else { first })
    }

    /// Goes on behind WAL that the server has removed.
    fn skip(
        &mut self,
        path: &Path,
        first: SegmentName,
        held_from: Option<Lsn>,
        error: ReplicationError,
    ) -> anyhow::Result<Ended> {
        let Some(held) =
            held_from.map(|lsn| path.containing(lsn)).filter(|held| held.start(path.size) > first.start(path.size))
        else {
            return Err(error.into());
        };
        tracing::error!(
            from = %first.start(path.size),
            to = %held.start(path.size),
            "the server does not have this WAL any more; unless the archive command delivers it, no restore passes it: \
             take a new backup now: pgark-agent backup"
        );
        self.lost_before = Some(held.start(path.size));
        Ok(Ended::Again)
    }
}

/// Receives until the stream ends or a signal comes.
async fn stream_into(pipeline: &mut Pipeline, stream: &mut WalStream<'_>, stop: &mut Stop) -> anyhow::Result<Ended> {
    let timeline = stream.timeline();
    let mut last_status = Instant::now();
    let mut last_message = Instant::now();
    let mut reported = Lsn::ZERO;
    // Since when the server has been waiting for a flush that does not come.
    let mut waits_since: Option<Instant> = None;
    loop {
        let next_look = pipeline.start_due();
        let durable = pipeline.durable();
        let is_caught_up = durable >= pipeline.received();
        if durable > reported || last_status.elapsed() >= STATUS || (waits_since.is_some() && is_caught_up) {
            // Asking for an answer shows whether anybody is there.
            let asks = last_message.elapsed() >= STATUS;
            stream.send_status(pipeline.received(), durable, durable, asks).await;
            (last_status, reported) = (Instant::now(), durable);
            if is_caught_up {
                (waits_since, pipeline.is_urgent) = (None, false);
            }
        }
        if last_message.elapsed() >= SILENCE && pipeline.has_room() {
            anyhow::bail!("the server has said nothing for {} s", SILENCE.as_secs());
        }
        if waits_since.is_some_and(|since| since.elapsed() >= SHUTDOWN_PATIENCE) {
            anyhow::bail!("the server waits for WAL that no repository takes; leaving it, so that it can shut down");
        }
        let look = next_look.unwrap_or(last_status + STATUS).min(last_status + STATUS);
        let look = if waits_since.is_some() { look.min(Instant::now() + Duration::from_secs(1)) } else { look };
        tokio::select! {
            message = stream.next(), if pipeline.has_room() => {
                last_message = Instant::now();
                match message? {
                    Some(WalMessage::Data { bytes, .. }) => pipeline.append(timeline, &bytes)?,
                    Some(WalMessage::Keepalive { reply_requested, .. }) => {
                        let is_flushed = pipeline.durable() >= pipeline.received();
                        if reply_requested && is_flushed {
                            let durable = pipeline.durable();
                            stream.send_status(pipeline.received(), durable, durable, false).await;
                            (last_status, reported) = (Instant::now(), durable);
                        } else if reply_requested {
                            // Answered when there is something to say: a server that shuts down would ask again at once.
                            pipeline.is_urgent = true;
                            waits_since.get_or_insert_with(Instant::now);
                        }
                    }
                    Some(WalMessage::TimelineEnd(end)) => {
                        tracing::info!(%timeline, next = %end.next_timeline, at = %end.next_start, "the timeline ended");
                        pipeline.timeline_ended();
                        return Ok(Ended::Again);
                    }
                    Some(WalMessage::ServerShutdown) | None => return Ok(Ended::ServerShutdown),
                }
            }
            done = pipeline.next_done() => done?,
            () = tokio::time::sleep_until(look.into()) => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
        }
    }
}

/// Stores the last piece, says so, and ends the stream.
async fn finish(pipeline: &mut Pipeline, mut stream: WalStream<'_>) -> anyhow::Result<()> {
    pipeline.drain(LAST_DRAIN).await?;
    let durable = pipeline.durable();
    let goodbye = async {
        stream.send_status(pipeline.received(), durable, durable, false).await;
        stream.stop().await
    };
    if !matches!(tokio::time::timeout(GOODBYE, goodbye).await, Ok(Ok(_))) {
        tracing::debug!("the stream did not end in order");
    }
    Ok(())
}
