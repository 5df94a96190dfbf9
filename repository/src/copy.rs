//! Filling up a repository from another one: what was stored while it was away.
//!
//! Objects are copied as they are stored, which needs no private key, so both must encrypt to the same public keys. They
//! are created like all others: what is there stays, and a backup gets its commit mark last, after the WAL that it needs.

use std::io;

use bytes::Bytes;
use pgark_postgres::{SegmentName, WalFileName};

use crate::backup::{Backup, StoredFile};
use crate::cluster::ClusterRepository;
use crate::encryption::read_note;
use crate::error::{RepositoryError, Result};
use crate::keys::{ObjectKey, Sealing};
use crate::store::{Creation, StoredObject};
use crate::wal_archive::{HEADER_BYTES, WalStored};

/// Bytes that are read at once of an object that may be large.
const CHUNK_BYTES: u64 = 4 << 20;
/// The claim of a backup is a few lines.
const CLAIM_LIMIT: u64 = 1 << 20;

impl ClusterRepository {
    /// Whether objects of another repository can be copied into this one as they are.
    #[must_use]
    pub fn can_copy_from(&self, source: &Self) -> bool {
        same_keys(&self.recipients().public_keys(), &source.recipients().public_keys())
    }

    /// Copies a WAL file that the source has. What can be checked without the private key is checked: all of a file that
    /// is not encrypted, and the header and the length of one that is.
    ///
    /// # Errors
    /// `NotFound` when the source does not have it; `Damaged` when its copy is; `Conflict` when another file has the
    /// name here; `Configuration` when the two encrypt to different keys; or when a store fails.
    pub async fn copy_wal_file(&self, source: &Self, name: &WalFileName) -> Result<WalStored> {
        self.check_keys(source)?;
        let sealing = source.sealing();
        let key = source.keys().wal_file(name, sealing);
        let Some(size) = source.store().size(&key).await? else {
            let repository = source.name().to_owned();
            return Err(RepositoryError::NotFound { repository, key });
        };
        let bytes = source.store().read(&key, size).await?;
        match sealing {
            Sealing::Plain => {
                source.read_wal_object(key.clone(), *name, io::sink()).await?;
            }
            Sealing::Age => {
                let head = bytes.get(..bytes.len().min(HEADER_BYTES as usize)).unwrap_or_default();
                let note = read_note(head).map_err(|error| source.store().damaged(&key, error.to_string()))?;
                if note.is_none_or(|(_, whole)| whole != size) {
                    return Err(source.store().damaged(&key, "its header does not fit its length"));
                }
            }
        }
        let own = self.keys().wal_file(name, sealing);
        match self.store().create(&own, bytes).await? {
            Creation::Created => Ok(WalStored::New),
            Creation::Identical => Ok(WalStored::AlreadyThere),
            Creation::Different => self.same_wal_file(source, name, &own, &key).await,
        }
    }

    /// Two encryptions of one file are different objects; their notes tell.
    async fn same_wal_file(
        &self,
        source: &Self,
        name: &WalFileName,
        own: &ObjectKey,
        other: &ObjectKey,
    ) -> Result<WalStored> {
        if self.stored_digest(own, name).await? == source.stored_digest(other, name).await? {
            return Ok(WalStored::AlreadyThere);
        }
        Err(RepositoryError::Conflict { repository: self.name().to_owned(), key: own.clone() })
    }

    /// Copies a finished backup. What is there of it stays, such as the parts of an attempt that was broken off.
    ///
    /// # Errors
    /// `NotFound` when WAL that it needs, or the backup on which it builds, is not here; `Damaged` when the source is;
    /// `Conflict` when something else has its name here; `Configuration` when the two encrypt to different keys; or when a store fails. It does not exist
    /// here then.
    pub async fn copy_backup(&self, source: &Self, backup: &Backup) -> Result<()> {
        self.check_keys(source)?;
        if !same_keys(&backup.recipients, &self.recipients().public_keys()) {
            return Err(self.other_keys(source));
        }
        self.check_needed_wal(source, backup).await?;
        if let Some(parent) = &backup.parent {
            let key = self.keys().backup(parent);
            if self.store().size(&key).await?.is_none() {
                return Err(RepositoryError::NotFound { repository: self.name().to_owned(), key });
            }
        }
        let (id, sealing) = (&backup.id, backup.sealing());
        let claim = source.store().read(&source.keys().started(id), CLAIM_LIMIT).await?;
        let started = self.keys().started(id);
        if self.store().create(&started, claim).await? == Creation::Different {
            return Err(RepositoryError::Conflict { repository: self.name().to_owned(), key: started });
        }
        let mut copy = backup.clone();
        for part in &mut copy.parts {
            let key = self.keys().part(id, part.number, sealing);
            let object = self.copy_object(source, &key, part.stored_size, &part.crc32).await?;
            (part.stored_size, part.crc32) = (object.size, format!("{:08x}", object.crc32));
        }
        for (number, included) in (1..).zip(&mut copy.included) {
            self.copy_stored(source, &self.keys().included(id, number, sealing), &mut included.object).await?;
        }
        self.copy_stored(source, &self.keys().manifest(id, sealing), &mut copy.manifest).await?;
        self.copy_stored(source, &self.keys().index(id, sealing), &mut copy.index).await?;
        let mark = self.keys().backup(id);
        match self.store().create(&mark, copy.seal()?).await? {
            Creation::Created | Creation::Identical => Ok(()),
            Creation::Different => Err(RepositoryError::Conflict { repository: self.name().to_owned(), key: mark }),
        }
    }

    async fn copy_stored(&self, source: &Self, key: &ObjectKey, file: &mut StoredFile) -> Result<()> {
        let object = self.copy_object(source, key, file.stored_size, &file.crc32).await?;
        (file.stored_size, file.crc32) = (object.size, format!("{:08x}", object.crc32));
        Ok(())
    }

    /// Copies an object, whose key is the same in both, and holds what passes against its CRC-32.
    async fn copy_object(&self, source: &Self, key: &ObjectKey, size: u64, crc32: &str) -> Result<StoredObject> {
        if let Some(there) = self.store().size(key).await? {
            return self.take_as_it_is(key, there, size, crc32).await;
        }
        let mut writer = self.store().begin(key).await?;
        let copied = async {
            let mut found = crc32fast::Hasher::new();
            let mut offset = 0;
            while offset < size {
                let bytes: Bytes = source.store().read_range(key, offset, CHUNK_BYTES.min(size - offset)).await?;
                found.update(&bytes);
                offset += bytes.len() as u64;
                writer.write(bytes).await?;
            }
            check_crc(source, key, found.finalize(), crc32)
        };
        if let Err(error) = copied.await {
            writer.abort().await;
            return Err(error);
        }
        writer.finish().await
    }

    /// An object that an earlier attempt has stored. Encrypted once more, it has another CRC-32.
    async fn take_as_it_is(&self, key: &ObjectKey, there: u64, size: u64, crc32: &str) -> Result<StoredObject> {
        if there != size {
            return Err(RepositoryError::Conflict { repository: self.name().to_owned(), key: key.clone() });
        }
        let mut found = crc32fast::Hasher::new();
        let mut offset = 0;
        while offset < size {
            let bytes = self.store().read_range(key, offset, CHUNK_BYTES.min(size - offset)).await?;
            found.update(&bytes);
            offset += bytes.len() as u64;
        }
        let found = found.finalize();
        if Sealing::of(key) == Sealing::Plain {
            check_crc(self, key, found, crc32)?;
        }
        Ok(StoredObject { size, crc32: found })
    }

    /// A backup that cannot become consistent from this repository alone must not look like one that can.
    async fn check_needed_wal(&self, source: &Self, backup: &Backup) -> Result<()> {
        let needed = |segment: &SegmentName| (backup.wal.first..=backup.wal.last).contains(segment);
        let there = self.wal_inventory().await?.segments;
        let all = source.wal_inventory().await?.segments;
        let missing = all.into_keys().filter(needed).chain([backup.wal.first, backup.wal.last]);
        match missing.into_iter().find(|segment| !there.contains_key(segment)) {
            None => Ok(()),
            Some(segment) => {
                let key = self.keys().wal_file(&WalFileName::Segment(segment), self.sealing());
                Err(RepositoryError::NotFound { repository: self.name().to_owned(), key })
            }
        }
    }

    fn check_keys(&self, source: &Self) -> Result<()> {
        if self.can_copy_from(source) { Ok(()) } else { Err(self.other_keys(source)) }
    }

    fn other_keys(&self, source: &Self) -> RepositoryError {
        let reason =
            format!("it encrypts to other keys than `{}`, so nothing can be copied between them", source.name());
        RepositoryError::Configuration { repository: self.name().to_owned(), reason }
    }
}

fn check_crc(place: &ClusterRepository, key: &ObjectKey, found: u32, expected: &str) -> Result<()> {
    let found = format!("{found:08x}");
    if found == expected {
        return Ok(());
    }
    let reason = format!("its stored bytes have the CRC-32 {found}, and backup.json says {expected}");
    Err(place.store().damaged(key, reason))
}

fn same_keys(one: &[String], other: &[String]) -> bool {
    let sorted = |keys: &[String]| {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys
    };
    sorted(one) == sorted(other)
}
