//! The short commands of a replication session: who are you, show, slots, timeline histories.
//!
//! Columns are bytes; each is checked into its type here. Keywords are upper-case because the replication scanner
//! takes anything else for SQL.

use bytes::Bytes;
use pgark_postgres::{Lsn, SystemIdentifier, TimelineId, is_known_major_version};

use super::connection::{ReplicationConnection, Row};
use super::error::{ReplicationError, sqlstate};
use super::literal;

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentification {
    /// Which cluster this is, from `initdb` on.
    pub system_identifier: SystemIdentifier,
    /// The timeline that it writes, or on a standby replays.
    pub timeline: TimelineId,
    /// What a primary has flushed, or a standby replayed or received.
    pub position: Lsn,
}

/// The file that tells where a timeline branched off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistoryFile {
    /// Its name, checked against the timeline.
    pub name: String,
    /// Its content, byte for byte.
    pub content: Bytes,
}

/// How long a new replication slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// Until it is dropped.
    Permanent,
    /// Until this connection ends, or a command on it fails.
    Temporary,
}

impl ReplicationConnection {
    /// Asks which cluster this is and where it stands.
    pub async fn identify_system(&mut self) -> Result<SystemIdentification, ReplicationError> {
        let row = self.query_one("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentification {
            system_identifier: parse_column(&row, 0, "the system identifier")?,
            timeline: timeline_column(&row, 1)?,
            position: parse_column(&row, 2, "a WAL position")?,
        })
    }

    /// Reads a server setting as text, with its unit.
    pub async fn show(&mut self, name: &str) -> Result<String, ReplicationError> {
        let command = format!("SHOW {}", literal::setting_name(name)?);
        let row = self.query_one(&command).await?;
        Ok(text_column(&row, 0, name)?.to_owned())
    }

    /// Reads a server setting that may hold any bytes, such as `data_directory`.
    pub async fn show_bytes(&mut self, name: &str) -> Result<Bytes, ReplicationError> {
        let command = format!("SHOW {}", literal::setting_name(name)?);
        let row = self.query_one(&command).await?;
        column(&row, 0, name).map(Bytes::copy_from_slice)
    }

    /// The server's version as a number, `150018` for 15.18. Asked once.
    pub async fn server_version_num(&mut self) -> Result<u32, ReplicationError> {
        if let Some(version) = self.version {
            return Ok(version);
        }
        let row = self.query_one("SHOW server_version_num").await?;
        let version = parse_column(&row, 0, "server_version_num")?;
        self.version = Some(version);
        Ok(version)
    }

    /// The version of a server whose formats are known; every other is refused.
    pub async fn known_server_version(&mut self) -> Result<u32, ReplicationError> {
        let version = self.server_version_num().await?;
        // Nine and before counted otherwise, and are far below.
        let major = version / 10_000;
        if is_known_major_version(major) { Ok(version) } else { Err(ReplicationError::UnknownVersion { major }) }
    }

    /// Fetches the history file of a timeline. Timeline 1 has none, and one that the server does not have is an error
    /// for which [`ReplicationError::is_missing_file`] holds.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<TimelineHistoryFile, ReplicationError> {
        let row = self.query_one(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let name = text_column(&row, 0, "the name of a history file")?;
        let expected = format!("{}.history", timeline.hex());
        if name != expected {
            return Err(ReplicationError::violation(format!(
                "asked for history file {expected}, got {}",
                name.escape_debug()
            )));
        }
        let content = Bytes::copy_from_slice(column(&row, 1, "a history file")?);
        Ok(TimelineHistoryFile { name: expected, content })
    }

    /// Creates a physical slot. With `reserve_wal` the server keeps WAL for it from now on, without it only from the
    /// first position that is reported through it.
    pub async fn create_physical_slot(
        &mut self,
        name: &str,
        kind: SlotKind,
        reserve_wal: bool,
    ) -> Result<(), ReplicationError> {
        // The old grammar, which every version from 13 to 18 understands.
        let mut command = format!("CREATE_REPLICATION_SLOT {}", literal::slot_name(name)?);
        if kind == SlotKind::Temporary {
            command.push_str(" TEMPORARY");
        }
        command.push_str(" PHYSICAL");
        if reserve_wal {
            command.push_str(" RESERVE_WAL");
        }
        // The row's position is 0/0 for a physical slot even when it reserves WAL, so nothing of it is returned.
        match self.query_one(&command).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain_missing_slot(error).await),
        }
    }

    /// Says that no slot is free where that is why none was made: all are taken, or there are none.
    async fn explain_missing_slot(&mut self, error: ReplicationError) -> ReplicationError {
        match error {
            ReplicationError::Server { server }
                if [sqlstate::LIMIT_EXCEEDED, sqlstate::NOT_IN_PREREQUISITE_STATE]
                    .contains(&server.sqlstate.as_str()) =>
            {
                let limit = self.show("max_replication_slots").await.ok().and_then(|limit| limit.parse().ok());
                ReplicationError::NoSlotFree { limit: limit.unwrap_or_default(), server }
            }
            other => other,
        }
    }

    /// Drops a slot that nobody uses.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        let command = format!("DROP_REPLICATION_SLOT {}", literal::slot_name(name)?);
        self.query(&command).await.map(drop)
    }

    async fn query_one(&mut self, command: &str) -> Result<Row, ReplicationError> {
        let rows = self.query(command).await?;
        let count = rows.len();
        match <[Row; 1]>::try_from(rows) {
            Ok([row]) => Ok(row),
            Err(_) => Err(ReplicationError::violation(format!("{command}: expected one row, got {count}"))),
        }
    }
}

/// The bytes of a column that must be there.
pub(crate) fn column<'a>(row: &'a Row, index: usize, what: &str) -> Result<&'a [u8], ReplicationError> {
    match row.get(index) {
        Some(Some(value)) => Ok(value),
        Some(None) => Err(ReplicationError::violation(format!("expected {what}, got NULL"))),
        None => Err(ReplicationError::violation(format!("expected {what}, got only {} columns", row.len()))),
    }
}

pub(crate) fn text_column<'a>(row: &'a Row, index: usize, what: &str) -> Result<&'a str, ReplicationError> {
    let value = column(row, index, what)?;
    str::from_utf8(value).map_err(|_| {
        ReplicationError::violation(format!("expected {what}, got {:?}", value.escape_ascii().to_string()))
    })
}

/// A column that is written as text in the form that its type reads.
pub(crate) fn parse_column<T: std::str::FromStr>(row: &Row, index: usize, what: &str) -> Result<T, ReplicationError> {
    let text = text_column(row, index, what)?;
    text.parse().map_err(|_| ReplicationError::violation(format!("expected {what}, got {text:?}")))
}

/// A timeline: `int4` up to 15 and `int8` from 16 on, but always decimal text.
pub(crate) fn timeline_column(row: &Row, index: usize) -> Result<TimelineId, ReplicationError> {
    let number: u32 = parse_column(row, index, "a timeline")?;
    TimelineId::new(number).ok_or_else(|| ReplicationError::violation("expected a timeline, got 0"))
}
