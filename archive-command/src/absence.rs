//! Repositories that are not required and were away a moment ago, and the files that they have missed, in
//! `<state_dir>/absent`.
//!
//! A repository that was found away is left alone for a while, so that not every call waits for it. What it missed has a
//! note of its own, by which a later call copies it. All of it is safe to lose: `pgark-agent run` and `backup` compare
//! what is really stored.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pgark_postgres::WalFileName;

/// How long a repository is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// What is known of one repository.
#[derive(Debug, Clone)]
pub(crate) struct Absence {
    folder: PathBuf,
    /// In front of each name: several clusters may share the folder.
    prefix: String,
}

impl Absence {
    pub(crate) fn new(state_dir: &Path, cluster: &str, repository: &str) -> Self {
        Self { folder: state_dir.join("absent"), prefix: format!("{cluster}+{repository}+") }
    }

    /// Whether it was found away a moment ago.
    pub(crate) fn is_recent(&self) -> bool {
        let age = |note: &Metadata| SystemTime::now().duration_since(note.modified().ok()?).ok();
        fs::symlink_metadata(self.note("away"))
            .is_ok_and(|note| is_own(&note) && age(&note).is_some_and(|age| age < LEFT_ALONE))
    }

    /// Takes note that it is away; tells whether that is news.
    pub(crate) fn begin(&self) -> io::Result<bool> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let note = self.note("away");
        let is_news = !note.exists();
        fs::write(note, "")?;
        Ok(is_news)
    }

    /// Takes note that it answers; tells whether that is news.
    pub(crate) fn end(&self) -> bool {
        fs::remove_file(self.note("away")).is_ok()
    }

    /// Takes note that it lacks a file.
    pub(crate) fn missed(&self, file: &WalFileName) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        fs::write(self.note(&file.to_string()), "")
    }

    /// Takes note that it has it now.
    pub(crate) fn made_up(&self, file: &WalFileName) {
        // One that stays is looked for again, and found to be there.
        drop(fs::remove_file(self.note(&file.to_string())));
    }

    /// The first files that it lacks.
    pub(crate) fn lacks(&self, most: usize) -> Vec<WalFileName> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter_map(|name| name.strip_prefix(&self.prefix).map(str::to_owned)).collect();
        names.sort_unstable();
        names.iter().filter_map(|name| name.parse().ok()).take(most).collect()
    }

    fn note(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}{name}", self.prefix))
    }
}

fn is_own(note: &Metadata) -> bool {
    note.is_file() && note.uid() == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_left_alone_for_a_while_and_its_files_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let absence = Absence::new(folder.path(), "main", "far");
        let other = Absence::new(folder.path(), "main", "farther");
        assert!(!absence.is_recent() && !absence.end());
        assert!(absence.begin().unwrap());
        assert!(!absence.begin().unwrap(), "it is no news any more");
        assert!(absence.is_recent() && !other.is_recent());
        let file: WalFileName = "000000010000000000000007".parse().unwrap();
        let history: WalFileName = "00000002.history".parse().unwrap();
        absence.missed(&file).unwrap();
        absence.missed(&history).unwrap();
        assert_eq!(absence.lacks(9), [file, history]);
        assert_eq!(absence.lacks(1), [file]);
        assert!(other.lacks(9).is_empty());
        absence.made_up(&file);
        assert_eq!(absence.lacks(9), [history]);

        let old = SystemTime::now() - LEFT_ALONE;
        let note = folder.path().join("absent/main+far+away");
        fs::File::options().write(true).open(note).unwrap().set_modified(old).unwrap();
        assert!(!absence.is_recent());
        assert!(absence.end() && !absence.end());
    }
}
