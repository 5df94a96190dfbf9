//! Carries a plan out, in an order that survives a kill at any point.
//!
//! A backup's commit mark goes first: from then on it does not exist. Its claim goes right behind it, so that the next
//! expiry knows the rest for what it is, whatever its age. When all marks are gone, WAL goes, and then everything else.
//! Children go before their parents. Whoever holds a backup meanwhile is heeded: the hold is looked for before the mark
//! is deleted and after, and then the mark is put back.
//!
//! What the store protects stays and is reported. A backup that stays keeps its WAL, so the plan is made again then.

use std::collections::BTreeSet;

use anyhow::Context;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use pgark_command::format_time;
use pgark_postgres::SegmentName;
use pgark_repository::{
    BackupId, ClusterRepository, Creation, Deletion, LeftoverFate, ObjectKey, RepositoryError, Result, RetentionPolicy,
    plan_retention,
};
use serde::Serialize;

use super::Expiry;

/// Deletions that are under way at once.
const DELETE_AT_ONCE: usize = 16;
/// A commit mark is read before it is deleted, in case that it has to come back.
const MARK_LIMIT: u64 = 256 << 20;
/// A folder that somebody made for an object is filled long before.
const EMPTY_FOR: std::time::Duration = std::time::Duration::from_secs(60 * 60);

/// What was done.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// Backups that are gone.
    pub(crate) backups: Vec<BackupId>,
    /// Interrupted backups, and rests of deleted ones, that are gone.
    pub(crate) leftovers: Vec<BackupId>,
    /// Objects of WAL that are gone.
    pub(crate) wal_objects: u64,
    pub(crate) freed_bytes: u64,
    /// Objects that were to go and that the store protects.
    pub(crate) locked: Vec<LockedObject>,
}

/// An object that the store does not let go yet.
#[derive(Debug, Clone, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LockedObject {
    pub(crate) lock: String,
    pub(crate) object: String,
}

/// Whether a backup's commit mark is gone.
enum Mark {
    Gone,
    Held(String),
    Locked(String),
}

impl Expiry {
    pub(super) async fn carry_out(mut self, policy: &RetentionPolicy) -> anyhow::Result<(Self, Option<Outcome>)> {
        let place = self.place.clone();
        let context = || format!("delete from repository `{}`", place.name());
        let mut outcome = Outcome::default();
        let gone = self.delete_marks(policy, &mut outcome).await.with_context(context)?;
        self.delete_wal(&mut outcome).await.with_context(context)?;
        for id in gone {
            self.delete_rest(&id, &mut outcome).await.with_context(context)?;
            outcome.backups.push(id);
        }
        let leftovers: Vec<_> = self.plan.deleted_leftovers().cloned().collect();
        for leftover in leftovers {
            if self.delete_leftover(&leftover.id, &leftover.fate, &mut outcome).await.with_context(context)? {
                outcome.leftovers.push(leftover.id);
            }
        }
        place.store().remove_empty_folders(&place.keys().root(), EMPTY_FOR).await.with_context(context)?;
        outcome.locked.sort();
        Ok((self, Some(outcome)))
    }

    /// Deletes the commit marks, each with its claim, the newest first, and plans again when one has to stay.
    async fn delete_marks(&mut self, policy: &RetentionPolicy, outcome: &mut Outcome) -> Result<BTreeSet<BackupId>> {
        let mut gone = BTreeSet::new();
        while let Some(id) = self.next_to_delete(&gone) {
            match delete_mark(&self.place, &id).await? {
                Mark::Gone => {
                    tracing::info!(repository = self.place.name(), backup = %id, "deleted the backup's commit mark");
                    // Whether or not the claim may go, the backup is gone: what stays is reported.
                    self.delete_claim(&id, outcome).await?;
                    gone.insert(id);
                    continue;
                }
                Mark::Held(reason) => self.stored.hold(&id, reason),
                Mark::Locked(words) => {
                    outcome
                        .locked
                        .push(LockedObject { lock: words.clone(), object: self.place.keys().backup(&id).to_string() });
                    self.stored.lock(&id, words);
                }
            }
            self.plan = plan_retention(&self.stored.contents, policy, Timestamp::now());
        }
        Ok(gone)
    }

    /// The newest backup that is to go and on which no other one builds that is still there.
    fn next_to_delete(&self, gone: &BTreeSet<BackupId>) -> Option<BackupId> {
        let there = self.stored.contents.backups.iter().filter(|stored| !gone.contains(&stored.backup.id));
        let parents: BTreeSet<_> = there.filter_map(|stored| stored.backup.parent.as_ref()).collect();
        let doomed: Vec<&BackupId> =
            self.plan.deleted_backups().map(|backup| &backup.id).filter(|id| !gone.contains(*id)).collect();
        doomed.into_iter().rev().find(|id| !parents.contains(id)).cloned()
    }

    async fn delete_wal(&self, outcome: &mut Outcome) -> Result<()> {
        // The first of each stretch goes first, and the oldest of those: a gap that begins behind a backup's own WAL, with
        // nothing but such before it, is known for what it is.
        let stretches = self.plan.wal_stretches();
        let is_first = |segment: &SegmentName| stretches.iter().any(|stretch| stretch.first == *segment);
        let doomed = self.stored.wal.iter().filter(|(segment, _)| self.plan.deletes(segment));
        let (first, rest): (Vec<_>, Vec<_>) = doomed.partition(|(segment, _)| is_first(segment));
        for (doomed, at_once) in [(first, 1), (rest, DELETE_AT_ONCE)] {
            let objects = doomed.into_iter().flat_map(|(_, objects)| objects);
            let objects: Vec<_> = objects.map(|object| (object.key.clone(), object.size)).collect();
            let before = outcome.locked.len();
            let count = objects.len();
            self.delete_objects(objects, at_once, outcome).await?;
            outcome.wal_objects += (count + before - outcome.locked.len()) as u64;
        }
        Ok(())
    }

    /// Deletes the claim of a backup. Returns whether it is gone.
    async fn delete_claim(&self, id: &BackupId, outcome: &mut Outcome) -> Result<bool> {
        let (store, claim) = (self.place.store(), self.place.keys().started(id));
        match store.delete_unless_locked(&claim).await? {
            Deletion::Done => store.settle_deletion(&claim).await.map(|()| true),
            Deletion::Locked(lock) => {
                outcome.locked.push(LockedObject { lock, object: claim.to_string() });
                Ok(false)
            }
        }
    }

    /// Deletes what is left of a backup whose commit mark and claim have been deleted.
    async fn delete_rest(&self, id: &BackupId, outcome: &mut Outcome) -> Result<()> {
        let keys = self.place.keys();
        let (claim, mark) = (keys.started(id), keys.backup(id));
        let objects = self.stored.backups.get(id).into_iter().flatten().map(|object| (object.key.clone(), object.size));
        let (gone, rest): (Vec<_>, Vec<_>) = objects.partition(|(key, _)| *key == mark || *key == claim);
        outcome.freed_bytes += gone.iter().map(|(_, size)| size).sum::<u64>();
        self.delete_objects(rest, DELETE_AT_ONCE, outcome).await?;
        self.place.store().remove_empty_folders(&keys.backup_folder(id), std::time::Duration::ZERO).await
    }

    /// Deletes a folder without a commit mark. Its writer may have stood still and go on now: it looks for its claim
    /// when it has created the commit mark, so the claim goes first, and then the mark is looked for again.
    async fn delete_leftover(&self, id: &BackupId, fate: &LeftoverFate, outcome: &mut Outcome) -> Result<bool> {
        let (store, keys) = (self.place.store(), self.place.keys());
        if *fate == LeftoverFate::FinishDeletion && store.size(&keys.started(id)).await?.is_some() {
            return Ok(false);
        }
        if store.size(&keys.backup(id)).await?.is_some() {
            return Ok(false);
        }
        if !self.delete_claim(id, outcome).await? || store.size(&keys.backup(id)).await?.is_some() {
            return Ok(false);
        }
        self.delete_rest(id, outcome).await?;
        Ok(true)
    }

    /// Deletes objects, so many side by side. The first failure ends it.
    async fn delete_objects(
        &self,
        objects: Vec<(ObjectKey, u64)>,
        at_once: usize,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let store = self.place.store();
        let mut deletions =
            stream::iter(objects)
                .map(|(key, size)| async move {
                    store.delete_unless_locked(&key).await.map(|deletion| (key, size, deletion))
                })
                .buffer_unordered(at_once);
        while let Some(deleted) = deletions.next().await {
            match deleted? {
                (_, size, Deletion::Done) => outcome.freed_bytes += size,
                (key, _, Deletion::Locked(lock)) => {
                    outcome.locked.push(LockedObject { lock, object: key.to_string() });
                }
            }
        }
        Ok(())
    }
}

async fn delete_mark(place: &ClusterRepository, id: &BackupId) -> Result<Mark> {
    let key = place.keys().backup(id);
    if let Some(hold) = place.hold_of(id).await? {
        return Ok(Mark::Held(hold.reason));
    }
    let content = match place.store().read(&key, MARK_LIMIT).await {
        Ok(content) => content,
        // Another expiry was quicker.
        Err(RepositoryError::NotFound { .. }) => return Ok(Mark::Gone),
        Err(error) => return Err(error),
    };
    if let Deletion::Locked(words) = place.store().delete_unless_locked(&key).await? {
        return Ok(Mark::Locked(words));
    }
    place.store().settle_deletion(&key).await?;
    let Some(hold) = place.hold_of(id).await? else { return Ok(Mark::Gone) };
    if place.store().create(&key, content).await? == Creation::Different {
        return Err(RepositoryError::Conflict { repository: place.name().to_owned(), key });
    }
    tracing::warn!(backup = %id, since = format_time(hold.time), "was held at the last moment, and stays");
    Ok(Mark::Held(hold.reason))
}
