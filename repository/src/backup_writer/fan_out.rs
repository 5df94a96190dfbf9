//! One stream of bytes to an object in every repository, encrypted for each.

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::cluster::ClusterRepository;
use crate::encryption::EncryptedStream;
use crate::error::{RepositoryError, Result};
use crate::keys::{ClusterKeys, ObjectKey, Sealing};
use crate::store::{ObjectWriter, StoredObject};

/// An object that is being written to every repository.
pub(super) struct FanOut(Vec<Target>);

struct Target {
    writer: ObjectWriter,
    /// Away while it works on another thread; where it did not come back, nothing more is written.
    seal: Option<EncryptedStream>,
    sealing: Sealing,
}

impl FanOut {
    pub(super) async fn begin(
        repositories: &[ClusterRepository],
        key: impl Fn(&ClusterKeys, Sealing) -> ObjectKey,
    ) -> Result<Self> {
        let mut targets = Vec::with_capacity(repositories.len());
        for repository in repositories {
            let sealing = repository.sealing();
            let key = key(repository.keys(), sealing);
            let seal = match sealing {
                Sealing::Plain => None,
                Sealing::Age => Some(repository.recipients().encrypt(None).map_err(encrypt_failure)?),
            };
            targets.push(Target { writer: repository.store().begin(&key).await?, seal, sealing });
        }
        Ok(Self(targets))
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        try_join_all(self.0.iter_mut().map(|target| target.write(bytes.clone()))).await.map(drop)
    }

    pub(super) async fn finish(self) -> Result<Vec<StoredObject>> {
        try_join_all(self.0.into_iter().map(Target::finish)).await
    }

    pub(super) async fn abort(self) {
        for target in self.0 {
            target.writer.abort().await;
        }
    }
}

impl Target {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let bytes = match self.sealing {
            Sealing::Plain => bytes,
            Sealing::Age => encrypt(&mut self.seal, bytes).await?,
        };
        if bytes.is_empty() { Ok(()) } else { self.writer.write(bytes).await }
    }

    async fn finish(mut self) -> Result<StoredObject> {
        if self.sealing == Sealing::Age {
            let stream = self.seal.take().ok_or_else(lost_seal)?;
            self.writer.write(stream.finish().map_err(encrypt_failure)?.into()).await?;
        }
        self.writer.finish().await
    }
}

/// Encrypts on a thread of its own: the caller's moves the bytes of the server.
async fn encrypt(slot: &mut Option<EncryptedStream>, bytes: Bytes) -> Result<Bytes> {
    let mut stream = slot.take().ok_or_else(lost_seal)?;
    let task = tokio::task::spawn_blocking(move || {
        let sealed = stream.push(&bytes);
        (stream, sealed)
    });
    let (stream, sealed) = task.await.map_err(|error| encrypt_failure(std::io::Error::other(error)))?;
    *slot = Some(stream);
    Ok(sealed.map_err(encrypt_failure)?.into())
}

fn lost_seal() -> RepositoryError {
    RepositoryError::Input("encrypting was broken off".to_owned())
}

fn encrypt_failure(error: std::io::Error) -> RepositoryError {
    RepositoryError::Input(format!("encrypting failed: {error}"))
}
