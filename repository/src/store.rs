//! The one seam to storage: create once, read, list, delete.
//!
//! What it promises: an object is created whole or not at all, never replaced, and durable when
//! `create` or [`ObjectWriter::finish`] returns. What it does not promise: a listing that includes
//! objects of writers that are still busy; protection of streamed objects (multipart uploads have no
//! conditional form) beyond a look for the name before it begins, so these live below a name that was
//! claimed by a conditional create.

mod durable_file;
mod location;
mod object_lock;
mod object_reader;
mod object_writer;
mod request;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

pub use location::{Credentials, RepositoryOptions};
pub use object_lock::Deletion;
pub use object_reader::ObjectReader;
pub use object_writer::{ObjectWriter, StoredObject};

use self::durable_file::DurableFile;
use self::object_lock::{Lock, refused_by_a_lock};
use self::request::{CREATE_LIMIT, is_about_range};
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
    /// When it was stored, by the clock of the store.
    pub stored: Timestamp,
}

/// A repository's storage. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    name: Arc<str>,
    objects: Arc<dyn ObjectStore>,
    /// The same place through a client that waits out longer outages: for uploads that took hours to get
    /// where they are. Made when it is needed, since each client reads all certificates of the system.
    patient: Arc<OnceLock<Arc<dyn ObjectStore>>>,
    options: Arc<RepositoryOptions>,
    prefix: Path,
    /// Whether a read that fails is not worth waiting for, because the object is elsewhere, too.
    is_impatient: bool,
    /// Whether an answer to a read says that an object is locked.
    tells_locks: bool,
    /// The local directory, where there is one: what is created there goes through `DurableFile`.
    directory: Option<Arc<PathBuf>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The clients would show their settings, of which some are secret.
        f.debug_struct("Store").field("name", &self.name).field("prefix", &self.prefix.as_ref()).finish_non_exhaustive()
    }
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

    pub(crate) fn impatient(&self) -> Self {
        Self { is_impatient: true, ..self.clone() }
    }

    fn patient(&self) -> Result<Arc<dyn ObjectStore>> {
        if let Some(patient) = self.patient.get() {
            return Ok(Arc::clone(patient));
        }
        let patient = location::connect_patiently(&self.options)?;
        Ok(Arc::clone(self.patient.get_or_init(|| patient)))
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
        let path = self.path(key);
        let size = bytes.len() as u64;
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let payload = PutPayload::from_bytes(bytes.clone());
            let asked = Instant::now();
            let error = match self.limited(size, self.objects.put_opts(&path, payload, options.clone())).await {
                Some(Ok(_)) => return Ok(Creation::Created),
                Some(Err(taken @ (Error::AlreadyExists { .. } | Error::Precondition { .. }))) => {
                    match self.compare(key, &bytes).await? {
                        Some(outcome) => return Ok(outcome),
                        // Another create or a deletion was under way; a store says so in the same words.
                        None => self.unavailable("create", key, taken),
                    }
                }
                Some(Err(error)) => self.failure("create", key, error),
                None => self.no_answer("create", key, size),
            };
            let again = matches!(error, RepositoryError::Unavailable { .. });
            if !again {
                return Err(error);
            }
            // A store may refuse a taken name by closing the connection while the content is still being sent: what
            // is there tells. A failure that took long came from a store that does not answer, so it is not asked.
            if asked.elapsed() < Duration::from_secs(2)
                && let Ok(Some(outcome)) = self.compare(key, &bytes).await
            {
                return Ok(outcome);
            }
            if attempt == CREATE_ATTEMPTS || started.elapsed() > CREATE_LIMIT {
                return Err(error);
            }
            tracing::debug!(%key, attempt, error = &error as &dyn std::error::Error, "create again");
            tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
            attempt += 1;
        }
    }

    /// Compares an object with these bytes; `None` when it is not there.
    async fn compare(&self, key: &ObjectKey, bytes: &Bytes) -> Result<Option<Creation>> {
        let size = bytes.len() as u64;
        let same = match self.size(key).await? {
            None => return Ok(None),
            Some(there) if there != size => false,
            Some(_) => self.read(key, size).await? == *bytes,
        };
        Ok(Some(if same { Creation::Identical } else { Creation::Different }))
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
                let Some(outcome) = self.compare(key, &bytes).await? else {
                    return Err(self.unavailable("create", key, "it was deleted while it was looked at"));
                };
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

    /// As [`Store::open_reader`], for an object that is read from its beginning and is small: mostly in one request.
    ///
    /// # Errors
    /// `NotFound`, or when the store refuses or cannot be reached.
    pub async fn open_small_reader(&self, key: &ObjectKey) -> Result<ObjectReader> {
        ObjectReader::open_small(self.clone(), key.clone()).await
    }

    /// Reads a whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` when it is larger than `limit` or arrives short; or when the store
    /// refuses or cannot be reached.
    pub async fn read(&self, key: &ObjectKey, limit: u64) -> Result<Bytes> {
        let path = self.path(key);
        let got = self.repeated("read", key, 0, || self.objects.get(&path)).await?;
        let size = got.meta.size;
        if size > limit {
            return Err(self.damaged(key, format!("it has {size} bytes, at most {limit} are sensible")));
        }
        let bytes = match self.limited(size, got.bytes()).await {
            Some(answer) => answer.map_err(|error| self.failure("read", key, error))?,
            // The content stood still. Ranges have attempts of their own.
            None => self.read_range(key, 0, size).await?,
        };
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
        let Some(end) = offset.checked_add(length) else {
            return Err(self.damaged(key, format!("it cannot have {length} bytes from byte {offset} on")));
        };
        if length == 0 {
            return Ok(Bytes::new());
        }
        let short = || self.damaged(key, format!("it ends before byte {end}"));
        let path = self.path(key);
        match self.repeated("read", key, length, || self.objects.get_range(&path, offset..end)).await {
            Ok(bytes) if bytes.len() as u64 == length => Ok(bytes),
            Ok(_) => Err(short()),
            // Stores have many words for a range behind the end; its size tells.
            Err(error @ RepositoryError::Unavailable { .. }) if is_about_range(&error) => match self.size(key).await {
                Ok(Some(size)) if size < end => Err(short()),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// The stored size in bytes, or `None` when the store says that the object does not exist.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached: then nothing is known.
    pub async fn size(&self, key: &ObjectKey) -> Result<Option<u64>> {
        let path = self.path(key);
        // The answer to HEAD has no body that could tell a missing object from a missing bucket or from a
        // proxy's idea of the path, so the first byte is read. An empty object has none, and is asked with HEAD.
        let asked = if self.directory.is_some() {
            self.repeated("look at", key, 0, || self.objects.head(&path)).await.map(|meta| meta.size)
        } else {
            match self.repeated("look at", key, 0, || self.first_bytes(&path, 1)).await.map(|(size, _)| size) {
                Err(error @ RepositoryError::Unavailable { .. }) if is_about_range(&error) => {
                    let head = self.once("look at", key, 0, self.objects.head(&path)).await;
                    head.map(|meta| meta.size).map_err(|_| error)
                }
                other => other,
            }
        };
        match asked {
            Ok(size) => Ok(Some(size)),
            Err(RepositoryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// When an object was created, in microseconds since 1970 by the store's own clock.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub async fn created_at(&self, key: &ObjectKey) -> Result<i64> {
        let path = self.path(key);
        let meta = self.repeated("look at", key, 0, || self.objects.head(&path)).await?;
        Ok(meta.last_modified.timestamp_micros())
    }

    /// Reads the first bytes of an object, at most `most`, and returns the size of the whole object with them.
    async fn first_bytes(&self, path: &Path, most: u64) -> object_store::Result<(u64, Bytes)> {
        let options = GetOptions { range: Some(GetRange::Bounded(0..most)), ..GetOptions::default() };
        let got = self.objects.get_opts(path, options).await?;
        // Read to its end, so that the connection can be used again.
        Ok((got.meta.size, got.bytes().await?))
    }

    /// Lists every object below a folder, in no particular order.
    ///
    /// # Errors
    /// When any page of the listing fails: a part of a listing is never taken for the whole.
    pub async fn list(&self, folder: &ObjectKey) -> Result<Vec<ListedObject>> {
        let path = self.path(folder);
        let mut entries = self.objects.list(Some(&path));
        let mut listed = Vec::new();
        // A limit for each entry: what takes long is the page behind it.
        while let Some(meta) = self.once("list", folder, 0, entries.try_next()).await? {
            listed.extend(self.listed(&meta));
        }
        if listed.is_empty() {
            self.prove_empty(folder).await?;
        }
        Ok(listed)
    }

    /// Lists the objects directly in a folder, and the folders in it.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_folder(&self, folder: &ObjectKey) -> Result<(Vec<ListedObject>, Vec<ObjectKey>)> {
        let path = self.path(folder);
        let result = self.repeated("list", folder, 0, || self.objects.list_with_delimiter(Some(&path))).await?;
        let objects: Vec<_> = result.objects.iter().filter_map(|meta| self.listed(meta)).collect();
        let folders: Vec<_> = result.common_prefixes.iter().filter_map(|path| self.key_of(path)).collect();
        if objects.is_empty() && folders.is_empty() {
            self.prove_empty(folder).await?;
        }
        Ok((objects, folders))
    }

    /// Makes sure that an empty listing came from the store. A page that a proxy puts in its place reads as
    /// a listing without entries, and a directory that is not mounted has none either.
    async fn prove_empty(&self, folder: &ObjectKey) -> Result<()> {
        if let Some(directory) = &self.directory {
            let path = Arc::clone(directory);
            return match blocking(move || std::fs::metadata(path.as_path())).await {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let reason =
                        format!("its directory {} does not exist; create it, or mount it", directory.display());
                    Err(RepositoryError::Configuration { repository: self.name().to_owned(), reason })
                }
                Err(source) => Err(io_failure("list", directory, source)),
            };
        }
        self.size(&ObjectKey::new(format!("{folder}/-"))).await.map(drop)
    }

    fn listed(&self, meta: &ObjectMeta) -> Option<ListedObject> {
        let stored = Timestamp::from_second(meta.last_modified.timestamp()).unwrap_or(Timestamp::MAX);
        Some(ListedObject { key: self.key_of(&meta.location)?, size: meta.size, stored })
    }

    fn key_of(&self, location: &Path) -> Option<ObjectKey> {
        let parts: Vec<_> = location.prefix_match(&self.prefix)?.collect();
        Some(ObjectKey::new(parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("/")))
    }

    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn delete(&self, key: &ObjectKey) -> Result<()> {
        let path = self.path(key);
        match self.repeated("delete", key, 0, || self.objects.delete(&path)).await {
            Err(RepositoryError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// What does not let an object be deleted yet, as `until …`. Only S3 tells before it is tried.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn lock_of(&self, key: &ObjectKey) -> Result<Option<String>> {
        if !self.tells_locks {
            return Ok(None);
        }
        let path = self.path(key);
        let look = || async {
            let options = GetOptions { range: Some(GetRange::Bounded(0..1)), ..GetOptions::default() };
            let got = self.objects.get_opts(&path, options).await?;
            let lock = got.extensions.get::<Lock>().cloned();
            // Read to its end, so that the connection can be used again.
            got.bytes().await.map(|_| lock)
        };
        match self.repeated("look at", key, 0, look).await {
            Ok(lock) => Ok(lock.and_then(|lock| lock.words(Timestamp::now()))),
            Err(RepositoryError::NotFound { .. }) => Ok(None),
            // An empty object has no first byte. There is none among ours, and nothing in it to lose.
            Err(error) if is_about_range(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes an object unless the store protects it; one that is not there is fine. In a directory it is durable only
    /// after [`Store::settle_deletion`].
    ///
    /// # Errors
    /// When the store refuses for another reason or cannot be reached.
    pub async fn delete_unless_locked(&self, key: &ObjectKey) -> Result<Deletion> {
        if let Some(words) = self.lock_of(key).await? {
            return Ok(Deletion::Locked(words));
        }
        match self.delete(key).await {
            Ok(()) => Ok(Deletion::Done),
            Err(error) if self.directory.is_none() => refused_by_a_lock(&error).map(Deletion::Locked).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Makes the deletion of an object durable: nothing that is deleted later is gone before it. Object storage needs
    /// nothing.
    ///
    /// # Errors
    /// When the directory cannot be synced.
    pub async fn settle_deletion(&self, key: &ObjectKey) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = self.local_path(directory, key);
        let parent = path.parent().unwrap_or(&path).to_owned();
        match blocking(move || durable_file::sync_directory(&parent)).await {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(io_failure("sync", &path, source)),
            _ => Ok(()),
        }
    }

    /// Removes the folders in and below this one that have been empty for some time; only a directory has any.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub async fn remove_empty_folders(&self, folder: &ObjectKey, empty_for: Duration) -> Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let path = self.local_path(directory, folder);
        let target = path.clone();
        let before = SystemTime::now().checked_sub(empty_for).unwrap_or(SystemTime::UNIX_EPOCH);
        blocking(move || durable_file::remove_empty_directories(&target, before).map(drop))
            .await
            .map_err(|source| io_failure("tidy up", &path, source))
    }

    pub(crate) fn damaged(&self, key: &ObjectKey, reason: impl Into<String>) -> RepositoryError {
        RepositoryError::Damaged { repository: self.name.to_string(), key: key.clone(), reason: reason.into() }
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
