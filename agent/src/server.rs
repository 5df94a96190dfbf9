//! What the agent asks a server by ordinary SQL.
//!
//! tokio-postgres speaks on a connection that was made and logged in as a replication connection is.

use std::path::Path;

use jiff::Timestamp;
use pgark_postgres::Lsn;
use pgark_repository::ServerFacts;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::replication::{ConnectionOptions, ReplicationError, SqlStream};

/// Servers before it send everything.
pub(crate) const FIRST_INCREMENTAL_MAJOR: i64 = 17;

/// A question to the server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No connection for ordinary SQL.
    #[error("cannot open an ordinary connection to database {database:?} as {user:?}")]
    Connect {
        /// The database of the connection string.
        database: String,
        /// The role.
        user: String,
        /// The reason.
        source: ReplicationError,
    },
    /// The connection was made, and then did not answer.
    #[error("the ordinary connection does not speak PostgreSQL's protocol")]
    Protocol(#[source] tokio_postgres::Error),
    /// A query failed.
    #[error("cannot ask the server for {what}")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// The reason.
        source: tokio_postgres::Error,
    },
    /// An answer makes no sense.
    #[error("the server's answer for {what} is `{answer}`")]
    Answer {
        /// What was asked for.
        what: &'static str,
        /// The answer.
        answer: String,
    },
}

/// How a server archives its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archiving {
    /// `archive_mode` is off: nobody delivers segments.
    Off,
    /// It is on. A standby shares the setting with its primary, which then delivers segments.
    On,
}

/// A replication slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotState {
    pub(crate) is_physical: bool,
    /// The server has removed WAL that it should have held.
    pub(crate) is_lost: bool,
    /// From where on WAL is held.
    pub(crate) restart_lsn: Option<Lsn>,
}

/// A connection for ordinary SQL.
pub(crate) struct Server {
    client: Client,
}

impl Server {
    pub(crate) async fn connect(options: &ConnectionOptions) -> Result<Self, ServerError> {
        let stream = SqlStream::connect(options).await.map_err(|source| ServerError::Connect {
            database: options.database.clone(),
            user: options.user.clone(),
            source,
        })?;
        let (client, connection) = Config::new()
            .user(&options.user)
            .dbname(&options.database)
            .connect_raw(stream, NoTls)
            .await
            .map_err(ServerError::Protocol)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the ordinary connection ended");
            }
        });
        Ok(Self { client })
    }

    /// The server's clock.
    pub(crate) async fn clock(&self) -> Result<Timestamp, ServerError> {
        let what = "its clock";
        let microseconds: i64 =
            self.one(what, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?;
        Timestamp::from_microsecond(microseconds)
            .map_err(|_| ServerError::Answer { what, answer: microseconds.to_string() })
    }

    /// What the server says of a replication slot; nothing when there is none of this name.
    pub(crate) async fn slot(&self, name: &str) -> Result<Option<SlotState>, ServerError> {
        let failed = |source| ServerError::Query { what: "its replication slot", source };
        let query =
            "SELECT slot_type, wal_status, restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1::text";
        let Some(row) = self.client.query_opt(query, &[&name]).await.map_err(failed)? else { return Ok(None) };
        let status: Option<String> = row.try_get(1).map_err(failed)?;
        let restart: Option<String> = row.try_get(2).map_err(failed)?;
        Ok(Some(SlotState {
            is_physical: row.try_get::<_, String>(0).map_err(failed)? == "physical",
            is_lost: status.as_deref() == Some("lost"),
            restart_lsn: restart.and_then(|text| text.parse().ok()),
        }))
    }

    /// Whether somebody receives WAL through the slot.
    pub(crate) async fn is_streaming(&self, slot: &str) -> Result<bool, ServerError> {
        let failed = |source| ServerError::Query { what: "its replication slot", source };
        let query = "SELECT FROM pg_replication_slots WHERE slot_name = $1::text AND active";
        Ok(self.client.query_opt(query, &[&slot]).await.map_err(failed)?.is_some())
    }

    /// The answer to any question, as text.
    pub(crate) async fn rows(&self, what: &'static str, query: &str) -> Result<Vec<SimpleQueryRow>, ServerError> {
        let messages = self.client.simple_query(query).await.map_err(|source| ServerError::Query { what, source })?;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// The first column of the first row; nothing where it is null or not there.
    pub(crate) async fn text(&self, what: &'static str, query: &str) -> Result<Option<String>, ServerError> {
        Ok(self.rows(what, query).await?.first().and_then(|row| row.get(0)).map(str::to_owned))
    }

    pub(crate) async fn number(&self, what: &'static str, query: &str) -> Result<i64, ServerError> {
        let answer = self.text(what, query).await?.unwrap_or_default();
        answer.parse().map_err(|_| ServerError::Answer { what, answer })
    }

    pub(crate) async fn archiving(&self) -> Result<Archiving, ServerError> {
        let mode = self.setting("archive_mode").await?;
        Ok(if mode == "off" { Archiving::Off } else { Archiving::On })
    }

    /// Tablespaces within the data directory (`allow_in_place_tablespaces`), which a server before 16 leaves out of a
    /// base backup as soon as it is asked for the map of tablespaces. Neither it nor its manifest says so.
    pub(crate) async fn tablespaces_left_out(&self, facts: &ServerFacts) -> Result<Option<String>, ServerError> {
        if facts.major() >= 16 {
            return Ok(None);
        }
        let query = "SELECT coalesce(string_agg(spcname::text, ', '), '') FROM pg_tablespace \
                     WHERE pg_tablespace_location(oid) LIKE 'pg_tblspc/%'";
        let names: String = self.one("its tablespaces", query).await?;
        Ok(if names.is_empty() { None } else { Some(names) })
    }

    /// Everything of [`ServerFacts`] that a server knows; the identifier comes from the replication connection.
    pub(crate) async fn facts(
        &self,
        system_identifier: pgark_postgres::SystemIdentifier,
    ) -> Result<ServerFacts, ServerError> {
        let version = self.setting("server_version_num").await?;
        let segment_size = self.setting("wal_segment_size").await?;
        let wal_segment_size = pgark_postgres::SegmentSize::from_setting(&segment_size)
            .map_err(|_| ServerError::Answer { what: "wal_segment_size", answer: segment_size })?;
        let data_directory = self.protected_setting("data_directory").await?;
        let mut files_outside = Vec::new();
        for name in ["config_file", "hba_file", "ident_file"] {
            if let (Some(file), Some(directory)) = (self.protected_setting(name).await?, &data_directory)
                && !Path::new(&file).starts_with(directory)
            {
                files_outside.push(file);
            }
        }
        Ok(ServerFacts {
            system_identifier,
            version_num: version
                .parse()
                .map_err(|_| ServerError::Answer { what: "server_version_num", answer: version })?,
            wal_segment_size: u32::try_from(wal_segment_size.bytes()).unwrap_or(u32::MAX),
            data_directory_mode: self.setting("data_directory_mode").await?,
            data_directory,
            files_outside,
            data_checksums: self.setting("data_checksums").await? == "on",
            standby: self.one("its role", "SELECT pg_is_in_recovery()").await?,
        })
    }

    /// Whether this role can take incremental backups of it; otherwise why not.
    pub(crate) async fn can_send_changes(&self) -> Result<Result<(), String>, ServerError> {
        let version = self.number("its version", "SHOW server_version_num").await?;
        if version / 10_000 < FIRST_INCREMENTAL_MAJOR {
            // Everything is read, and compared here.
            return Ok(Ok(()));
        }
        if self.setting("summarize_wal").await? != "on" {
            return Ok(Err("summarize_wal is off; ALTER SYSTEM SET summarize_wal = on, then reload".to_owned()));
        }
        // The cuts of relations are asked for by it.
        let function = "pg_catalog.pg_wal_summary_contents(bigint, pg_lsn, pg_lsn)";
        let query = format!("SELECT has_function_privilege('{function}', 'execute')");
        if !self.one::<bool>("the right to read WAL summaries", &query).await? {
            return Ok(Err(format!("this role may not call {function}; GRANT EXECUTE ON FUNCTION it to it")));
        }
        Ok(Ok(()))
    }

    async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        what: &'static str,
        query: &str,
    ) -> Result<T, ServerError> {
        let failed = |source| ServerError::Query { what, source };
        let row = self.client.query_one(query, &[]).await.map_err(failed)?;
        row.try_get(0).map_err(failed)
    }

    pub(crate) async fn setting(&self, name: &'static str) -> Result<String, ServerError> {
        self.one(name, &format!("SELECT current_setting('{name}')")).await
    }

    /// A setting that only members of `pg_read_all_settings` see; `None` for others.
    pub(crate) async fn protected_setting(&self, name: &'static str) -> Result<Option<String>, ServerError> {
        match self.setting(name).await {
            Ok(value) => Ok(Some(value)),
            Err(ServerError::Query { source, .. }) if source.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
