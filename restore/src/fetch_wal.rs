//! `pgark-restore wal %f %p`: fetches one file for `restore_command`.
//!
//! PostgreSQL believes a lot of the exit code. 0 says that the file is in its place, whole. 1 to 125 say that the file
//! does not exist, and then recovery ends and the server is promoted, perhaps with hours of data missing. So 1 is kept
//! for an absence that the store itself stated, in a repository that is really there: an unmounted directory states
//! everything absent. All else ends above 125, which stops the server without harm. A standby is different: it asks
//! again by itself and would be taken down by such a code, so for it faults are retried and then loudly reported as 1.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::try_join_all;
use pgark_command::data_directory_of_wal_file;
use pgark_postgres::{SegmentHeader, SegmentName, SystemIdentifier, WalFileName, WalPageError};
use pgark_repository::{ClusterRepository, ErrorKind, RepositoryError};
use thiserror::Error;

use crate::archive::Archive;

/// What a standby waits before it tries again.
const STANDBY_RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// How a fetch ended, when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The file is in its place.
    InPlace,
    /// It is proven not to be in the archive.
    Absent,
}

/// It is not known whether the file exists, or it could not be put into its place.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(
        "the repository `{repository}` holds nothing of the cluster `{cluster}` with system identifier \
         {system_identifier}; is it mounted, and is it the right one?"
    )]
    EmptyRepository { repository: String, cluster: String, system_identifier: SystemIdentifier },
    #[error("{name} in the repository `{repository}` is not the segment that its name says")]
    WrongSegment {
        name: SegmentName,
        repository: String,
        #[source]
        source: WalPageError,
    },
    #[error("{name} in the repository `{repository}` is of the cluster {found}, not {expected}")]
    OtherCluster { name: SegmentName, repository: String, found: SystemIdentifier, expected: SystemIdentifier },
    #[error("cannot {operation} {}", .path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

impl FetchError {
    /// Whether a second try may help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Repository(error) => error.kind() == ErrorKind::Unavailable,
            Self::EmptyRepository { .. } => true,
            Self::WrongSegment { .. } | Self::OtherCluster { .. } | Self::Io { .. } => false,
        }
    }
}

/// Fetches a file for a server in recovery.
pub async fn fetch_wal(archive: &Archive, name: WalFileName, destination: &Path) -> Result<Fetched, FetchError> {
    let mut file_name = destination.file_name().unwrap_or_default().to_owned();
    file_name.push(format!(".pgark-{}", std::process::id()));
    let temporary = destination.with_file_name(file_name);
    let whole = match fetch_first(archive, name, &temporary).await? {
        Some(whole) => whole,
        None => {
            // At once, since a server in recovery meets the end of the WAL several times.
            let (found, proof) = tokio::join!(look_again(archive, name, &temporary), prove_that_all_are_there(archive));
            match found? {
                Some(whole) => whole,
                None => return proof.map(|()| Fetched::Absent),
            }
        }
    };
    whole.publish(destination.to_path_buf()).await?;
    Ok(Fetched::InPlace)
}

/// Fetches a file under a temporary name from the first repository that has it.
pub(crate) async fn fetch_first(
    archive: &Archive,
    name: WalFileName,
    temporary: &Path,
) -> Result<Option<WholeFile>, FetchError> {
    let fetched = archive.first(name, async |repository, number| {
        let mut own = temporary.as_os_str().to_owned();
        if number > 0 {
            own.push(format!(".{number}"));
        }
        fetch_into(repository, name, own.into()).await
    });
    fetched.await
}

/// What else can be had of a file that nobody has whole: pieces may end before it does.
async fn look_again(archive: &Archive, name: WalFileName, temporary: &Path) -> Result<Option<WholeFile>, FetchError> {
    let WalFileName::Segment(segment) = name else { return Ok(None) };
    if let Some(assembled) = assemble_into(archive, segment, temporary.to_owned()).await? {
        return Ok(Some(assembled));
    }
    // Pieces go away when their segment is stored whole, and that may have happened just now.
    let is_there = archive.first(name, async |repository, _| {
        let is_there = repository.has_wal_file(&name).await?;
        Ok::<_, RepositoryError>(is_there.then_some(()))
    });
    match is_there.await? {
        Some(()) => fetch_first(archive, name, temporary).await,
        None => Ok(None),
    }
}

/// Fetches a file under a temporary name; nothing, where the store states that it is absent.
async fn fetch_into(
    repository: &ClusterRepository,
    name: WalFileName,
    temporary: PathBuf,
) -> Result<Option<WholeFile>, FetchError> {
    let temporary = Temporary::create(temporary)?;
    let output = CheckedWriter::new(temporary.open()?);
    let Some(output) = repository.fetch_wal_file(&name, output).await? else { return Ok(None) };
    if let WalFileName::Segment(segment) | WalFileName::Partial(segment) = name {
        check_segment(segment, repository.name(), repository.system_identifier(), &output.head, output.size)?;
    }
    Ok(Some(WholeFile { temporary, output }))
}

/// Writes the segment that was being written last, as far as its pieces go and then zeros, where the server finds the
/// end of the WAL by itself.
async fn assemble_into(
    archive: &Archive,
    segment: SegmentName,
    temporary: PathBuf,
) -> Result<Option<WholeFile>, FetchError> {
    let Some(bytes) = assemble(archive, segment).await? else { return Ok(None) };
    let temporary = Temporary::create(temporary)?;
    let mut output = CheckedWriter::new(temporary.open()?);
    let place = archive.names();
    let wrong = |source| FetchError::WrongSegment { name: segment, repository: place.clone(), source };
    let size = SegmentHeader::parse(&bytes).map_err(wrong)?.segment_size.bytes();
    output
        .write_all(&bytes)
        .and_then(|()| io::copy(&mut io::repeat(0).take(size.saturating_sub(output.size)), &mut output))
        .map_err(|source| FetchError::Io { operation: "write", path: temporary.path.clone(), source })?;
    check_segment(segment, &place, archive.system_identifier(), &output.head, output.size)?;
    tracing::info!(file = %segment, bytes = bytes.len(), "put together from the pieces of the last segment");
    Ok(Some(WholeFile { temporary, output }))
}

/// The bytes of a segment of which there are only pieces.
///
/// The first segment of a timeline begins with a copy of its parent's last bytes. Pieces that hold no more than that
/// are passed over: the server would take them instead of the parent's segment, which may go further.
///
/// All repositories are asked, since one may have been away while the others took more. What they have must agree, as
/// the pieces of one have to.
pub(crate) async fn assemble(archive: &Archive, segment: SegmentName) -> Result<Option<Vec<u8>>, RepositoryError> {
    let mut bytes = Vec::new();
    for repository in archive.repositories() {
        if let Some(other) = repository.assemble_segment(segment).await? {
            bytes = agreed(bytes, other);
        }
    }
    if bytes.len() < SegmentHeader::BYTES {
        return Ok(None);
    }
    let Ok(header) = SegmentHeader::parse(&bytes) else { return Ok(Some(bytes)) };
    let end = segment.start(header.segment_size).saturating_add(bytes.len() as u64);
    let wanted = WalFileName::History(segment.timeline);
    let history = archive.first(wanted, async |place, _| place.timeline_history(segment.timeline).await).await?;
    let begin = history.and_then(|history| history.path().last().map(|(_, begin, _)| *begin));
    Ok(Some(bytes).filter(|_| begin.is_none_or(|begin| end > begin)))
}

/// The longer one as far as it does not contradict the other.
fn agreed(one: Vec<u8>, other: Vec<u8>) -> Vec<u8> {
    let (mut long, short) = if one.len() < other.len() { (other, one) } else { (one, other) };
    if let Some(end) = long.iter().zip(&short).position(|(one, other)| one != other) {
        long.truncate(end);
    }
    long
}

/// Fetches a file for a standby: tries again for a while when the archive cannot be asked.
pub async fn fetch_wal_for_standby(
    archive: &Archive,
    name: WalFileName,
    destination: &Path,
) -> Result<Fetched, FetchError> {
    for wait in STANDBY_RETRIES {
        match fetch_wal(archive, name, destination).await {
            Err(error) if error.is_transient() => {
                tracing::warn!(file = %name, error = &error as &dyn std::error::Error, "fetching failed; trying again");
                tokio::time::sleep(wait).await;
            }
            other => return other,
        }
    }
    fetch_wal(archive, name, destination).await
}

/// The system identifier of the server that asks.
pub fn system_identifier_of(destination: &Path) -> Result<SystemIdentifier, pgark_command::DataDirectoryError> {
    let directory = data_directory_of_wal_file(destination);
    Ok(pgark_command::read_control_file(&directory)?.system_identifier)
}

/// An absence counts only where each repository is really there.
async fn prove_that_all_are_there(archive: &Archive) -> Result<(), FetchError> {
    try_join_all(archive.repositories().map(prove_that_it_is_there)).await.map(drop)
}

/// Something else of this cluster must be there before a missing file means that it was never archived.
async fn prove_that_it_is_there(repository: &ClusterRepository) -> Result<(), FetchError> {
    let folders = [repository.keys().backups(), repository.keys().wal()];
    let listed = try_join_all(folders.iter().map(|folder| repository.store().list_folder(folder))).await?;
    if listed.iter().any(|(objects, folders)| !objects.is_empty() || !folders.is_empty()) {
        return Ok(());
    }
    Err(FetchError::EmptyRepository {
        repository: repository.name().to_owned(),
        cluster: repository.cluster().to_owned(),
        system_identifier: repository.system_identifier(),
    })
}

/// Checks by its first page that a segment is the one that its name says, of this cluster.
pub(crate) fn check_segment(
    name: SegmentName,
    repository: &str,
    expected: SystemIdentifier,
    head: &[u8],
    size: u64,
) -> Result<(), FetchError> {
    let wrong = |source| FetchError::WrongSegment { name, repository: repository.to_owned(), source };
    let header = SegmentHeader::parse(head).map_err(wrong)?;
    header.check_name(&name, size).map_err(wrong)?;
    if header.system_identifier != expected {
        let found = header.system_identifier;
        return Err(FetchError::OtherCluster { name, repository: repository.to_owned(), found, expected });
    }
    Ok(())
}

/// A file that was fetched, and has no name yet.
pub(crate) struct WholeFile {
    temporary: Temporary,
    output: CheckedWriter<File>,
}

impl WholeFile {
    /// CRC-32 of its content.
    pub(crate) fn crc(&self) -> u32 {
        self.output.crc()
    }

    /// Makes it durable and gives it its name.
    pub(crate) async fn publish(self, destination: PathBuf) -> Result<(), FetchError> {
        let path = destination.clone();
        let published =
            tokio::task::spawn_blocking(move || self.temporary.publish(&self.output.inner, &destination)).await;
        published
            .unwrap_or_else(|error| Err(FetchError::Io { operation: "write", path, source: io::Error::other(error) }))
    }
}

/// Passes on what it is given, never more than a segment has, and keeps its beginning for a look at the header.
pub(crate) struct CheckedWriter<W> {
    inner: W,
    pub(crate) head: Vec<u8>,
    pub(crate) size: u64,
    crc: crc32fast::Hasher,
}

impl<W> CheckedWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, head: Vec::new(), size: 0, crc: crc32fast::Hasher::new() }
    }

    /// CRC-32 of what was written.
    pub(crate) fn crc(&self) -> u32 {
        self.crc.clone().finalize()
    }
}

impl<W: Write> Write for CheckedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const LARGEST: u64 = 1 << 30;
        if self.size + bytes.len() as u64 > LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than any segment"));
        }
        let written = self.inner.write(bytes)?;
        let missing = SegmentHeader::BYTES.saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..written.min(missing)]);
        self.size += written as u64;
        self.crc.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A file next to its destination that takes its name only when it is whole; removed otherwise.
struct Temporary {
    path: PathBuf,
    is_published: bool,
}

impl Temporary {
    fn create(path: PathBuf) -> Result<Self, FetchError> {
        // One of a process with the same number that was killed.
        if let Err(source) = std::fs::remove_file(&path)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(FetchError::Io { operation: "remove", path, source });
        }
        Ok(Self { path, is_published: false })
    }

    fn open(&self) -> Result<File, FetchError> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(&self.path).map_err(|source| FetchError::Io {
            operation: "create",
            path: self.path.clone(),
            source,
        })
    }

    fn publish(mut self, file: &File, destination: &Path) -> Result<(), FetchError> {
        let failed = |operation, path: &Path, source| FetchError::Io { operation, path: path.to_path_buf(), source };
        file.sync_all().map_err(|source| failed("sync", &self.path, source))?;
        std::fs::rename(&self.path, destination).map_err(|source| failed("rename to", destination, source))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_published {
            // What cannot be removed is a temporary name that nobody reads.
            drop(std::fs::remove_file(&self.path));
        }
    }
}
