//! The data of PostgreSQL 13 and 14: a COPY for each row of the list of tablespaces, in the order of the rows, and one
//! more for the manifest. Nothing in them says what they are or how far the server is, so both are counted here.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::connection::unexpected;
use super::super::error::ReplicationError;
use super::super::message::BackendMessage;
use super::header::TablespaceList;
use super::{ArchiveName, BackupMessage, Step};

/// How many bytes of archives make up one report of progress.
const PROGRESS_STEP: u64 = 1 << 20;

/// Reads the COPYs in their order.
#[derive(Debug)]
pub(super) struct CopyStreams {
    to_come: VecDeque<Stream>,
    /// The COPY that is under way.
    current: Option<Section>,
    /// Bytes of archives so far, and how many of them have been reported.
    received: u64,
    reported: u64,
}

#[derive(Debug)]
enum Stream {
    Archive { name: ArchiveName, tablespace_path: Bytes },
    Manifest,
}

#[derive(Debug, Clone, Copy)]
enum Section {
    Archive,
    Manifest,
}

impl CopyStreams {
    pub(super) fn new(list: &TablespaceList, expects_manifest: bool) -> Self {
        let archives = list.archives.iter().map(|&name| Stream::Archive { name, tablespace_path: list.location(name) });
        let to_come = archives.chain(expects_manifest.then_some(Stream::Manifest)).collect();
        Self { to_come, current: None, received: 0, reported: 0 }
    }

    /// A report that is due.
    pub(super) fn progress(&mut self) -> Option<BackupMessage> {
        if self.received - self.reported < PROGRESS_STEP {
            return None;
        }
        self.reported = self.received;
        Some(BackupMessage::Progress(self.received))
    }

    pub(super) fn take(&mut self, message: BackendMessage) -> Result<Step, ReplicationError> {
        match (message, self.current) {
            (BackendMessage::CopyOutResponse, None) => self.begin(),
            (BackendMessage::CopyData(data), Some(Section::Archive)) => {
                self.received = self.received.saturating_add(data.len() as u64);
                Ok(Step::Message(BackupMessage::Data(data)))
            }
            (BackendMessage::CopyData(data), Some(Section::Manifest)) => {
                Ok(Step::Message(BackupMessage::ManifestData(data)))
            }
            (BackendMessage::CopyDone, Some(_)) => {
                self.current = None;
                Ok(if self.to_come.is_empty() { Step::Done } else { Step::Nothing })
            }
            (message, None) => Err(unexpected(&message, self.awaited())),
            (message, Some(_)) => Err(unexpected(&message, "in a base backup")),
        }
    }

    fn begin(&mut self) -> Result<Step, ReplicationError> {
        let (section, message) = match self.to_come.pop_front() {
            Some(Stream::Archive { name, tablespace_path }) => {
                (Section::Archive, BackupMessage::Archive { name, tablespace_path })
            }
            Some(Stream::Manifest) => (Section::Manifest, BackupMessage::ManifestStart),
            None => return Err(ReplicationError::violation("a COPY after the last one of a base backup")),
        };
        self.current = Some(section);
        Ok(Step::Message(message))
    }

    fn awaited(&self) -> &'static str {
        match self.to_come.front() {
            Some(Stream::Manifest) => "in place of the backup's manifest",
            _ => "in place of an archive of the backup",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn progress_is_counted_over_all_archives_and_without_the_manifest() {
        let rows = [vec![Some(Bytes::from("1")), Some(Bytes::from("/space")), None], vec![None, None, None]];
        let mut copies = CopyStreams::new(&TablespaceList::parse(&rows).unwrap(), true);
        let mut reports = Vec::new();
        for pieces in [2, 2, 10] {
            copies.take(BackendMessage::CopyOutResponse).unwrap();
            for _ in 0..pieces {
                copies.take(BackendMessage::CopyData(vec![0; 600 << 10].into())).unwrap();
                reports.extend(copies.progress());
            }
            copies.take(BackendMessage::CopyDone).unwrap();
        }
        assert_eq!(reports, [BackupMessage::Progress(1200 << 10), BackupMessage::Progress(2400 << 10)]);
    }
}
