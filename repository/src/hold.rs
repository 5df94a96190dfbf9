//! Holds: `hold.json` in a backup's folder keeps it from being deleted. It is created and deleted, never edited.

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backup::{BACKUP_FORMAT, to_json};
use crate::backup_id::BackupId;
use crate::cluster::ClusterRepository;
use crate::error::{RepositoryError, Result};
use crate::store::{Creation, Deletion};

/// Holds that are read at once.
const READ_AT_ONCE: usize = 16;
/// A reason is a sentence.
const HOLD_LIMIT: u64 = 1 << 20;

/// Who holds a backup, and why: the content of `hold.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// [`BACKUP_FORMAT`] of the writer.
    pub format: u64,
    /// The held backup.
    pub id: BackupId,
    /// Why it is held.
    pub reason: String,
    /// The host on which it was said.
    pub host: String,
    /// The clock of that host.
    pub time: Timestamp,
    /// The program.
    pub written_by: String,
}

impl Hold {
    /// A hold from now on.
    #[must_use]
    pub fn new(id: BackupId, reason: String, host: String, written_by: String) -> Self {
        Self { format: BACKUP_FORMAT, id, reason, host, time: Timestamp::now(), written_by }
    }

    fn unreadable(id: &BackupId) -> Self {
        let unknown = || "unknown".to_owned();
        let reason = "its hold.json cannot be read".to_owned();
        Self { format: 0, id: id.clone(), reason, host: unknown(), time: Timestamp::UNIX_EPOCH, written_by: unknown() }
    }
}

impl ClusterRepository {
    /// Holds a finished backup; durable on return. Where it is held already, that hold stays and is returned.
    ///
    /// # Errors
    /// `NotFound` when there is no such finished backup, also because it was deleted meanwhile; or when the store
    /// refuses or cannot be reached.
    pub async fn hold(&self, hold: &Hold) -> Result<Option<Hold>> {
        let mark = self.keys().backup(&hold.id);
        let missing = || RepositoryError::NotFound { repository: self.name().to_owned(), key: mark.clone() };
        self.store().size(&mark).await?.ok_or_else(missing)?;
        let key = self.keys().hold(&hold.id);
        let created = self.store().create(&key, to_json(hold)?).await?;
        // An expiry that looked before the hold was there has deleted the commit mark by now, or will look again and
        // put it back.
        if self.store().size(&mark).await?.is_none() {
            if created == Creation::Created {
                self.store().delete(&key).await?;
            }
            return Err(missing());
        }
        match created {
            Creation::Created => Ok(None),
            Creation::Identical | Creation::Different => self.hold_of(&hold.id).await,
        }
    }

    /// Ends a hold. Says whether there was one.
    ///
    /// # Errors
    /// `NotFound` when there is no such finished backup; or when the store refuses or cannot be reached.
    pub async fn release(&self, id: &BackupId) -> Result<bool> {
        let mark = self.keys().backup(id);
        let missing = || RepositoryError::NotFound { repository: self.name().to_owned(), key: mark.clone() };
        self.store().size(&mark).await?.ok_or_else(missing)?;
        let key = self.keys().hold(id);
        if self.store().size(&key).await?.is_none() {
            return Ok(false);
        }
        match self.store().delete_unless_locked(&key).await? {
            Deletion::Done => self.store().settle_deletion(&key).await.map(|()| true),
            Deletion::Locked(words) => {
                let reason = format!("{key} is locked {words} and cannot be deleted before");
                Err(RepositoryError::Configuration { repository: self.name().to_owned(), reason })
            }
        }
    }

    /// Reads the hold of a backup, if there is one. One that cannot be read holds all the same, and says so.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn hold_of(&self, id: &BackupId) -> Result<Option<Hold>> {
        let key = self.keys().hold(id);
        match self.store().read(&key, HOLD_LIMIT).await {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| Hold::unreadable(id)))),
            Err(RepositoryError::Damaged { .. }) => Ok(Some(Hold::unreadable(id))),
            Err(RepositoryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The holds of these backups, in their order, without those that are not held.
    ///
    /// # Errors
    /// As [`ClusterRepository::hold_of`].
    pub async fn holds(&self, ids: impl IntoIterator<Item = BackupId>) -> Result<Vec<Hold>> {
        let reads = stream::iter(ids).map(|id| async move { self.hold_of(&id).await }).buffered(READ_AT_ONCE);
        reads.try_filter_map(|hold| async move { Ok(hold) }).try_collect().await
    }
}
