//! The one seam to storage: create once, read, list, delete.
//!
//! What it promises: an object is created whole or not at all, never replaced, and durable when
//! `create` or [`ObjectWriter::finish`] returns. What it does not promise: a listing that includes
//! objects of writers that are still busy; protection of streamed objects (multipart uploads have no
//! conditional form) beyond a look for the name before it begins, so these live below a name that was
//! claimed by a conditional create.

mod durable_file;
mod location;
mod object_reader;
mod object_writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

pub use location::{Credentials, RepositoryOptions};
pub use object_reader::ObjectReader;
pub use object_writer::{ObjectWriter, StoredObject};

use self::durable_file::DurableFile;
use crate::error::{RepositoryError, Result};
use crate::keys::ObjectKey;

/// How often a create whose answer was lost is tried before giving up.
const CREATE_ATTEMPTS: u32 = 4;

/// How a create ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// The object is new.
    Created,
    /// The object was there with the very same bytes (an earlier attempt of ours, or a twin).
    Identical,
    /// The object was there with other bytes, and was left as it is.
    Different,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: ObjectKey,
    /// Its size in bytes, as stored.
    pub size: u64,
}

/// A repository's storage. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    name: Arc<str>,
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// The local directory, where there is one: what is created there goes through `DurableFile`.
    directory: Option<Arc<PathBuf>>,
}

impl Store {
    /// Opens the storage that the options name. Nothing is read or written yet.
    ///
    /// # Errors
    /// When the URL or the credentials cannot be used.
    pub fn open(options: &RepositoryOptions) -> Result<Self> {
        location::open(options)
    }

    /// The repository's name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self, key: &ObjectKey) -> Path {
        self.prefix.parts().chain(Path::from(key.as_str()).parts()).collect()
    }

    fn local_path(&self, directory: &std::path::Path, key: &ObjectKey) -> PathBuf {
        directory.join(key.as_str())
    }

    /// Creates an object with these bytes unless the name is taken; durable on return.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached; an ambiguous answer is tried again and settled by
    /// comparing what is there.
    pub async fn create(&self, key: &ObjectKey, bytes: Bytes) -> Result<Creation> {
        if let Some(directory) = &self.directory {
            return self.create_local(self.local_path(directory, key), key, bytes).await;
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let mut attempt = 1;
        loop {
            let payload = PutPayload::from_bytes(bytes.clone());
            match self.objects.put_opts(&self.path(key), payload, options.clone()).await {
                Ok(_) => return Ok(Creation::Created),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    return self.compare(key, &bytes).await;
                }
                Err(error) => {
                    let error = self.failure("create", key, error);
                    let again = matches!(error, RepositoryError::Unavailable { .. });
                    if !again || attempt == CREATE_ATTEMPTS {
                        return Err(error);
                    }
                    tracing::debug!(%key, attempt, error = &error as &dyn std::error::Error, "create again");
                    tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                    attempt += 1;
                }
            }
        }
    }

    async fn compare(&self, key: &ObjectKey, bytes: &Bytes) -> Result<Creation> {
        let size = bytes.len() as u64;
        let same = self.size(key).await? == Some(size) && self.read(key, size).await? == *bytes;
        Ok(if same { Creation::Identical } else { Creation::Different })
    }

    async fn create_local(&self, path: PathBuf, key: &ObjectKey, bytes: Bytes) -> Result<Creation> {
        let target = path.clone();
        let content = bytes.clone();
        let created = blocking(move || {
            use std::io::Write;
            let mut file = DurableFile::begin(&target)?;
            file.write_all(&content)?;
            file.publish()
        })
        .await;
        match created {
            Ok(()) => Ok(Creation::Created),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let outcome = self.compare(key, &bytes).await?;
                if outcome == Creation::Identical {
                    self.settle(key).await?;
                }
                Ok(outcome)
            }
            Err(source) => Err(io_failure("create", &path, source)),
        }
    }

    /// Makes sure that an object that somebody else created is durable: its writer may have been
    /// killed between giving it its name and syncing the directory. Object storage needs nothing.
    ///
    /// # Errors
    /// When the object cannot be opened or synced.
    pub async fn settle(&self, key: &ObjectKey) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = self.local_path(directory, key);
        let target = path.clone();
        blocking(move || {
            std::fs::File::open(&target)?.sync_all()?;
            durable_file::sync_directory(target.parent().unwrap_or(std::path::Path::new(".")))
        })
        .await
        .map_err(|source| io_failure("sync", &path, source))
    }

    /// Begins an object that is too large for memory. It exists only after
    /// [`ObjectWriter::finish`].
    ///
    /// # Errors
    /// When the name is taken, or the store refuses or cannot be reached.
    pub async fn begin(&self, key: &ObjectKey) -> Result<ObjectWriter> {
        ObjectWriter::begin(self.clone(), key.clone()).await
    }

    /// Opens an object for reading from blocking code; see [`ObjectReader`].
    ///
    /// # Errors
    /// `NotFound`, or when the store refuses or cannot be reached.
    pub async fn open_reader(&self, key: &ObjectKey) -> Result<ObjectReader> {
        ObjectReader::open(self.clone(), key.clone()).await
    }

    /// Reads a whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` when it is larger than `limit` or arrives short; or when the store
    /// refuses or cannot be reached.
    pub async fn read(&self, key: &ObjectKey, limit: u64) -> Result<Bytes> {
        let got = self.objects.get(&self.path(key)).await.map_err(|error| self.failure("read", key, error))?;
        let size = got.meta.size;
        if size > limit {
            return Err(self.damaged(key, format!("it has {size} bytes, at most {limit} are sensible")));
        }
        let bytes = got.bytes().await.map_err(|error| self.failure("read", key, error))?;
        if bytes.len() as u64 != size {
            return Err(self.damaged(key, format!("{} of {size} bytes arrived", bytes.len())));
        }
        Ok(bytes)
    }

    /// Reads exactly `length` bytes from `offset` on.
    ///
    /// # Errors
    /// As [`Store::read`]; `Damaged` when the object ends earlier.
    pub async fn read_range(&self, key: &ObjectKey, offset: u64, length: u64) -> Result<Bytes> {
        let bytes = self
            .objects
            .get_range(&self.path(key), offset..offset + length)
            .await
            .map_err(|error| self.failure("read", key, error))?;
        if bytes.len() as u64 != length {
            let reason = format!("it ends before byte {}", offset + length);
            return Err(self.damaged(key, reason));
        }
        Ok(bytes)
    }

    /// The stored size in bytes, or `None` when the store says that the object does not exist.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached: then nothing is known.
    pub async fn size(&self, key: &ObjectKey) -> Result<Option<u64>> {
        match self.objects.head(&self.path(key)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) => match self.failure("look at", key, error) {
                RepositoryError::NotFound { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Lists every object below a folder, in no particular order.
    ///
    /// # Errors
    /// When any page of the listing fails: a part of a listing is never taken for the whole.
    pub async fn list(&self, folder: &ObjectKey) -> Result<Vec<ListedObject>> {
        let path = self.path(folder);
        let entries: Vec<_> = self
            .objects
            .list(Some(&path))
            .map_ok(|meta| (meta.location, meta.size))
            .try_collect()
            .await
            .map_err(|error| self.failure("list", folder, error))?;
        Ok(entries.into_iter().filter_map(|(location, size)| self.listed(&location, size)).collect())
    }

    /// Lists the objects directly in a folder, and the folders in it.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_folder(&self, folder: &ObjectKey) -> Result<(Vec<ListedObject>, Vec<ObjectKey>)> {
        let result = self
            .objects
            .list_with_delimiter(Some(&self.path(folder)))
            .await
            .map_err(|error| self.failure("list", folder, error))?;
        let objects = result.objects.iter().filter_map(|meta| self.listed(&meta.location, meta.size)).collect();
        let folders =
            result.common_prefixes.iter().filter_map(|path| self.listed(path, 0)).map(|listed| listed.key).collect();
        Ok((objects, folders))
    }

    fn listed(&self, location: &Path, size: u64) -> Option<ListedObject> {
        let parts: Vec<_> = location.prefix_match(&self.prefix)?.collect();
        let key = parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("/");
        Some(ListedObject { key: ObjectKey::new(key), size })
    }

    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn delete(&self, key: &ObjectKey) -> Result<()> {
        match self.objects.delete(&self.path(key)).await {
            Ok(()) => Ok(()),
            Err(error) => match self.failure("delete", key, error) {
                RepositoryError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    pub(crate) fn damaged(&self, key: &ObjectKey, reason: impl Into<String>) -> RepositoryError {
        RepositoryError::Damaged { repository: self.name.to_string(), key: key.clone(), reason: reason.into() }
    }

    /// Sorts a store's error: only an object that a proper answer calls missing is `NotFound`.
    fn failure(&self, operation: &'static str, key: &ObjectKey, error: object_store::Error) -> RepositoryError {
        let repository = self.name.to_string();
        match error {
            // A missing bucket or container is a mistake in the configuration, not an absent object.
            object_store::Error::NotFound { source, .. }
                if ["NoSuchBucket", "ContainerNotFound"].iter().any(|code| source.to_string().contains(code)) =>
            {
                let reason = "its bucket or container does not exist; create it or correct the url";
                RepositoryError::Configuration { repository, reason: reason.to_owned() }
            }
            object_store::Error::NotFound { .. } => RepositoryError::NotFound { repository, key: key.clone() },
            source @ (object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }) => {
                RepositoryError::Denied { repository, operation, key: key.clone(), source: Box::new(source) }
            }
            source => {
                RepositoryError::Unavailable { repository, operation, key: key.clone(), source: Box::new(source) }
            }
        }
    }
}

fn io_failure(operation: &'static str, path: &std::path::Path, source: std::io::Error) -> RepositoryError {
    RepositoryError::Io { operation, path: path.display().to_string(), source }
}

/// Runs blocking file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error)),
    }
}
