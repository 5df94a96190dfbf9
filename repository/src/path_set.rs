//! Very many paths in little memory.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// Paths as hashes with a secret key: a dozen bytes each. Among ten million paths the chance is one in three hundred
/// thousand that two different ones are taken for one, and one in a billion that one of a thousand others is taken for
/// one of them.
#[derive(Debug, Default)]
pub struct PathSet {
    hashes: HashSet<u64>,
    key: RandomState,
}

impl PathSet {
    /// Adds a path. False where it was there.
    pub fn insert(&mut self, path: &[u8]) -> bool {
        self.hashes.insert(self.key.hash_one(path))
    }

    /// Whether the path was added.
    #[must_use]
    pub fn contains(&self, path: &[u8]) -> bool {
        self.hashes.contains(&self.key.hash_one(path))
    }
}
