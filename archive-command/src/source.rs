//! The file that PostgreSQL wants archived, checked against its name.
//!
//! A segment names its cluster in its first page. The small text files do not, so for them `global/pg_control` of the
//! data directory is asked: PostgreSQL runs the command there and gives `pg_wal/<name>`.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use pgark_command::{DataDirectoryError, data_directory_of_wal_file, read_control_file};
use pgark_postgres::{
    HistoryError, KNOWN_MAJOR_VERSIONS, SegmentHeader, SegmentName, SystemIdentifier, TimelineHistory, WalFileName,
    WalFileNameError, WalPageError,
};

/// Histories have a line for each timeline; this is far above any.
const TEXT_LIMIT: u64 = 4 << 20;

/// A file of `pg_wal` that is what its name says.
#[derive(Debug)]
pub struct SourceFile {
    /// Its name.
    pub name: WalFileName,
    /// What is in it.
    pub content: Content,
    /// The cluster that wrote it.
    pub system_identifier: SystemIdentifier,
}

/// The bytes of a file of `pg_wal`.
#[derive(Debug)]
pub enum Content {
    /// A segment, opened at its beginning.
    Segment {
        /// The file.
        file: File,
        /// Its size in bytes.
        size: u64,
    },
    /// All of a small file.
    Text(Vec<u8>),
}

/// Why a file is not archived.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// `archive_command` is called without a file name.
    #[error("the path has no file name; archive_command must pass %p")]
    NoName,
    /// The name is none that PostgreSQL archives.
    #[error("the name is not one that PostgreSQL archives")]
    Name(#[source] WalFileNameError),
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is far larger than it can be.
    #[error("the file has more than {limit} bytes")]
    TooLarge {
        /// The largest sensible size.
        limit: u64,
    },
    /// The segment was written by a server that came after this program.
    #[error(
        "the server is newer than PostgreSQL {}, the newest that this pgark knows: upgrade pgark; the server keeps the file and tries again",
        KNOWN_MAJOR_VERSIONS.end()
    )]
    NewerVersion(#[source] WalPageError),
    /// The segment is not what its name says.
    #[error("the file is not the WAL segment that its name says")]
    Segment(#[source] WalPageError),
    /// The history is not what its name says.
    #[error("the file is not the history that its name says")]
    History(#[source] HistoryError),
    /// The data directory does not tell which cluster it is.
    #[error(transparent)]
    DataDirectory(#[from] DataDirectoryError),
}

impl SourceFile {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When the name is unknown, the file cannot be read, or the content does not belong to the name.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(SourceError::NoName)?;
        let name: WalFileName = name.parse().map_err(SourceError::Name)?;
        match name {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => {
                let (file, size, head) = open_segment(path)?;
                let system_identifier = check_segment(&segment, &head, size).map_err(refused)?;
                Ok(Self { name, content: Content::Segment { file, size }, system_identifier })
            }
            WalFileName::History(timeline) => {
                let content = read_text(path)?;
                TimelineHistory::parse(timeline, &content).map_err(SourceError::History)?;
                Ok(Self { name, content: Content::Text(content), system_identifier: system_identifier(path)? })
            }
            WalFileName::BackupHistory { .. } => {
                let content = Content::Text(read_text(path)?);
                Ok(Self { name, content, system_identifier: system_identifier(path)? })
            }
        }
    }
}

fn refused(error: WalPageError) -> SourceError {
    if error.is_of_newer_version() { SourceError::NewerVersion(error) } else { SourceError::Segment(error) }
}

fn check_segment(name: &SegmentName, head: &[u8], size: u64) -> Result<SystemIdentifier, WalPageError> {
    let header = SegmentHeader::parse(head)?;
    header.check_name(name, size)?;
    Ok(header.system_identifier)
}

/// Opens a segment, and reads what its first page begins with.
fn open_segment(path: &Path) -> Result<(File, u64, Vec<u8>), SourceError> {
    let failed = |source| SourceError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut head = Vec::new();
    (&file).take(SegmentHeader::BYTES as u64).read_to_end(&mut head).map_err(failed)?;
    (&file).rewind().map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    Ok((file, size, head))
}

fn read_text(path: &Path) -> Result<Vec<u8>, SourceError> {
    let failed = |source| SourceError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(TEXT_LIMIT + 1).read_to_end(&mut content)).map_err(failed)?;
    if content.len() as u64 > TEXT_LIMIT {
        return Err(SourceError::TooLarge { limit: TEXT_LIMIT });
    }
    Ok(content)
}

fn system_identifier(path: &Path) -> Result<SystemIdentifier, SourceError> {
    Ok(read_control_file(&data_directory_of_wal_file(path))?.system_identifier)
}
