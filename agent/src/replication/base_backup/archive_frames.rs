//! The data of PostgreSQL 15 and later: one COPY, in which the first byte of each piece says what it is.
//!
//! ```text
//! n   a new archive: name \0 path of the tablespace \0
//! d   its bytes, or after `m` those of the manifest
//! m   the manifest begins
//! p   how many bytes the server has processed, 8 bytes
//! ```

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};

use super::super::connection::unexpected;
use super::super::error::ReplicationError;
use super::super::field_reader::FieldReader;
use super::super::message::BackendMessage;
use super::{ArchiveName, BackupMessage, Step};

/// Reads the pieces in their order.
#[derive(Debug)]
pub(super) struct ArchiveFrames {
    /// Archives that have not begun yet.
    missing: BTreeSet<ArchiveName>,
    seen: BTreeSet<ArchiveName>,
    expects_manifest: bool,
    section: Section,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    BeforeCopy,
    BeforeFirst,
    Archive,
    Manifest,
}

impl ArchiveFrames {
    pub(super) fn new(archives: &[ArchiveName], expects_manifest: bool) -> Self {
        let missing = archives.iter().copied().collect();
        Self { missing, seen: BTreeSet::new(), expects_manifest, section: Section::BeforeCopy }
    }

    pub(super) fn take(&mut self, message: BackendMessage) -> Result<Step, ReplicationError> {
        match (message, self.section) {
            (BackendMessage::CopyOutResponse, Section::BeforeCopy) => {
                self.section = Section::BeforeFirst;
                Ok(Step::Nothing)
            }
            (message, Section::BeforeCopy) => Err(unexpected(&message, "before the backup's data")),
            (BackendMessage::CopyData(data), _) => self.interpret(data).map(Step::Message),
            (BackendMessage::CopyDone, _) => self.check_complete().map(|()| Step::Done),
            (message, _) => Err(unexpected(&message, "in a base backup")),
        }
    }

    fn interpret(&mut self, mut data: Bytes) -> Result<BackupMessage, ReplicationError> {
        match data.try_get_u8() {
            Ok(b'd') => match self.section {
                Section::Archive => Ok(BackupMessage::Data(data)),
                Section::Manifest => Ok(BackupMessage::ManifestData(data)),
                Section::BeforeCopy | Section::BeforeFirst => {
                    Err(ReplicationError::violation("data before an archive"))
                }
            },
            Ok(b'n') => self.begin_archive(data),
            Ok(b'm') => {
                if self.section == Section::Manifest || !data.is_empty() {
                    return Err(ReplicationError::violation("malformed start of a manifest"));
                }
                self.section = Section::Manifest;
                Ok(BackupMessage::ManifestStart)
            }
            Ok(b'p') if data.len() == 8 => Ok(BackupMessage::Progress(data.get_u64())),
            Ok(b'p') => Err(ReplicationError::violation("malformed progress message")),
            Ok(other) => {
                Err(ReplicationError::violation(format!("unknown piece '{}' of a base backup", other.escape_ascii())))
            }
            Err(_) => Err(ReplicationError::violation("empty piece of a base backup")),
        }
    }

    fn begin_archive(&mut self, data: Bytes) -> Result<BackupMessage, ReplicationError> {
        let mut fields = FieldReader::new(data);
        let (Ok(text), Ok(tablespace_path)) = (fields.text(), fields.text()) else {
            return Err(ReplicationError::violation("malformed start of an archive"));
        };
        let refuse = |why: &str| Err(ReplicationError::violation(format!("archive \"{}\" {why}", text.escape_ascii())));
        let Some(name) = ArchiveName::parse(&text) else {
            return refuse("has a name that no server gives");
        };
        if self.section == Section::Manifest {
            return refuse("begins after the manifest");
        }
        if self.seen.contains(&name) {
            return refuse("is sent twice");
        }
        if !self.missing.remove(&name) {
            return refuse("is of no tablespace that the server listed");
        }
        self.seen.insert(name);
        self.section = Section::Archive;
        // Copied, because a slice would keep the whole read buffer for as long as the archive lasts.
        Ok(BackupMessage::Archive { name, tablespace_path: Bytes::copy_from_slice(&tablespace_path) })
    }

    fn check_complete(&self) -> Result<(), ReplicationError> {
        if let Some(name) = self.missing.first() {
            return Err(ReplicationError::violation(format!("the backup ended without {name}")));
        }
        if self.expects_manifest && self.section != Section::Manifest {
            return Err(ReplicationError::violation("the backup ended without a manifest"));
        }
        Ok(())
    }
}
