//! `BASE_BACKUP` of PostgreSQL 15 and later, as a stream of messages.
//!
//! ```text
//! T D C          start position and timeline
//! T D* C         tablespaces; the last row is the data directory
//! H  d* c        n new archive | d its bytes | m manifest follows | p progress
//! T D C          end position and timeline
//! C "BASE_BACKUP"  Z
//! ```
//!
//! Only the last line means success: damaged pages are reported after everything else has been sent.
//!
//! The server sends 8 KiB at a time, so a fast reader wakes up often: read from a spawned task or on a thread of its
//! own, since waking up across threads costs more than the reading.

use std::fmt;

use bytes::{Buf, Bytes};
use pgark_postgres::{Lsn, TimelineId};

use super::commands::{column, parse_column, timeline_column};
use super::connection::{ReplicationConnection, Row, unexpected};
use super::error::{ReplicationError, sqlstate};
use super::field_reader::FieldReader;
use super::literal;
use super::message::BackendMessage;

const MIN_VERSION: u32 = 150_000;

/// What to ask of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Written into `backup_label`: printable and not empty.
    pub label: String,
    /// Asks for sizes before the start and for progress messages; the server then measures all files first.
    pub progress: bool,
    /// Asks for an immediate checkpoint instead of one that is spread over minutes.
    pub fast_checkpoint: bool,
    /// The server's own limit in KiB a second, 32 to 1048576.
    pub max_rate_kib: Option<u32>,
    /// Asks for `backup_manifest` with CRC-32C checksums.
    pub manifest: bool,
    /// Makes the server wait until its archive has the last segment: forever if `archive_command` is broken.
    pub wait_for_archive: bool,
    /// Asks for `tablespace_map` in place of symbolic links.
    pub tablespace_map: bool,
    /// Makes the server check the pages that it reads, where the cluster has data checksums.
    pub verify_checksums: bool,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        Self {
            label: "pgark".to_owned(),
            progress: true,
            fast_checkpoint: false,
            max_rate_kib: None,
            manifest: true,
            wait_for_archive: false,
            tablespace_map: true,
            verify_checksums: true,
        }
    }
}

impl BaseBackupOptions {
    fn command(&self) -> Result<String, ReplicationError> {
        let mut command = format!("BASE_BACKUP (LABEL {}", literal::label(&self.label)?);
        command.push_str(if self.fast_checkpoint { ", CHECKPOINT 'fast'" } else { ", CHECKPOINT 'spread'" });
        for (name, value) in [
            ("PROGRESS", self.progress),
            ("WAIT", self.wait_for_archive),
            ("TABLESPACE_MAP", self.tablespace_map),
            ("VERIFY_CHECKSUMS", self.verify_checksums),
        ] {
            command.push_str(&format!(", {name} {value}"));
        }
        if let Some(rate) = self.max_rate_kib {
            command.push_str(&format!(", MAX_RATE {rate}"));
        }
        if self.manifest {
            command.push_str(", MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'");
        }
        command.push(')');
        Ok(command)
    }
}

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

/// A tablespace other than the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Names its archive, `<oid>.tar`.
    pub oid: u32,
    /// Its path on the server in the server's own bytes; relative for one that lies inside `pg_tblspc`.
    pub location: Bytes,
    /// Its size where progress was asked for.
    pub size_kib: Option<u64>,
}

/// Which archive follows. The server's text is checked into this, never used as a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveName {
    /// `base.tar`, the data directory, sent last.
    Base,
    /// `<oid>.tar`.
    Tablespace(u32),
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base.tar"),
            Self::Tablespace(oid) => write!(f, "{oid}.tar"),
        }
    }
}

impl ArchiveName {
    fn parse(name: &[u8]) -> Option<Self> {
        let stem = str::from_utf8(name).ok()?.strip_suffix(".tar")?;
        if stem == "base" {
            return Some(Self::Base);
        }
        let digits = stem.bytes().all(|byte| byte.is_ascii_digit()) && !stem.starts_with('0');
        if digits { stem.parse().ok().map(Self::Tablespace) } else { None }
    }
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
    tablespaces: Vec<Tablespace>,
    data_directory_size_kib: Option<u64>,
    expects_manifest: bool,
    /// Archives that have begun.
    seen: Vec<ArchiveName>,
    section: Section,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    BeforeFirst,
    Archive,
    Manifest,
    Done,
}

impl ReplicationConnection {
    /// Starts a base backup and returns when the server begins to send, which with a spread checkpoint takes minutes.
    pub async fn base_backup(&mut self, options: &BaseBackupOptions) -> Result<BaseBackupStream<'_>, ReplicationError> {
        let command = options.command()?;
        let version = self.server_version_num().await?;
        if version < MIN_VERSION {
            return Err(ReplicationError::ServerTooOld {
                found: version,
                needs: "base backups are taken of PostgreSQL 15 and later; 13 and 14 come in a later release",
            });
        }
        self.start_command(&command)?;
        let (lsn, timeline) = parse_position(&self.read_result_set().await?)?;
        let rows = self.read_result_set().await?;
        let (tablespaces, data_directory_size_kib) = parse_tablespaces(&rows)?;
        match self.receive("before the backup's data").await? {
            BackendMessage::CopyOutResponse => {}
            BackendMessage::ErrorResponse(server) => return Err(self.fail_command(server).await),
            other => return Err(unexpected(&other, "before the backup's data")),
        }
        Ok(BaseBackupStream {
            connection: self,
            start: BackupStart { lsn, timeline },
            tablespaces,
            data_directory_size_kib,
            expects_manifest: options.manifest,
            seen: Vec::new(),
            section: Section::BeforeFirst,
        })
    }
}

impl BaseBackupStream<'_> {
    /// Where the backup starts.
    pub fn start(&self) -> BackupStart {
        self.start
    }

    /// The tablespaces, without the data directory.
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// The server's estimate for everything, where progress was asked for.
    pub fn estimated_size_kib(&self) -> Option<u64> {
        let tablespaces = self.tablespaces.iter().map(|tablespace| tablespace.size_kib);
        tablespaces.fold(self.data_directory_size_kib, |sum, size| sum?.checked_add(size?))
    }

    /// Waits for the next piece; nothing after the last. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<BackupMessage>, ReplicationError> {
        if self.section == Section::Done {
            return Ok(None);
        }
        match self.connection.receive("in the middle of a base backup").await? {
            BackendMessage::CopyData(data) => self.interpret(data).map(Some),
            BackendMessage::CopyDone => {
                self.check_complete()?;
                self.section = Section::Done;
                Ok(None)
            }
            BackendMessage::ErrorResponse(server) => Err(self.connection.fail_command(server).await),
            other => Err(unexpected(&other, "in a base backup")),
        }
    }

    fn interpret(&mut self, mut data: Bytes) -> Result<BackupMessage, ReplicationError> {
        match data.try_get_u8() {
            Ok(b'd') => match self.section {
                Section::Archive => Ok(BackupMessage::Data(data)),
                Section::Manifest => Ok(BackupMessage::ManifestData(data)),
                Section::BeforeFirst | Section::Done => Err(ReplicationError::violation("data before an archive")),
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
        let known = match name {
            ArchiveName::Base => true,
            ArchiveName::Tablespace(oid) => self.tablespaces.iter().any(|tablespace| tablespace.oid == oid),
        };
        if !known {
            return refuse("is of no tablespace that the server listed");
        }
        self.seen.push(name);
        self.section = Section::Archive;
        // Copied, because a slice would keep the whole read buffer for as long as the archive lasts.
        Ok(BackupMessage::Archive { name, tablespace_path: Bytes::copy_from_slice(&tablespace_path) })
    }

    fn check_complete(&self) -> Result<(), ReplicationError> {
        let expected = self.tablespaces.iter().map(|tablespace| ArchiveName::Tablespace(tablespace.oid));
        for name in expected.chain([ArchiveName::Base]) {
            if !self.seen.contains(&name) {
                return Err(ReplicationError::violation(format!("the backup ended without {name}")));
            }
        }
        if self.expects_manifest && self.section != Section::Manifest {
            return Err(ReplicationError::violation("the backup ended without a manifest"));
        }
        Ok(())
    }

    /// Reads the end of a backup whose pieces have all been taken.
    ///
    /// [`ReplicationError::PagesDamaged`] means that the data is complete, but that the server read damaged pages.
    pub async fn finish(self) -> Result<BackupEnd, ReplicationError> {
        if self.section != Section::Done {
            return Err(ReplicationError::Unusable);
        }
        const PLACE: &str = "at the end of a base backup";
        let connection = self.connection;
        let (lsn, timeline) = parse_position(&connection.read_result_set().await?)?;
        let end = BackupEnd { lsn, timeline };
        match connection.receive(PLACE).await? {
            BackendMessage::CommandComplete(tag) if tag.starts_with(b"BASE_BACKUP") => {}
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

fn parse_position(rows: &[Row]) -> Result<(Lsn, TimelineId), ReplicationError> {
    let [row] = rows else {
        return Err(ReplicationError::violation(format!("expected one row with a position, got {}", rows.len())));
    };
    Ok((parse_column(row, 0, "a WAL position")?, timeline_column(row, 1)?))
}

fn parse_tablespaces(rows: &[Row]) -> Result<(Vec<Tablespace>, Option<u64>), ReplicationError> {
    let mut tablespaces = Vec::with_capacity(rows.len());
    let mut data_directory = None;
    for row in rows {
        let size_kib = match row.get(2) {
            Some(Some(_)) => Some(parse_column(row, 2, "a size")?),
            _ => None,
        };
        if let Some(None) = row.first() {
            if data_directory.replace(size_kib).is_some() {
                return Err(ReplicationError::violation("the data directory is listed twice"));
            }
            continue;
        }
        tablespaces.push(Tablespace {
            oid: parse_column(row, 0, "the oid of a tablespace")?,
            location: Bytes::copy_from_slice(column(row, 1, "the location of a tablespace")?),
            size_kib,
        });
    }
    match data_directory {
        Some(size_kib) => Ok((tablespaces, size_kib)),
        None => Err(ReplicationError::violation("the data directory is not listed")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::super::scripted::Script;
    use super::*;

    #[test]
    fn the_command_names_every_option() {
        let options = BaseBackupOptions { label: "it's".to_owned(), max_rate_kib: Some(32), ..Default::default() };
        assert_eq!(
            options.command().unwrap(),
            "BASE_BACKUP (LABEL 'it''s', CHECKPOINT 'spread', PROGRESS true, WAIT false, TABLESPACE_MAP true, \
             VERIFY_CHECKSUMS true, MAX_RATE 32, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        );
    }

    #[test]
    fn a11_archive_names_that_no_server_gives_are_refused() {
        assert_eq!(ArchiveName::parse(b"base.tar"), Some(ArchiveName::Base));
        assert_eq!(ArchiveName::parse(b"16384.tar"), Some(ArchiveName::Tablespace(16384)));
        for bad in [
            &b"../x.tar"[..],
            b"base.tar\n",
            b"/base.tar",
            b"base.tar.gz",
            b".tar",
            b"",
            b"016384.tar",
            b"+1.tar",
            b"4294967296.tar",
            b"Base.tar",
            b"\xff.tar",
            b"1/../2.tar",
        ] {
            assert_eq!(ArchiveName::parse(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn the_data_directory_must_be_listed_once() {
        let data_directory: Row = vec![None, None, Some(Bytes::from_static(b"100"))];
        let other: Row = vec![
            Some(Bytes::from_static(b"16384")),
            Some(Bytes::from_static(b"/t\xff")),
            Some(Bytes::from_static(b"7")),
        ];
        let (tablespaces, size) = parse_tablespaces(&[other.clone(), data_directory.clone()]).unwrap();
        assert_eq!(tablespaces[0].location.as_ref(), b"/t\xff");
        assert_eq!(size, Some(100));
        parse_tablespaces(&[other]).unwrap_err();
        parse_tablespaces(&[data_directory.clone(), data_directory]).unwrap_err();
    }

    /// A backup of one tablespace and the data directory, as a server sends it.
    fn backup() -> Script {
        let script = Script::default().row(&["0/2000028", "1"]).complete("SELECT");
        let script = script
            .row(&["16384", "/space", "7"])
            .message(b'D', b"\0\x03\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\x03100")
            .complete("SELECT");
        let pieces: [&[u8]; 8] = [
            b"n16384.tar\0/space\0",
            b"dtar of the tablespace",
            b"p\0\0\0\0\0\0\x01\0",
            b"nbase.tar\0\0",
            b"dtar of ",
            b"dthe base",
            b"m",
            b"dmanifest",
        ];
        let script = pieces.iter().fold(script.message(b'H', &[0, 0, 0]), |script, piece| script.message(b'd', piece));
        let script = script.message(b'c', b"").row(&["0/2000100", "1"]);
        script.complete("SELECT").complete("BASE_BACKUP").ready()
    }

    async fn take(script: Script) -> Result<(Vec<BackupMessage>, BackupEnd), ReplicationError> {
        let (mut connection, _server) = script.connect().await;
        let mut stream = connection.base_backup(&BaseBackupOptions::default()).await?;
        let mut messages = Vec::new();
        while let Some(message) = stream.next().await? {
            messages.push(message);
        }
        Ok((messages, stream.finish().await?))
    }

    #[tokio::test]
    async fn a05_noise_between_all_messages_changes_nothing() {
        let (messages, end) = take(backup()).await.unwrap();
        assert_eq!(messages.len(), 8);
        assert_eq!(messages[2], BackupMessage::Progress(256));
        assert_eq!(messages[7], BackupMessage::ManifestData(Bytes::from_static(b"manifest")));
        assert_eq!(end.lsn, Lsn::new(0x200_0100));
        assert_eq!(take(backup().noisy()).await.unwrap(), (messages, end));
    }

    #[tokio::test]
    async fn a01_an_end_at_any_message_is_a_failure() {
        for count in 0..backup().len() {
            let error = take(backup().cut_after(count)).await.unwrap_err();
            assert!(matches!(error, ReplicationError::ConnectionClosed { .. }), "after {count}: {error}");
        }
    }

    #[tokio::test]
    async fn an_error_at_any_message_is_that_error_and_leaves_the_connection_usable() {
        for count in 0..backup().len() {
            let script = backup().cut_after(count).error("55000").ready();
            let (mut connection, _server) = script.row(&["x"]).complete("SHOW").ready().connect().await;
            let mut result = Ok(());
            match connection.base_backup(&BaseBackupOptions::default()).await {
                Err(error) => result = Err(error),
                Ok(mut stream) => {
                    while result.is_ok() {
                        match stream.next().await {
                            Ok(Some(_)) => {}
                            Ok(None) => {
                                result = stream.finish().await.map(drop);
                                break;
                            }
                            Err(error) => result = Err(error),
                        }
                    }
                }
            }
            assert_eq!(result.unwrap_err().sqlstate(), Some("55000"), "after {count}");
            assert_eq!(connection.show("a").await.unwrap(), "x", "after {count}");
        }
    }

    #[tokio::test]
    async fn a04_only_an_error_after_the_end_row_says_that_the_data_is_complete() {
        let before_ready = backup().cut_after(backup().len() - 2);
        let error = take(before_ready.error("XX001").ready()).await.unwrap_err();
        assert!(
            matches!(error, ReplicationError::PagesDamaged { end, .. } if end.lsn == Lsn::new(0x200_0100)),
            "{error}"
        );
        let in_the_middle = backup().cut_after(10);
        let error = take(in_the_middle.error("XX001").ready()).await.unwrap_err();
        assert!(matches!(error, ReplicationError::Server { .. }), "{error}");
    }

    #[tokio::test]
    async fn a11_pieces_that_no_server_sends_are_refused() {
        let start = backup().cut_after(8);
        let begun = start.clone().message(b'd', b"nbase.tar\0\0");
        let manifest = begun.clone().message(b'd', b"m");
        for (script, piece) in [
            (&start, &b"x"[..]),
            (&start, b""),
            (&start, b"ddata before an archive"),
            (&start, b"n../x.tar\0\0"),
            (&start, b"nbase.tar\n\0\0"),
            (&start, b"n99999.tar\0/not/listed\0"),
            (&start, b"nbase.tar"),
            (&start, b"nbase.tar\0"),
            (&start, b"p123"),
            (&begun, b"nbase.tar\0\0"),
            (&manifest, b"m"),
            (&manifest, b"n16384.tar\0\0"),
        ] {
            let error = take(script.clone().message(b'd', piece)).await.unwrap_err();
            assert!(matches!(error, ReplicationError::ProtocolViolation(_)), "{}: {error}", piece.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_backup_that_lacks_an_archive_or_its_manifest_is_refused() {
        let start = backup().cut_after(8);
        let base = start.clone().message(b'd', b"nbase.tar\0\0");
        let both = base.clone().message(b'd', b"n16384.tar\0\0");
        for script in [start, base, both] {
            let error = take(script.message(b'c', b"")).await.unwrap_err();
            assert!(error.to_string().contains("ended without"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_left_makes_the_connection_refuse_more() {
        let (mut connection, _server) = backup().connect().await;
        drop(connection.base_backup(&BaseBackupOptions::default()).await.unwrap());
        assert!(matches!(connection.show("a").await, Err(ReplicationError::Unusable)));
    }

    proptest! {
        #[test]
        fn a11_an_archive_name_that_is_read_prints_as_it_came(name in "[a-z0-9./]{0,14}") {
            if let Some(parsed) = ArchiveName::parse(name.as_bytes()) {
                prop_assert_eq!(parsed.to_string(), name);
            }
        }
    }
}
