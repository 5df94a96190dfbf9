//! Reading a stored backup: its index, its manifest, and its parts as whole streams or by range.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use crate::backup::{Backup, Part, StoredFile};
use crate::cluster::{ClusterRepository, OpenedObject};
use crate::compression::{FRAME_BYTES, MAX_STORED_FRAME, decompress_frame};
use crate::error::Result;
use crate::index::{IndexReader, IndexedPart};
use crate::keys::ObjectKey;

/// The raw tar bytes of a part.
pub type PartReader = zstd::Decoder<'static, BufReader<OpenedObject>>;

/// An object of a backup and what `backup.json` says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupObject {
    /// What it is.
    pub kind: BackupObjectKind,
    /// Its key.
    pub key: ObjectKey,
    /// Its name in the backup's folder.
    pub name: String,
    /// Bytes as stored.
    pub size: u64,
    /// CRC-32 over the stored bytes, 8 hex digits.
    pub crc32: String,
}

/// What an object of a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackupObjectKind {
    /// The part with this number.
    Part(u32),
    /// The included directory with this number, from 1 on.
    Included(u32),
    /// PostgreSQL's manifest.
    Manifest,
    /// Where each file is in the parts.
    Index,
}

impl ClusterRepository {
    /// Every object that a backup's commit mark lists, in the order of their names.
    #[must_use]
    pub fn objects_of(&self, backup: &Backup) -> Vec<BackupObject> {
        let folder = self.keys().backup_folder(&backup.id);
        let object = |kind, key: ObjectKey, size, crc32: &String| BackupObject {
            kind,
            name: key.name_in(&folder).to_owned(),
            key,
            size,
            crc32: crc32.clone(),
        };
        let part = |part: &Part| {
            object(
                BackupObjectKind::Part(part.number),
                self.part_key(backup, part.number),
                part.stored_size,
                &part.crc32,
            )
        };
        let file = |kind, key, file: &StoredFile| object(kind, key, file.stored_size, &file.crc32);
        let included = (1..).zip(&backup.included).map(|(number, included)| {
            file(BackupObjectKind::Included(number), self.included_key(backup, number), &included.object)
        });
        let lists = [
            file(BackupObjectKind::Manifest, self.manifest_key(backup), &backup.manifest),
            file(BackupObjectKind::Index, self.index_key(backup), &backup.index),
        ];
        let mut objects: Vec<_> = backup.parts.iter().map(part).chain(included).chain(lists).collect();
        objects.sort_by(|one, other| one.name.cmp(&other.name));
        objects
    }

    /// Opens a backup's index, decrypted and decompressed. For blocking threads.
    ///
    /// # Errors
    /// `NotFound`, `NoKey`, `Damaged`, or when the store fails.
    pub async fn open_index(&self, backup: &Backup) -> Result<IndexReader<BufReader<PartReader>>> {
        Ok(IndexReader::new(BufReader::new(self.open_compressed(backup, &self.index_key(backup)).await?)))
    }

    /// Opens PostgreSQL's manifest of a backup. For blocking threads.
    ///
    /// # Errors
    /// As [`ClusterRepository::open_index`].
    pub async fn open_manifest(&self, backup: &Backup) -> Result<BufReader<PartReader>> {
        Ok(BufReader::new(self.open_compressed(backup, &self.manifest_key(backup)).await?))
    }

    /// Opens a part as a stream of its tar archive. For blocking threads.
    ///
    /// # Errors
    /// As [`ClusterRepository::open_index`].
    pub async fn open_part(&self, backup: &Backup, number: u32) -> Result<PartReader> {
        let object = self.open_stored_part(backup, number).await?;
        self.decompress(&self.part_key(backup, number), object)
    }

    /// The key of a backup's index.
    #[must_use]
    pub fn index_key(&self, backup: &Backup) -> ObjectKey {
        self.keys().index(&backup.id, backup.sealing())
    }

    /// The key of a backup's manifest.
    #[must_use]
    pub fn manifest_key(&self, backup: &Backup) -> ObjectKey {
        self.keys().manifest(&backup.id, backup.sealing())
    }

    /// The key of a backup's part.
    #[must_use]
    pub fn part_key(&self, backup: &Backup, number: u32) -> ObjectKey {
        self.keys().part(&backup.id, number, backup.sealing())
    }

    /// The key of an included directory; `number` counts from 1.
    #[must_use]
    pub fn included_key(&self, backup: &Backup, number: u32) -> ObjectKey {
        self.keys().included(&backup.id, number, backup.sealing())
    }

    /// Opens an included directory as a stream of its tar archive. For blocking threads.
    ///
    /// # Errors
    /// As [`ClusterRepository::open_index`].
    pub async fn open_included(&self, backup: &Backup, number: u32) -> Result<PartReader> {
        self.open_compressed(backup, &self.included_key(backup, number)).await
    }

    async fn open_compressed(&self, backup: &Backup, key: &ObjectKey) -> Result<PartReader> {
        self.decompress(key, self.open_backup_object(backup, key).await?)
    }

    fn decompress(&self, key: &ObjectKey, object: OpenedObject) -> Result<PartReader> {
        zstd::Decoder::new(object).map_err(|error| self.store().damaged(key, error.to_string()))
    }

    /// Reads raw bytes of a part from `offset` on by fetching only the frames that hold them. For
    /// blocking threads, on an object from [`ClusterRepository::open_object`].
    ///
    /// # Errors
    /// `InvalidData` when the part does not hold them or a frame is damaged; or the store's errors.
    pub fn read_part_range(
        object: &mut OpenedObject,
        part: &IndexedPart,
        offset: u64,
        length: usize,
    ) -> io::Result<Vec<u8>> {
        let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason);
        let end = offset.checked_add(length as u64).filter(|end| *end <= part.raw_size);
        let end = end.ok_or_else(|| invalid("the range ends behind the part"))?;
        let frame_bytes = FRAME_BYTES as u64;
        let first = offset / frame_bytes;
        let mut raw = Vec::new();
        let mut stored_offset: u64 = 0;
        for (number, stored) in (0u64..).zip(&part.frames) {
            let start = number * frame_bytes;
            if start >= end {
                break;
            }
            if number >= first {
                let raw_size = frame_bytes.min(part.raw_size.saturating_sub(start));
                object.seek(SeekFrom::Start(stored_offset))?;
                if *stored as usize > MAX_STORED_FRAME {
                    return Err(invalid("a frame is longer than frames can be"));
                }
                let mut frame = vec![0; *stored as usize];
                object.read_exact(&mut frame)?;
                let frame = decompress_frame(&frame, raw_size as usize)?;
                let from = offset.saturating_sub(start) as usize;
                let to = (end - start).min(raw_size) as usize;
                raw.extend_from_slice(&frame[from..to]);
            }
            stored_offset += u64::from(*stored);
        }
        if raw.len() == length { Ok(raw) } else { Err(invalid("the part's frames do not cover the range")) }
    }
}
