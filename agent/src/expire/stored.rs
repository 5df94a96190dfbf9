//! What a repository holds of one cluster, read for a plan: two listings, and the commit marks and holds.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use pgark_postgres::{SegmentName, WalFileName};
use pgark_repository::{
    Backup, BackupId, ClusterRepository, Contents, Leftover, ListedObject, ObjectKey, RepositoryError, Result,
    StoredBackup, StoredSegment, backup_file_of, wal_file_of, wal_piece_of,
};

/// Commit marks that are read at once.
const READ_AT_ONCE: usize = 16;

/// The contents, and the objects behind them.
pub(super) struct Stored {
    pub(super) contents: Contents,
    /// The objects in each backup's folder.
    pub(super) backups: BTreeMap<BackupId, Vec<ListedObject>>,
    /// The objects under each segment's name.
    pub(super) wal: BTreeMap<SegmentName, Vec<ListedObject>>,
    /// Whether a commit mark was written by a newer pgark.
    pub(super) has_newer_format: bool,
}

/// A commit mark that was read, or not.
enum Mark {
    Read(Box<Backup>),
    Unreadable(RepositoryError),
    None,
}

impl Stored {
    /// Reads everything that can be read without a private key.
    pub(super) async fn read(place: &ClusterRepository) -> Result<Self> {
        // WAL first: a backup that is found afterwards may miss its last WAL here, which keeps more and not less.
        let mut stored = Self {
            contents: Contents::default(),
            backups: BTreeMap::new(),
            wal: BTreeMap::new(),
            has_newer_format: false,
        };
        for object in place.store().list(&place.keys().wal()).await? {
            stored.add_wal(object);
        }
        for object in place.store().list(&place.keys().backups()).await? {
            if let Some((id, _)) = backup_file_of(&object.key) {
                stored.backups.entry(id).or_default().push(object);
            }
        }
        let found: Vec<_> = stream::iter(&stored.backups)
            .map(|(id, objects)| async move { look_at(place, id, objects).await.map(|found| (id.clone(), found)) })
            .buffered(READ_AT_ONCE)
            .try_collect()
            .await?;
        for (id, found) in found {
            match found {
                Found::Backup(backup) => stored.contents.backups.push(*backup),
                Found::Leftover(leftover) => stored.contents.leftovers.push(leftover),
                Found::Unreadable(error) => {
                    stored.has_newer_format |= matches!(error, RepositoryError::NewerFormat { .. });
                    stored.contents.unreadable.insert(id, error.to_string());
                }
            }
        }
        Ok(stored)
    }

    /// Notes that the store does not let a backup be deleted yet.
    pub(super) fn lock(&mut self, id: &BackupId, words: String) {
        if let Some(backup) = self.backup_mut(id) {
            backup.locked = Some(words);
        }
    }

    /// Notes that a backup is held.
    pub(super) fn hold(&mut self, id: &BackupId, reason: String) {
        if let Some(backup) = self.backup_mut(id) {
            backup.hold = Some(reason);
        }
    }

    fn backup_mut(&mut self, id: &BackupId) -> Option<&mut StoredBackup> {
        self.contents.backups.iter_mut().find(|stored| stored.backup.id == *id)
    }

    fn add_wal(&mut self, object: ListedObject) {
        let is_whole = matches!(wal_file_of(&object.key), Some((WalFileName::Segment(_), _)));
        let Some(segment) = segment_of(&object.key) else { return };
        let stored = self.contents.wal.entry(segment).or_insert(StoredSegment {
            is_whole,
            objects: 0,
            bytes: 0,
            stored: object.stored,
        });
        stored.is_whole |= is_whole;
        stored.objects += 1;
        stored.bytes += object.size;
        stored.stored = stored.stored.max(object.stored);
        self.wal.entry(segment).or_default().push(object);
    }
}

/// The segment whose name an object of WAL carries. Histories have none, which keeps them for ever.
fn segment_of(key: &ObjectKey) -> Option<SegmentName> {
    match wal_file_of(key) {
        Some((WalFileName::Segment(segment) | WalFileName::Partial(segment), _))
        | Some((WalFileName::BackupHistory { segment, .. }, _)) => Some(segment),
        Some((WalFileName::History(_), _)) => None,
        None => wal_piece_of(key).map(|(segment, _, _)| segment),
    }
}

enum Found {
    Backup(Box<StoredBackup>),
    Leftover(Leftover),
    Unreadable(RepositoryError),
}

async fn look_at(place: &ClusterRepository, id: &BackupId, objects: &[ListedObject]) -> Result<Found> {
    let bytes = objects.iter().map(|object| object.size).sum();
    let has = |key: ObjectKey| objects.iter().any(|object| object.key == key);
    match read_mark(place, id, has(place.keys().backup(id))).await? {
        Mark::Unreadable(error) => Ok(Found::Unreadable(error)),
        Mark::Read(backup) => {
            let hold = if has(place.keys().hold(id)) { place.hold_of(id).await? } else { None };
            let fault = fault(place, &backup, objects);
            let hold = hold.map(|hold| hold.reason);
            Ok(Found::Backup(Box::new(StoredBackup { backup: *backup, bytes, fault, hold, locked: None })))
        }
        Mark::None => {
            let last_written = objects.iter().map(|object| object.stored).max().unwrap_or(Timestamp::MIN);
            let claimed = objects.iter().find(|object| object.key == place.keys().started(id));
            // The claim's own time is by the clock of the host, like that in the id.
            let claimed = claimed.map(|claim| id.start().unwrap_or(claim.stored).min(claim.stored));
            let parent = match claimed {
                Some(_) => place.started(id).await?.and_then(|started| started.parent),
                None => None,
            };
            Ok(Found::Leftover(Leftover { id: id.clone(), claimed, parent, last_written, bytes }))
        }
    }
}

async fn read_mark(place: &ClusterRepository, id: &BackupId, is_listed: bool) -> Result<Mark> {
    if !is_listed {
        return Ok(Mark::None);
    }
    match place.backup(id).await {
        Ok(backup) => Ok(Mark::Read(Box::new(backup))),
        // Another expiry was quicker.
        Err(RepositoryError::NotFound { .. }) => Ok(Mark::None),
        Err(error @ (RepositoryError::Damaged { .. } | RepositoryError::NewerFormat { .. })) => {
            Ok(Mark::Unreadable(error))
        }
        Err(error) => Err(error),
    }
}

/// What a listing shows to be wrong with a backup.
fn fault(place: &ClusterRepository, backup: &Backup, objects: &[ListedObject]) -> Option<String> {
    let sizes: BTreeMap<&ObjectKey, u64> = objects.iter().map(|object| (&object.key, object.size)).collect();
    place.objects_of(backup).into_iter().find_map(|listed| match sizes.get(&listed.key) {
        None => Some(format!("its object {} is missing", listed.key.file_name())),
        Some(size) if *size != listed.size => {
            Some(format!("its object {} has {size} bytes instead of {}", listed.key.file_name(), listed.size))
        }
        Some(_) => None,
    })
}
