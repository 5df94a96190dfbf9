//! The bounded pipeline from raw bytes to stored parts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::fan_out::FanOut;
use super::targets::BackupTargets;
use super::{BackupWriterOptions, shared_compressor};
use crate::backup_id::BackupId;
use crate::compression::{FRAME_BYTES, FrameCompressor};
use crate::error::{RepositoryError, Result};
use crate::store::StoredObject;

/// Parts whose last bytes are written and which are being made durable, at most.
const PARTS_FINISHING: usize = 2;
/// How long a backup that is given up waits for them.
const FINISH_LIMIT: Duration = Duration::from_secs(3);

/// A part that is stored in every repository.
#[derive(Debug)]
pub(super) struct FinishedPart {
    pub(super) number: u32,
    pub(super) raw_size: u64,
    /// In the order of the repositories; nothing for one that is left out.
    pub(super) objects: Vec<Option<StoredObject>>,
}

/// Takes raw bytes, cuts them into frames, and has them compressed and stored.
pub(super) struct PartStream {
    frame: Vec<u8>,
    compressor: Arc<FrameCompressor>,
    /// Raw buffers for the next frames.
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
    workers: Arc<Semaphore>,
    commands: Option<mpsc::Sender<Command>>,
    frames: Option<oneshot::Receiver<Vec<u32>>>,
    storing: Option<JoinHandle<Result<Vec<FinishedPart>>>>,
}

enum Command {
    Frame(JoinHandle<std::io::Result<Vec<u8>>>, u64),
    /// The lengths of the part's frames go back.
    EndPart(oneshot::Sender<Vec<u32>>),
    Abort,
}

impl PartStream {
    pub(super) fn new(targets: BackupTargets, id: BackupId, options: BackupWriterOptions) -> Self {
        let jobs = options.jobs.max(1);
        let (commands, queue) = mpsc::channel(jobs + 1);
        Self {
            frame: Vec::with_capacity(FRAME_BYTES),
            compressor: shared_compressor(options.level),
            idle: Arc::default(),
            workers: Arc::new(Semaphore::new(jobs)),
            commands: Some(commands),
            frames: None,
            storing: Some(tokio::spawn(store_parts(targets, id, queue))),
        }
    }

    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let take = bytes.len().min(FRAME_BYTES - self.frame.len());
            self.frame.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.frame.len() == FRAME_BYTES {
                self.submit().await?;
            }
        }
        Ok(())
    }

    /// Sends the frame to a compressor; waits for a worker and for room in the queue.
    async fn submit(&mut self) -> Result<()> {
        let next = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let next = next.unwrap_or_else(|| Vec::with_capacity(FRAME_BYTES));
        let raw = std::mem::replace(&mut self.frame, next);
        let raw_size = raw.len() as u64;
        let permit = self.workers.clone().acquire_owned().await.map_err(|_| stopped())?;
        let (compressor, idle) = (self.compressor.clone(), self.idle.clone());
        let task = tokio::task::spawn_blocking(move || {
            let mut raw = raw;
            let compressed = compressor.compress(&raw);
            raw.clear();
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(raw);
            drop(permit);
            compressed
        });
        self.send(Command::Frame(task, raw_size)).await
    }

    async fn send(&mut self, command: Command) -> Result<()> {
        let sent = match &self.commands {
            Some(commands) => commands.send(command).await.is_ok(),
            None => false,
        };
        if sent {
            return Ok(());
        }
        // The storing task ended early: it knows why.
        match self.storing.take() {
            Some(task) => match joined(task.await) {
                Err(error) => Err(error),
                Ok(_) => Err(stopped()),
            },
            None => Err(stopped()),
        }
    }

    /// Ends the part; the frames' lengths come through [`PartStream::take_frames`].
    pub(super) async fn end_part(&mut self) -> Result<()> {
        if !self.frame.is_empty() {
            self.submit().await?;
        }
        let (reply, frames) = oneshot::channel();
        self.frames = Some(frames);
        self.send(Command::EndPart(reply)).await
    }

    /// The compressed length of each frame of the part that was just ended.
    pub(super) async fn take_frames(&mut self) -> Result<Vec<u32>> {
        let received = match self.frames.take() {
            Some(frames) => frames.await.ok(),
            None => None,
        };
        match received {
            Some(frames) => Ok(frames),
            // Finds out why the storing task ended.
            None => self.send(Command::Abort).await.and(Err(stopped())),
        }
    }

    /// Waits until every part is durable.
    pub(super) async fn finish(&mut self) -> Result<Vec<FinishedPart>> {
        self.commands = None;
        match self.storing.take() {
            Some(task) => joined(task.await),
            None => Err(stopped()),
        }
    }

    pub(super) async fn abort(mut self) {
        if let Some(commands) = self.commands.take() {
            drop(commands.send(Command::Abort).await);
        }
        if let Some(task) = self.storing.take() {
            drop(task.await);
        }
    }
}

async fn store_parts(
    targets: BackupTargets,
    id: BackupId,
    mut queue: mpsc::Receiver<Command>,
) -> Result<Vec<FinishedPart>> {
    let mut current: Option<FanOut> = None;
    let mut finishing = JoinSet::new();
    let stored = store_queue(&targets, &id, &mut queue, &mut current, &mut finishing).await;
    if let Some(part) = current.take() {
        part.abort().await;
    }
    // After a failure: a part that is whole is finished rather than left as pieces that nobody lists.
    let rest = async { while finishing.join_next().await.is_some() {} };
    drop(tokio::time::timeout(FINISH_LIMIT, rest).await);
    stored
}

async fn store_queue(
    targets: &BackupTargets,
    id: &BackupId,
    queue: &mut mpsc::Receiver<Command>,
    current: &mut Option<FanOut>,
    finishing: &mut JoinSet<Result<FinishedPart>>,
) -> Result<Vec<FinishedPart>> {
    let mut finished = Vec::new();
    let mut number = 1;
    let mut frames = Vec::new();
    let mut raw_size = 0;
    while let Some(command) = queue.recv().await {
        match command {
            Command::Abort => return Err(stopped()),
            Command::Frame(task, raw) => {
                let stored = task
                    .await
                    .map_err(std::io::Error::other)
                    .and_then(|compressed| compressed)
                    .map_err(super::compress_failure)?;
                raw_size += raw;
                frames.push(u32::try_from(stored.len()).unwrap_or(u32::MAX));
                if current.is_none() {
                    let key = |keys: &crate::keys::ClusterKeys, sealing| keys.part(id, number, sealing);
                    *current = Some(FanOut::begin(targets, key).await?);
                }
                if let Some(part) = current {
                    part.write(Bytes::from(stored)).await?;
                }
            }
            Command::EndPart(reply) => {
                drop(reply.send(std::mem::take(&mut frames)));
                if let Some(part) = current.take() {
                    while finishing.len() >= PARTS_FINISHING {
                        finished.extend(join_one(finishing).await?);
                    }
                    finishing
                        .spawn(async move { Ok(FinishedPart { number, raw_size, objects: part.finish().await? }) });
                }
                number += 1;
                raw_size = 0;
            }
        }
    }
    while !finishing.is_empty() {
        finished.extend(join_one(finishing).await?);
    }
    Ok(finished)
}

async fn join_one(finishing: &mut JoinSet<Result<FinishedPart>>) -> Result<Option<FinishedPart>> {
    finishing.join_next().await.map(joined).transpose()
}

fn joined<T>(result: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.unwrap_or_else(|error| Err(RepositoryError::Input(format!("storing stopped: {error}"))))
}

fn stopped() -> RepositoryError {
    RepositoryError::Input("storing was stopped".to_owned())
}
