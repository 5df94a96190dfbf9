//! A repository, and one cluster's place in it.

use std::collections::BTreeSet;
use std::io::{self, Read};

use pgark_postgres::SystemIdentifier;

use crate::backup::Backup;
use crate::encryption::{Identities, Recipients, decrypt_reason};
use crate::error::{RepositoryError, Result};
use crate::keys::{ClusterKeys, ObjectKey, Sealing, is_cluster_name};
use crate::store::{ObjectReader, RepositoryOptions, Store};

/// An opened repository: its storage and its keys. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Repository {
    store: Store,
    recipients: Recipients,
    identities: Identities,
    is_optional: bool,
}

impl Repository {
    /// Opens a repository. Nothing is read or written yet.
    ///
    /// # Errors
    /// When the URL, the credentials or a key cannot be used.
    pub fn open(options: &RepositoryOptions) -> Result<Self> {
        let wrong = |reason| RepositoryError::Configuration { repository: options.name.clone(), reason };
        Ok(Self {
            recipients: Recipients::parse(options.recipients.iter().map(String::as_str)).map_err(wrong)?,
            identities: Identities::parse(options.identities.iter().map(String::as_str)).map_err(wrong)?,
            store: Store::open(options)?,
            is_optional: options.is_optional,
        })
    }

    /// The name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        self.store.name()
    }

    /// The storage below.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether all goes on without it; see [`RepositoryOptions::is_optional`].
    #[must_use]
    pub fn is_optional(&self) -> bool {
        self.is_optional
    }

    /// The place of one cluster with one system identifier.
    ///
    /// # Errors
    /// When the name is not one path component of letters, digits, `-`, `_` and `.`.
    pub fn cluster(&self, name: &str, system_identifier: SystemIdentifier) -> Result<ClusterRepository> {
        if !is_cluster_name(name) {
            let reason = format!("`{name}` cannot name a cluster: use letters, digits, - _ and .");
            return Err(RepositoryError::Configuration { repository: self.name().to_owned(), reason });
        }
        Ok(ClusterRepository {
            repository: self.clone(),
            keys: ClusterKeys::new(name, system_identifier),
            cluster: name.to_owned(),
            system_identifier,
        })
    }

    /// The system identifiers under which something is stored for a cluster.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn system_identifiers(&self, cluster: &str) -> Result<BTreeSet<SystemIdentifier>> {
        let (_, folders) = self.store.list_folder(&ClusterKeys::cluster(cluster)).await?;
        Ok(folders.iter().filter_map(|folder| folder.file_name().parse().ok()).collect())
    }
}

/// One cluster's place in one repository. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClusterRepository {
    repository: Repository,
    keys: ClusterKeys,
    cluster: String,
    system_identifier: SystemIdentifier,
}

impl ClusterRepository {
    /// The repository's name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        self.repository.name()
    }

    /// Whether all goes on without it; see [`RepositoryOptions::is_optional`].
    #[must_use]
    pub fn is_optional(&self) -> bool {
        self.repository.is_optional
    }

    /// The same place for a reader that would rather turn to another repository than wait out an outage.
    #[must_use]
    pub fn impatient(&self) -> Self {
        let repository = Repository { store: self.store().impatient(), ..self.repository.clone() };
        Self { repository, ..self.clone() }
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The system identifier.
    #[must_use]
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.system_identifier
    }

    /// The storage below.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.repository.store
    }

    /// The keys of its objects.
    #[must_use]
    pub fn keys(&self) -> &ClusterKeys {
        &self.keys
    }

    pub(crate) fn recipients(&self) -> &Recipients {
        &self.repository.recipients
    }

    /// Whether what is written is encrypted.
    #[must_use]
    pub fn sealing(&self) -> Sealing {
        if self.recipients().is_empty() { Sealing::Plain } else { Sealing::Age }
    }

    /// Opens an object of a backup. Who holds one of the private keys that `backup.json` names can open all of its
    /// objects, so a header that the key does not fit is damaged.
    ///
    /// # Errors
    /// As [`ClusterRepository::open_object`].
    pub async fn open_backup_object(&self, backup: &Backup, key: &ObjectKey) -> Result<OpenedObject> {
        self.open_of_backup(backup, key, Reading::Unchecked).await
    }

    /// Opens a part of a backup to read a little of it here and there.
    ///
    /// # Errors
    /// As [`ClusterRepository::open_object`].
    pub async fn open_part_for_ranges(&self, backup: &Backup, number: u32) -> Result<OpenedObject> {
        self.open_of_backup(backup, &self.part_key(backup, number), Reading::Ranges).await
    }

    /// Opens a part of a backup. Reading it from its first byte to its last fails unless its stored bytes have the
    /// CRC-32 of `backup.json`: a file's own CRC-32C does not tell everything, as that of any valid `pg_control`, which
    /// ends with one, is the same.
    ///
    /// # Errors
    /// As [`ClusterRepository::open_object`].
    pub async fn open_stored_part(&self, backup: &Backup, number: u32) -> Result<OpenedObject> {
        let part = backup.parts.iter().find(|part| part.number == number);
        let crc32 = part.and_then(|part| u32::from_str_radix(&part.crc32, 16).ok());
        let key = self.part_key(backup, number);
        let crc32 = crc32.ok_or_else(|| self.store().damaged(&key, "backup.json has no CRC-32 for it"))?;
        self.open_of_backup(backup, &key, Reading::Checked { crc32 }).await
    }

    async fn open_of_backup(&self, backup: &Backup, key: &ObjectKey, reading: Reading) -> Result<OpenedObject> {
        let own = self.repository.identities.public_keys();
        let mut reader = self.store().open_reader(key).await?;
        match reading {
            Reading::Unchecked => {}
            Reading::Checked { crc32 } => reader.expect_crc32(crc32),
            Reading::Ranges => reader.expect_gaps(),
        }
        match self.unseal(key, reader).await {
            Err(RepositoryError::NoKey { .. }) if own.iter().any(|key| backup.recipients.contains(key)) => {
                Err(self.store().damaged(key, "its age header does not fit the keys that backup.json names"))
            }
            opened => opened,
        }
    }

    /// Opens a small stored object and takes off its encryption, if its name says that it has one.
    /// For blocking threads.
    ///
    /// # Errors
    /// `NotFound`; `NoKey` when no configured private key opens it; `Damaged` when it is no age file.
    pub async fn open_object(&self, key: &ObjectKey) -> Result<OpenedObject> {
        self.unseal(key, self.store().open_small_reader(key).await?).await
    }

    async fn unseal(&self, key: &ObjectKey, reader: ObjectReader) -> Result<OpenedObject> {
        if Sealing::of(key) == Sealing::Plain {
            return Ok(OpenedObject::Plain(reader));
        }
        let no_key =
            |reason: String| RepositoryError::NoKey { repository: self.name().to_owned(), key: key.clone(), reason };
        let identities = self.repository.identities.clone();
        if identities.is_empty() {
            return Err(no_key("no private key is configured; set identity_file".to_owned()));
        }
        let opened = tokio::task::spawn_blocking(move || identities.decrypt(reader)).await;
        match opened {
            Ok(Ok(stream)) => Ok(OpenedObject::Age(Box::new(stream))),
            Ok(Err(age::DecryptError::NoMatchingKeys)) => {
                let own = self.repository.identities.public_keys().join(", ");
                Err(no_key(format!("it was encrypted to other keys than {own}")))
            }
            Ok(Err(age::DecryptError::Io(error))) => Err(read_failure(self.store(), key, error)),
            Ok(Err(error)) => Err(self.store().damaged(key, decrypt_reason(&error))),
            Err(error) => Err(self.store().damaged(key, error.to_string())),
        }
    }
}

/// How an object is going to be read.
#[derive(Debug, Clone, Copy)]
enum Reading {
    Unchecked,
    /// From its first byte to its last, which must come to this checksum.
    Checked {
        crc32: u32,
    },
    /// Only some of it.
    Ranges,
}

/// A stored object without its encryption, as `Read` (and `Seek`) for blocking threads.
pub enum OpenedObject {
    /// It was not encrypted.
    Plain(ObjectReader),
    /// Decrypted and authenticated in chunks of 64 KiB.
    Age(Box<age::stream::StreamReader<ObjectReader>>),
}

impl Read for OpenedObject {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Age(reader) => reader.read(buffer),
        }
    }
}

impl io::Seek for OpenedObject {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        match self {
            Self::Plain(reader) => reader.seek(to),
            Self::Age(reader) => reader.seek(to),
        }
    }
}

/// Turns an error of reading a stored object's content into ours: the store's own errors come
/// through, everything else (zstd, age, short input) means damage.
#[must_use]
pub fn read_failure(store: &Store, key: &ObjectKey, error: io::Error) -> RepositoryError {
    let reason = error.to_string();
    match error.downcast::<RepositoryError>() {
        Ok(inner) => inner,
        Err(error) if error.raw_os_error().is_some() => RepositoryError::Unavailable {
            repository: store.name().to_owned(),
            operation: "read",
            key: key.clone(),
            source: Box::new(error),
        },
        Err(_) => store.damaged(key, reason),
    }
}
