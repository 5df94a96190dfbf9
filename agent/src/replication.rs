//! A client of PostgreSQL's streaming replication protocol.
//!
//! It speaks what tokio-postgres cannot: a physical replication session (`replication=true`), `BASE_BACKUP` and
//! `START_REPLICATION`. Messages are framed here, with a bound on every length, because notices and parameter reports
//! may stand between any two messages and because CopyBoth has no place in postgres-protocol. Two rules hold
//! everywhere: text that comes from the server is bytes until it is checked, and the end of the connection before
//! ReadyForQuery is a failure, never the end of the data.

mod authentication;
mod base_backup;
mod commands;
mod connection;
mod connection_string;
mod damaged_files;
mod dial;
mod error;
mod field_reader;
mod literal;
mod message;
mod options;
mod password_file;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod scripted;
mod sql_stream;
mod tls;
mod transport;
mod upload_manifest;
mod wal_stream;

pub use base_backup::{
    ArchiveName, BackupEnd, BackupMessage, BackupStart, BaseBackupOptions, BaseBackupStream, Tablespace,
};
pub use commands::{SlotKind, SystemIdentification, TimelineHistoryFile};
pub use connection::ReplicationConnection;
pub use connection_string::ConnectionStringError;
pub use damaged_files::DamagedFiles;
pub(crate) use error::sqlstate;
pub use error::{ReplicationError, ServerError};
pub use literal::LiteralError;
pub use options::{
    AllowedLogins, ChannelBindingMode, ClientCertificateMode, ConnectionOptions, Endpoint, FilePath, Host, Keepalive,
    LoginMethod, Password, RootCertificates, SslMode, SslNegotiation, TargetSession, TlsOptions, TlsVersion,
    os_user_name,
};
pub(crate) use sql_stream::SqlStream;
pub use tls::{TlsError, TlsSettingsError};
pub use wal_stream::{TimelineEnd, WalMessage, WalStream};
