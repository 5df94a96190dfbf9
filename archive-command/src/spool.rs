//! Notes of segments that were stored before PostgreSQL asked for them, in `<state_dir>/archived`.
//!
//! A note is believed only for a short while, and only if the file is still the very one that was stored: same inode,
//! size, and times to the nanosecond (nobody can set a file's change time), going to the same repositories. Everything
//! else, and every doubt, means that the segment is shipped again, which does no harm. So the notes are safe to lose.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pgark_command::{Configuration, RepositoryConfiguration};
use pgark_postgres::SegmentName;
use pgark_repository::RawDigest;

/// How long a note counts. PostgreSQL asks for the next segment within moments; meanwhile nobody has emptied the
/// repository behind its back.
const FRESH: Duration = Duration::from_secs(60);

/// The notes of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    folder: PathBuf,
    /// In front of each name: several clusters may share the folder.
    prefix: String,
    /// Where the segments go. Notes of another configuration do not count.
    destination: String,
}

/// What makes a file this very file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileIdentity(String);

impl FileIdentity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self(format!(
            "{} {} {} {}.{:09} {}.{:09}",
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec()
        ))
    }
}

impl Spool {
    pub(crate) fn new(configuration: &Configuration, repositories: &[&RepositoryConfiguration]) -> Self {
        let mut destination = format!("{}\n", env!("CARGO_PKG_VERSION"));
        for repository in repositories {
            // The recipients themselves may stand in a file; whoever changes them re-sends a minute of WAL to the old
            // ones at worst.
            destination.push_str(&format!("{}\n{}\n", repository.name, repository.url));
        }
        Self {
            folder: configuration.state_dir.join("archived"),
            prefix: format!("{}-", configuration.cluster.name),
            destination: RawDigest::of(destination.as_bytes()).hex(),
        }
    }

    /// Whether this very file was stored just now.
    pub(crate) fn confirms(&self, segment: SegmentName, file: &Path) -> bool {
        let path = self.note_path(segment);
        let read = || -> io::Result<bool> {
            let is_fresh = is_fresh(&fs::symlink_metadata(&path)?);
            let note = fs::read_to_string(&path)?;
            Ok(is_fresh && note == self.note(&FileIdentity::of(&fs::metadata(file)?)))
        };
        read().unwrap_or(false)
    }

    /// Makes the folder and removes what no longer counts.
    ///
    /// # Errors
    /// When notes cannot be kept here.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let is_own = entry.file_name().to_str().is_some_and(|name| name.starts_with(&self.prefix));
            if is_own && entry.metadata().is_ok_and(|metadata| !is_fresh(&metadata)) {
                // Another call may have been faster.
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(())
    }

    /// Notes that a file is durable in all repositories. `identity` is what it was before it was read.
    pub(crate) fn keep(&self, segment: SegmentName, identity: &FileIdentity) -> io::Result<()> {
        let path = self.note_path(segment);
        let unfinished = path.with_extension(std::process::id().to_string());
        fs::write(&unfinished, self.note(identity))?;
        fs::rename(&unfinished, &path)
    }

    fn note(&self, identity: &FileIdentity) -> String {
        format!("{} {}\n", identity.0, self.destination)
    }

    fn note_path(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(format!("{}{segment}", self.prefix))
    }
}

/// A note from the future is as doubtful as an old one, and one of another user is a forgery.
fn is_fresh(note: &Metadata) -> bool {
    let age = note.modified().ok().and_then(|written| SystemTime::now().duration_since(written).ok());
    let is_own = note.is_file() && note.uid() == rustix::process::geteuid().as_raw();
    is_own && age.is_some_and(|age| age < FRESH)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const SEGMENT: &str = "000000010000000000000007";

    fn spool(folder: &Path, destination: &str) -> Spool {
        Spool { folder: folder.join("archived"), prefix: "main-".to_owned(), destination: destination.to_owned() }
    }

    #[test]
    fn only_the_very_file_is_confirmed_and_only_for_its_destination() {
        let folder = tempfile::tempdir().unwrap();
        let segment: SegmentName = SEGMENT.parse().unwrap();
        let file = folder.path().join(SEGMENT);
        fs::write(&file, "content").unwrap();
        let here = spool(folder.path(), "here");
        assert!(!here.confirms(segment, &file), "there is no folder yet");
        here.prepare().unwrap();
        here.keep(segment, &FileIdentity::of(&fs::metadata(&file).unwrap())).unwrap();
        assert!(here.confirms(segment, &file));
        assert!(!spool(folder.path(), "elsewhere").confirms(segment, &file));
        assert!(!here.confirms("000000010000000000000008".parse().unwrap(), &file));

        // The same bytes, written again under the name; then other bytes with the old times.
        let times = fs::metadata(&file).unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(&file, "content").unwrap();
        assert!(!here.confirms(segment, &file));
        here.keep(segment, &FileIdentity::of(&fs::metadata(&file).unwrap())).unwrap();
        fs::write(&file, "CONTENT").unwrap();
        fs::File::open(&file).unwrap().set_modified(times.modified().unwrap()).unwrap();
        assert!(!here.confirms(segment, &file));
    }

    #[test]
    fn old_broken_and_future_notes_do_not_count_and_go_away() {
        let folder = tempfile::tempdir().unwrap();
        let segment: SegmentName = SEGMENT.parse().unwrap();
        let file = folder.path().join(SEGMENT);
        fs::write(&file, "content").unwrap();
        let spool = spool(folder.path(), "here");
        spool.prepare().unwrap();
        let identity = FileIdentity::of(&fs::metadata(&file).unwrap());
        let note = folder.path().join("archived").join(format!("main-{SEGMENT}"));
        for (age, in_future) in [(FRESH + Duration::from_secs(1), false), (Duration::from_secs(30), true)] {
            spool.keep(segment, &identity).unwrap();
            let now = SystemTime::now();
            let time = if in_future { now + age } else { now - age };
            fs::File::options().write(true).open(&note).unwrap().set_modified(time).unwrap();
            assert!(!spool.confirms(segment, &file));
            spool.prepare().unwrap();
            assert!(!note.exists());
        }
        spool.keep(segment, &identity).unwrap();
        let whole = fs::read_to_string(&note).unwrap();
        for length in 0..whole.len() {
            fs::write(&note, &whole[..length]).unwrap();
            assert!(!spool.confirms(segment, &file), "cut to {length}");
        }
        fs::write(folder.path().join("archived/other-cluster"), "").unwrap();
        spool.prepare().unwrap();
        assert!(folder.path().join("archived/other-cluster").exists());
    }
}
