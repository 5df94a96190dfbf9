//! What lies in a repository that is a directory, or in a bucket of s3s-fs, seen without pgark.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The files below a repository's root.
pub(crate) struct RepositoryFiles {
    root: PathBuf,
}

impl RepositoryFiles {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Every file, relative to the root, in order.
    pub(crate) fn all(&self) -> Vec<String> {
        let mut files = Vec::new();
        collect(&self.root, &self.root, &mut files);
        files.sort();
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The files whose path contains all of these texts.
    pub(crate) fn with(&self, texts: &[&str]) -> Vec<String> {
        self.all().into_iter().filter(|name| texts.iter().all(|text| name.contains(text))).collect()
    }

    /// The only file whose path contains all of these texts.
    pub(crate) fn one(&self, texts: &[&str]) -> String {
        let found = self.with(texts);
        assert_eq!(found.len(), 1, "one file with {texts:?} was expected: {found:?} of {:?}", self.all());
        found[0].clone()
    }

    /// The ids of all backups that were begun.
    pub(crate) fn begun(&self) -> BTreeSet<String> {
        self.backups_with("/started.json")
    }

    /// The ids of the backups that have a commit mark.
    pub(crate) fn committed(&self) -> BTreeSet<String> {
        self.backups_with("/backup.json")
    }

    fn backups_with(&self, name: &str) -> BTreeSet<String> {
        let id = |path: String| path.split_once("/backups/")?.1.strip_suffix(name).map(str::to_owned);
        self.all().into_iter().filter_map(id).collect()
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<String>) {
    // Folders come and go while programs run.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if let Ok(name) = path.strip_prefix(root) {
            files.push(name.display().to_string());
        }
    }
}
