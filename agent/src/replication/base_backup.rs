//! `BASE_BACKUP`, as a stream of messages that is the same for every version.
//!
//! ```text
//! T D C          start position and timeline
//! T D* C         tablespaces; the last row is the data directory
//!   13, 14       H d* c for each row, then H d* c with the manifest
//!   15 on        H d* c with everything in it
//! T D C          end position and timeline
//! C "BASE_BACKUP"  Z
//! ```
//!
//! Only the last line means success: damaged pages are reported after everything else has been sent.
//!
//! The server sends 8 KiB at a time, so a fast reader wakes up often: read from a spawned task or on a thread of its
//! own, since waking up across threads costs more than the reading.

mod archive_frames;
mod archive_name;
mod command;
mod copy_streams;
mod header;

use bytes::Bytes;
use pgark_postgres::{Lsn, TimelineId};

pub use self::archive_name::ArchiveName;
pub use self::command::BaseBackupOptions;
pub use self::header::Tablespace;

use self::archive_frames::ArchiveFrames;
use self::command::NEW_GRAMMAR;
use self::copy_streams::CopyStreams;
use self::header::{TablespaceList, parse_position};
use super::connection::{ReplicationConnection, unexpected};
use super::error::{ReplicationError, sqlstate};
use super::message::BackendMessage;

/// Where the backup starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupStart {
    /// WAL is needed from here on.
    pub lsn: Lsn,
    /// The timeline at this moment.
    pub timeline: TimelineId,
}

/// Where the backup ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupEnd {
    /// WAL is needed up to here.
    pub lsn: Lsn,
    /// Differs from the start's only when a standby followed a promotion.
    pub timeline: TimelineId,
}

/// One piece of a base backup, in the order in which the server sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupMessage {
    /// A tar archive begins; its bytes follow as [`BackupMessage::Data`].
    Archive {
        /// Which one.
        name: ArchiveName,
        /// The tablespace's path on the server, empty for the data directory.
        tablespace_path: Bytes,
    },
    /// The next bytes of the archive. A slice of the read buffer: copy or use it promptly.
    Data(Bytes),
    /// All archives are complete and the manifest begins.
    ManifestStart,
    /// The next bytes of the manifest.
    ManifestData(Bytes),
    /// How many bytes the server has processed so far.
    Progress(u64),
}

/// A base backup under way.
///
/// A stream that is dropped before [`BaseBackupStream::finish`] leaves the connection unusable.
#[derive(Debug)]
pub struct BaseBackupStream<'a> {
    connection: &'a mut ReplicationConnection,
    start: BackupStart,
    list: TablespaceList,
    layout: Layout,
    done: bool,
}

/// How the server sends the archives and the manifest.
#[derive(Debug)]
enum Layout {
    Copies(CopyStreams),
    Frames(ArchiveFrames),
}

/// What a message of the server means for the backup.
#[derive(Debug)]
enum Step {
    Message(BackupMessage),
    /// Only that something begins or ends.
    Nothing,
    Done,
}

impl ReplicationConnection {
    /// Starts a base backup and returns when the server begins to send, which with a spread checkpoint takes minutes.
    pub async fn base_backup(&mut self, options: &BaseBackupOptions) -> Result<BaseBackupStream<'_>, ReplicationError> {
        let version = self.known_server_version().await?;
        self.start_command(&options.command(version)?)?;
        let (lsn, timeline) = parse_position(&self.read_result_set().await?)?;
        let list = TablespaceList::parse(&self.read_result_set().await?)?;
        let layout = if version < NEW_GRAMMAR {
            Layout::Copies(CopyStreams::new(&list, options.manifest))
        } else {
            Layout::Frames(ArchiveFrames::new(&list.archives, options.manifest))
        };
        Ok(BaseBackupStream { connection: self, start: BackupStart { lsn, timeline }, list, layout, done: false })
    }
}

impl BaseBackupStream<'_> {
    /// Where the backup starts.
    pub fn start(&self) -> BackupStart {
        self.start
    }

    /// The tablespaces, without the data directory.
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.list.tablespaces
    }

    /// The server's estimate for everything, where progress was asked for.
    pub fn estimated_size_kib(&self) -> Option<u64> {
        self.list.estimated_size_kib()
    }

    /// Waits for the next piece; nothing after the last. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<BackupMessage>, ReplicationError> {
        while !self.done {
            if let Layout::Copies(copies) = &mut self.layout
                && let Some(progress) = copies.progress()
            {
                return Ok(Some(progress));
            }
            let message = match self.connection.receive("in the middle of a base backup").await? {
                BackendMessage::ErrorResponse(server) => return Err(self.connection.fail_command(server).await),
                message => message,
            };
            let step = match &mut self.layout {
                Layout::Copies(copies) => copies.take(message)?,
                Layout::Frames(frames) => frames.take(message)?,
            };
            match step {
                Step::Message(message) => return Ok(Some(message)),
                Step::Nothing => {}
                Step::Done => self.done = true,
            }
        }
        Ok(None)
    }

    /// Reads the end of a backup whose pieces have all been taken.
    ///
    /// [`ReplicationError::PagesDamaged`] means that the data is complete, but that the server read damaged pages.
    pub async fn finish(self) -> Result<BackupEnd, ReplicationError> {
        if !self.done {
            return Err(ReplicationError::Unusable);
        }
        const PLACE: &str = "at the end of a base backup";
        let is_old = matches!(self.layout, Layout::Copies(_));
        let connection = self.connection;
        let (lsn, timeline) = parse_position(&connection.read_result_set().await?)?;
        let end = BackupEnd { lsn, timeline };
        match connection.receive(PLACE).await? {
            BackendMessage::CommandComplete(tag) if tag.starts_with(b"BASE_BACKUP") => {}
            // 13.0 ended every replication command so.
            BackendMessage::CommandComplete(tag) if tag.starts_with(b"SELECT") && is_old => {}
            BackendMessage::ErrorResponse(server) => {
                return Err(match connection.fail_command(server).await {
                    ReplicationError::Server { server } if server.sqlstate == sqlstate::DATA_CORRUPTED => {
                        ReplicationError::PagesDamaged { end, server }
                    }
                    error => error,
                });
            }
            other => return Err(unexpected(&other, PLACE)),
        }
        connection.read_ready(PLACE).await?;
        Ok(end)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
