//! Writing an object that is too large for memory: local file or multipart upload, with bounded
//! buffers and a CRC-32 over what is stored.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;

use super::durable_file::DurableFile;
use super::{Creation, Store, blocking, io_failure};
use crate::error::{RepositoryError, Result};
use crate::keys::ObjectKey;

/// Size of a piece of a multipart upload in bytes. S3 wants 5 MiB at least.
const PIECE_BYTES: usize = 8 << 20;
/// Stores allow 10,000 pieces (some 1,000): after each 500 the pieces double.
const PIECES_BEFORE_DOUBLING: u64 = 500;
/// Pieces of one object that are under way at once.
const PIECES_IN_FLIGHT: usize = 3;

/// What is known of an object that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredObject {
    /// Size in bytes, as stored.
    pub size: u64,
    /// CRC-32 (IEEE) over the stored bytes.
    pub crc32: u32,
}

/// An object that is being written. Without [`ObjectWriter::finish`] it never exists.
#[derive(Debug)]
pub struct ObjectWriter {
    store: Store,
    key: ObjectKey,
    target: Target,
    size: u64,
    crc32: crc32fast::Hasher,
}

#[derive(Debug)]
enum Target {
    Local { file: Option<DurableFile>, path: PathBuf },
    Remote(Box<Remote>),
}

struct Remote {
    buffer: Vec<u8>,
    upload: Option<Box<dyn MultipartUpload>>,
    pieces: u64,
    in_flight: JoinSet<object_store::Result<()>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The upload would show its client, with settings that are secret.
        f.debug_struct("Remote").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

impl ObjectWriter {
    pub(super) async fn begin(store: Store, key: ObjectKey) -> Result<Self> {
        // What is known now need not wait for the end of a long upload.
        if store.size(&key).await?.is_some() {
            return Err(conflict(&store, &key));
        }
        let target = match &store.directory {
            Some(directory) => {
                let path = store.local_path(directory, &key);
                let file = blocking({
                    let path = path.clone();
                    move || DurableFile::begin(&path)
                })
                .await
                .map_err(|source| io_failure("create", &path, source))?;
                Target::Local { file: Some(file), path }
            }
            None => Target::Remote(Box::new(Remote {
                buffer: Vec::new(),
                upload: None,
                pieces: 0,
                in_flight: JoinSet::new(),
            })),
        };
        Ok(Self { store, key, target, size: 0, crc32: crc32fast::Hasher::new() })
    }

    /// The object's key.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Appends bytes; waits while too much is under way.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.size += bytes.len() as u64;
        self.crc32.update(&bytes);
        match &mut self.target {
            Target::Local { file: slot, path } => {
                let Some(mut file) = slot.take() else { return Err(used_up()) };
                let (file, written) = blocking(move || {
                    let written = file.write_all(&bytes);
                    Ok((file, written))
                })
                .await
                .map_err(|source| io_failure("write", path, source))?;
                *slot = Some(file);
                written.map_err(|source| io_failure("write", path, source))
            }
            Target::Remote(remote) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let piece = remote.piece_bytes();
                    // Reserved whole: a buffer that grows would be copied, and its last size is twice what is needed.
                    if remote.buffer.capacity() == 0 {
                        remote.buffer.reserve_exact(piece);
                    }
                    let (now, later) = rest.split_at(rest.len().min(piece - remote.buffer.len()));
                    remote.buffer.extend_from_slice(now);
                    rest = later;
                    if remote.buffer.len() == piece {
                        let piece = std::mem::take(&mut remote.buffer).into();
                        remote.send(&self.store, &self.key, piece).await?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Seals the object: durable and visible on return.
    ///
    /// # Errors
    /// `Conflict` when the name was taken meanwhile; or when the store refuses or cannot be reached.
    /// The upload is aborted then.
    pub async fn finish(mut self) -> Result<StoredObject> {
        let stored = StoredObject { size: self.size, crc32: self.crc32.clone().finalize() };
        match &mut self.target {
            Target::Local { file, path } => {
                let Some(file) = file.take() else { return Err(used_up()) };
                match blocking(move || file.publish()).await {
                    Ok(()) => Ok(stored),
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        Err(conflict(&self.store, &self.key))
                    }
                    Err(source) => Err(io_failure("write", path, source)),
                }
            }
            Target::Remote(remote) => {
                let finished = remote.finish(&self.store, &self.key, stored.size).await;
                if finished.is_err() {
                    remote.abort(&self.store).await;
                }
                finished.map(|()| stored)
            }
        }
    }

    /// Gives the object up and removes what was uploaded of it.
    pub async fn abort(mut self) {
        if let Target::Remote(remote) = &mut self.target {
            remote.abort(&self.store).await;
        }
    }
}

impl Remote {
    fn piece_bytes(&self) -> usize {
        let doublings = (self.pieces / PIECES_BEFORE_DOUBLING).min(9);
        PIECE_BYTES << doublings
    }

    async fn send(&mut self, store: &Store, key: &ObjectKey, piece: Bytes) -> Result<()> {
        if self.upload.is_none() {
            let (path, patient) = (store.path(key), store.patient()?);
            let upload = store.repeated("create", key, 0, || patient.put_multipart(&path)).await?;
            self.upload = Some(upload);
        }
        while self.in_flight.len() >= PIECES_IN_FLIGHT {
            self.join_one(store, key).await?;
        }
        if let Some(upload) = &mut self.upload {
            self.in_flight.spawn(upload.put_part(PutPayload::from_bytes(piece)));
            self.pieces += 1;
        }
        Ok(())
    }

    async fn join_one(&mut self, store: &Store, key: &ObjectKey) -> Result<()> {
        match self.in_flight.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(store.failure("write", key, error)),
            Some(Err(error)) => Err(store.unavailable("write", key, error)),
        }
    }

    async fn finish(&mut self, store: &Store, key: &ObjectKey, size: u64) -> Result<()> {
        let rest = Bytes::from(std::mem::take(&mut self.buffer));
        if self.upload.is_none() {
            // Small: one conditional create, with all its guarantees.
            return match store.create(key, rest).await? {
                Creation::Created | Creation::Identical => Ok(()),
                Creation::Different => Err(conflict(store, key)),
            };
        }
        if !rest.is_empty() {
            self.send(store, key, rest).await?;
        }
        while !self.in_flight.is_empty() {
            self.join_one(store, key).await?;
        }
        if let Some(upload) = &mut self.upload {
            let completed = upload.complete().await;
            // The answer may be lost, or be an error inside a "200 OK": the size tells.
            let there = store.size(key).await?;
            match completed {
                _ if there == Some(size) => {}
                Ok(_) => {
                    let found = there.map_or("nothing".to_owned(), |size| format!("{size} bytes"));
                    return Err(store.damaged(key, format!("{size} bytes were written, {found} arrived")));
                }
                Err(error) => return Err(store.failure("complete", key, error)),
            }
        }
        self.upload = None;
        Ok(())
    }

    async fn abort(&mut self, store: &Store) {
        self.in_flight.shutdown().await;
        let Some(mut upload) = self.upload.take() else { return };
        // Limited, since a user waits for it: a store that is away cannot be tidied up.
        let aborted = store.limited(0, upload.abort()).await;
        if !matches!(aborted, Some(Ok(()))) {
            tracing::debug!(?aborted, "abort of a multipart upload failed");
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // A writer that was dropped on the way out of an error: abort in the background if there
        // still is a runtime; otherwise the bucket's lifecycle rule removes the pieces.
        if let (Some(mut upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { drop(upload.abort().await) });
        }
    }
}

fn conflict(store: &Store, key: &ObjectKey) -> RepositoryError {
    RepositoryError::Conflict { repository: store.name().to_owned(), key: key.clone() }
}

fn used_up() -> RepositoryError {
    RepositoryError::Input("the object writer was used after a failure".to_owned())
}
