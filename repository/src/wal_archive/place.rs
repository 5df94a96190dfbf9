//! Storing a WAL file, in two steps: what its name alone can settle is asked while it is still being compressed, so that the
//! connection is there, and nothing but one request is left, when its bytes are.

use pgark_postgres::WalFileName;

use super::{PreparedWalFile, WalStored};
use crate::cluster::ClusterRepository;
use crate::error::Result;
use crate::keys::ObjectKey;

/// Where a WAL file is about to be stored.
#[derive(Debug)]
pub struct WalPlace {
    repository: ClusterRepository,
    key: ObjectKey,
    /// The file in the other form, with its size: from before encryption was turned on or off.
    other: Option<(ObjectKey, u64)>,
}

impl ClusterRepository {
    /// Finds the place of a WAL file.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn wal_place(&self, name: &WalFileName) -> Result<WalPlace> {
        let [key, other_key] = self.wal_file_keys(name);
        let size = self.store().size(&other_key).await?;
        Ok(WalPlace { repository: self.clone(), key, other: size.map(|size| (other_key, size)) })
    }

    /// Stores a WAL file; durable on return.
    ///
    /// # Errors
    /// As [`ClusterRepository::wal_place`] and [`WalPlace::store`].
    pub async fn store_wal_file(&self, file: &PreparedWalFile) -> Result<WalStored> {
        self.wal_place(&file.name).await?.store(file).await
    }
}

impl WalPlace {
    /// The repository's name in the configuration.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.repository.name()
    }

    /// Stores the file for which the place was found; durable on return.
    ///
    /// # Errors
    /// `Conflict` when the name is taken by other content, which stays as it is; `Damaged` when the
    /// same content was there but is not whole; or when the store refuses or cannot be reached.
    pub async fn store(&self, file: &PreparedWalFile) -> Result<WalStored> {
        match &self.other {
            Some((key, size)) => self.repository.compare_wal_file(key, *size, file.name, &file.digest).await,
            None => self.repository.create_wal_object(&self.key, file.name, &file.digest, &file.content).await,
        }
    }
}
