//! The names that a backup has, to tell what does not belong beside it.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use pgark_repository::{IndexLine, IndexReader, IndexedMember, RepositoryError};
use tokio::runtime::Handle;

use crate::copies::{Copies, List, StoredCopy};
use crate::damage::{damaged, reading_failed};
use crate::survey::DigestReader;

/// The paths of a backup as hashes with a secret key: a dozen bytes each, and for ten million paths beside a thousand
/// strange ones a chance of one in a billion that one of those is taken for one of them.
#[derive(Default)]
pub(super) struct Expected {
    directories: HashSet<u64>,
    files: HashSet<u64>,
    key: RandomState,
}

impl Expected {
    /// Reads the index; files that `is_left_out` are not expected.
    pub(super) fn read(
        copies: &Copies,
        runtime: &Handle,
        is_left_out: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, RepositoryError> {
        let mut expected = Self::default();
        let Some(StoredCopy { repository, backup, .. }) = copies.in_order().first().copied() else {
            return Ok(expected);
        };
        let key = repository.index_key(backup);
        let (index, digest) = DigestReader::new(copies.read(List::Index, runtime));
        let mut index = IndexReader::new(index);
        while let Some(line) = index.next_line().map_err(|error| reading_failed(repository, &key, error))? {
            let IndexLine::Member(member) = line else { continue };
            if !expected.insert(&member, is_left_out(&member.path)) {
                let name = String::from_utf8_lossy(&member.path);
                return Err(damaged(repository, &key, format!("`{name}` is in the backup twice")));
            }
        }
        digest.check(repository, &key, &backup.index)?;
        Ok(expected)
    }

    /// False where a file was there before.
    fn insert(&mut self, member: &IndexedMember, is_left_out: bool) -> bool {
        let above = match member.file {
            None => Some(member.path.as_slice()),
            Some(_) => parent(&member.path),
        };
        let mut directory = above;
        while let Some(path) = directory.filter(|path| self.directories.insert(self.key.hash_one(path))) {
            directory = parent(path);
        }
        member.file.is_none() || is_left_out || self.files.insert(self.key.hash_one(member.path.as_slice()))
    }

    pub(super) fn has_directory(&self, path: &[u8]) -> bool {
        self.directories.contains(&self.key.hash_one(path))
    }

    pub(super) fn has_file(&self, path: &[u8]) -> bool {
        self.files.contains(&self.key.hash_one(path))
    }
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|&byte| byte == b'/').map(|slash| &path[..slash])
}
