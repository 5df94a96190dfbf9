//! Directories that a backup took along besides the data directory (`pgark-agent backup --include`).
//!
//! They come back below a directory of their own, each under its own path, and never over what a host has in place: a
//! configuration of yesterday in `/etc` is the administrator's decision, not that of a restore.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pgark_command::{ExitCode, Failure};
use pgark_postgres::check_relative_path;
use pgark_repository::{
    Backup, ClusterRepository, Included, IncludedDirectory, ObjectKey, PartReader, RepositoryError, StoredFile,
};

use crate::copies::Copies;
use crate::damage::{damaged, reading_failed};
use crate::destination::Destination;
use crate::extract::{ExtractError, TarReader, io_failure};
use crate::survey::{DigestReader, blocking};

/// Checks where the directories are to go, before anything is touched.
pub(crate) fn check(directory: &Path, destination: Option<&Destination>, backup: &Backup) -> Result<PathBuf, Failure> {
    let refused =
        |reason: String| Failure::new(ExitCode::Usage, format!("--included-to {}: {reason}", directory.display()));
    if backup.included.is_empty() {
        return Err(refused(format!("the backup {} has no included directory", backup.id)));
    }
    let directory = std::path::absolute(directory).map_err(|error| refused(error.to_string()))?;
    if let Some(data) = destination.map(|destination| &destination.directory)
        && (directory.starts_with(data) || data.starts_with(&directory))
    {
        return Err(refused(format!("it must not overlap with {}, where the cluster goes", data.display())));
    }
    match fs::read_dir(&directory).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(directory),
        Ok(true) => Err(refused("it is not empty; name an absent or empty directory".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(directory),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// Brings all of them back; durable on return.
pub(crate) async fn restore(copies: &Copies, backup: &Backup, below: &Path) -> Result<(), ExtractError> {
    for number in (1..).take(backup.included.len()) {
        let (repository, backup, included) = whole_copy(copies, number).await?;
        let key = repository.included_key(backup, number);
        let path = included.directory.trim_start_matches('/');
        check_relative_path(path.as_bytes())
            .map_err(|error| damaged(repository, &key, format!("backup.json files it under `{path}`: {error}")))?;
        let archive = repository.open_included(backup, number).await?;
        let unpacking = Unpacking {
            repository: repository.clone(),
            key,
            expected: included.object.clone(),
            root: below.join(path),
        };
        let done = tokio::task::spawn_blocking(move || unpacking.run(archive));
        done.await.unwrap_or_else(|error| Err(io_failure("unpack", below, io::Error::other(error))))?;
    }
    Ok(())
}

/// Reads all of them, to be stored with another backup.
///
/// # Errors
/// When none of the copies can be read.
pub async fn read_included(copies: &Copies, backup: &Backup) -> Result<Vec<IncludedDirectory>, RepositoryError> {
    let mut all = Vec::with_capacity(backup.included.len());
    for number in (1..).take(backup.included.len()) {
        let (repository, backup, included) = whole_copy(copies, number).await?;
        let key = repository.included_key(backup, number);
        let archive = repository.open_included(backup, number).await?;
        let (repository, included) = (repository.clone(), included.clone());
        let read = blocking(move || {
            let failed = |error| reading_failed(&repository, &key, error);
            let (archive, digest) = DigestReader::new(archive);
            let mut archive = TarReader::new(archive);
            let mut directory = IncludedDirectory::new(included.directory);
            while let Some(member) = archive.next_member().map_err(failed)? {
                let mut content = Vec::new();
                if let Some(size) = member.size {
                    let taken = archive.read_content(size, |bytes| {
                        content.extend_from_slice(bytes);
                        Ok(())
                    });
                    taken.map_err(failed)?;
                }
                directory.add(&member, &content)?;
            }
            digest.check(&repository, &key, &included.object)?;
            Ok(directory)
        });
        all.push(read.await?);
    }
    Ok(all)
}

/// The first copy of one that is whole. They are small, so each is read before it is unpacked.
async fn whole_copy(copies: &Copies, number: u32) -> Result<(&ClusterRepository, &Backup, &Included), RepositoryError> {
    let mut first = None;
    for copy in copies.in_order() {
        let (repository, backup) = (&copy.repository, &copy.backup);
        let Some(included) = backup.included.get(number as usize - 1) else { continue };
        match check_content(repository, backup, number, &included.object).await {
            Ok(()) => return Ok((repository, backup, included)),
            Err(error) => {
                copies.note_failure(copy, &error);
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| RepositoryError::Input("no repository has the included directory".to_owned())))
}

/// Reads one to its end, without bringing it back.
pub(crate) async fn check_content(
    repository: &ClusterRepository,
    backup: &Backup,
    number: u32,
    expected: &StoredFile,
) -> Result<(), RepositoryError> {
    let key = repository.included_key(backup, number);
    let archive = repository.open_included(backup, number).await?;
    let (repository, expected) = (repository.clone(), expected.clone());
    blocking(move || {
        let (mut archive, digest) = DigestReader::new(archive);
        io::copy(&mut archive, &mut io::sink()).map_err(|error| reading_failed(&repository, &key, error))?;
        digest.check(&repository, &key, &expected)
    })
    .await
}

struct Unpacking {
    repository: ClusterRepository,
    key: ObjectKey,
    expected: StoredFile,
    root: PathBuf,
}

impl Unpacking {
    fn run(&self, archive: PartReader) -> Result<(), ExtractError> {
        let failed = |error| reading_failed(&self.repository, &self.key, error);
        let (archive, digest) = DigestReader::new(archive);
        let mut archive = TarReader::new(archive);
        let mut directories = vec![self.root.clone()];
        self.create_directory(&self.root, 0o755)?;
        while let Some(member) = archive.next_member().map_err(failed)? {
            // Nothing here is a link, so a path without `..` stays below.
            let path = self.root.join(std::ffi::OsStr::from_bytes(&member.path));
            let Some(size) = member.size else {
                self.create_directory(&path, member.mode)?;
                directories.push(path);
                continue;
            };
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(|error| io_failure("create", &path, error))?;
            let mut write_error = None;
            let copied = archive.read_content(size, |bytes| {
                file.write_all(bytes).map_err(|error| {
                    let kind = error.kind();
                    write_error = Some(error);
                    kind.into()
                })
            });
            if let Some(error) = write_error {
                return Err(io_failure("write", &path, error));
            }
            copied.map_err(failed)?;
            file.set_permissions(fs::Permissions::from_mode(member.mode & 0o777))
                .and_then(|()| file.sync_all())
                .map_err(|error| io_failure("sync", &path, error))?;
        }
        digest.check(&self.repository, &self.key, &self.expected)?;
        for directory in directories.iter().rev() {
            fs::File::open(directory)
                .and_then(|opened| opened.sync_all())
                .map_err(|error| io_failure("sync", directory, error))?;
        }
        Ok(())
    }

    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), ExtractError> {
        DirBuilder::new()
            .recursive(path == self.root)
            .mode(mode & 0o777)
            .create(path)
            .map_err(|error| io_failure("create", path, error))
    }
}
