//! One stream of bytes to an object in every repository, encrypted for each.

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::targets::BackupTargets;
use crate::cluster::ClusterRepository;
use crate::encryption::EncryptedStream;
use crate::error::{RepositoryError, Result};
use crate::keys::{ClusterKeys, ObjectKey, Sealing};
use crate::store::{ObjectWriter, StoredObject};

/// An object that is being written to every repository.
pub(super) struct FanOut {
    targets: BackupTargets,
    /// In the order of the repositories; nothing for one that is left out.
    outputs: Vec<Option<Output>>,
}

struct Output {
    writer: ObjectWriter,
    /// Away while it works on another thread; where it did not come back, nothing more is written.
    seal: Option<EncryptedStream>,
    sealing: Sealing,
}

impl FanOut {
    pub(super) async fn begin(
        targets: &BackupTargets,
        key: impl Fn(&ClusterKeys, Sealing) -> ObjectKey,
    ) -> Result<Self> {
        let mut outputs: Vec<Option<Output>> = Vec::new();
        outputs.resize_with(targets.count(), || None);
        for (place, target) in targets.there() {
            outputs[place] = target.attempt(Output::begin(&target.repository, &key)).await?;
        }
        Ok(Self { targets: targets.clone(), outputs })
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let targets = &self.targets;
        let write = async |(place, output): (usize, &mut Option<Output>)| {
            let (Some(target), Some(open)) = (targets.target(place), output.as_mut()) else { return Ok(()) };
            if target.attempt(open.write(bytes.clone())).await?.is_none() {
                // What was uploaded of it is removed in the background.
                *output = None;
            }
            Ok(())
        };
        try_join_all(self.outputs.iter_mut().enumerate().map(write)).await.map(drop)
    }

    /// In the order of the repositories; nothing for one that is left out.
    pub(super) async fn finish(self) -> Result<Vec<Option<StoredObject>>> {
        let targets = &self.targets;
        let finish = async |(place, output): (usize, Option<Output>)| match (targets.target(place), output) {
            (Some(target), Some(output)) => target.attempt(output.finish()).await,
            _ => Ok(None),
        };
        try_join_all(self.outputs.into_iter().enumerate().map(finish)).await
    }

    pub(super) async fn abort(self) {
        for output in self.outputs.into_iter().flatten() {
            output.writer.abort().await;
        }
    }
}

impl Output {
    async fn begin(repository: &ClusterRepository, key: impl Fn(&ClusterKeys, Sealing) -> ObjectKey) -> Result<Self> {
        let sealing = repository.sealing();
        let key = key(repository.keys(), sealing);
        let seal = match sealing {
            Sealing::Plain => None,
            Sealing::Age => Some(repository.recipients().encrypt(None).map_err(encrypt_failure)?),
        };
        Ok(Self { writer: repository.store().begin(&key).await?, seal, sealing })
    }

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
