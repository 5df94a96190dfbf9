//! The names that a backup has, to tell what does not belong beside it.

use pgark_repository::{IndexedMember, PathSet, RepositoryError};
use tokio::runtime::Handle;

use crate::chain::{each_member, whole_path};
use crate::copies::Copies;
use crate::damage::damaged;

/// The paths of a backup, those of incremental files as they are once they are whole.
#[derive(Default)]
pub(super) struct Expected {
    directories: PathSet,
    files: PathSet,
}

impl Expected {
    /// Reads the index; files that `is_left_out` are not expected.
    pub(super) fn read(
        copies: &Copies,
        runtime: &Handle,
        is_left_out: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, RepositoryError> {
        let mut expected = Self::default();
        let mut twice = None;
        each_member(copies, runtime, |member| {
            if !expected.insert(member, is_left_out(&member.path)) {
                twice.get_or_insert_with(|| String::from_utf8_lossy(&member.path).into_owned());
            }
        })?;
        match (twice, copies.in_order().first()) {
            (Some(name), Some(copy)) => {
                let key = copy.repository.index_key(&copy.backup);
                Err(damaged(&copy.repository, &key, format!("`{name}` is in the backup twice")))
            }
            _ => Ok(expected),
        }
    }

    /// False where a file was there before.
    fn insert(&mut self, member: &IndexedMember, is_left_out: bool) -> bool {
        let above = match member.file {
            None => Some(member.path.as_slice()),
            Some(_) => parent(&member.path),
        };
        let mut directory = above;
        while let Some(path) = directory.filter(|path| self.directories.insert(path)) {
            directory = parent(path);
        }
        member.file.is_none() || is_left_out || self.files.insert(&whole_path(&member.path))
    }

    pub(super) fn has_directory(&self, path: &[u8]) -> bool {
        self.directories.contains(path)
    }

    pub(super) fn has_file(&self, path: &[u8]) -> bool {
        self.files.contains(path)
    }
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|&byte| byte == b'/').map(|slash| &path[..slash])
}
