//! What can go wrong between pgark and a server, by situation.
//!
//! Every error that the server reports is kept whole with its SQLSTATE. [`ReplicationError::hint`] answers "what mends
//! it?" and [`ReplicationError::is_retryable`] answers "may trying again help?".

mod hint;
mod refusal;

use std::fmt;
use std::io;

use pgark_postgres::KNOWN_MAJOR_VERSIONS;
use thiserror::Error;

use super::base_backup::BackupEnd;
use super::literal::LiteralError;
use super::tls::{TlsError, TlsSettingsError};

/// SQLSTATE codes that this client acts on.
pub(crate) mod sqlstate {
    pub(crate) const INVALID_AUTHORIZATION: &str = "28000";
    pub(crate) const INVALID_PASSWORD: &str = "28P01";
    pub(crate) const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub(crate) const UNDEFINED_OBJECT: &str = "42704";
    pub(crate) const TOO_MANY_CONNECTIONS: &str = "53300";
    pub(crate) const LIMIT_EXCEEDED: &str = "53400";
    pub(crate) const NOT_IN_PREREQUISITE_STATE: &str = "55000";
    pub(crate) const QUERY_CANCELED: &str = "57014";
    pub(crate) const ADMIN_SHUTDOWN: &str = "57P01";
    pub(crate) const CRASH_SHUTDOWN: &str = "57P02";
    pub(crate) const CANNOT_CONNECT_NOW: &str = "57P03";
    pub(crate) const UNDEFINED_FILE: &str = "58P01";
    pub(crate) const DATA_CORRUPTED: &str = "XX001";
}

/// An error or a notice as the server sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Error)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, or a notice's level, never translated.
    pub severity: String,
    /// The five-character code, which stays the same in every language and version.
    pub sqlstate: String,
    /// The sentence, perhaps translated.
    pub message: String,
    /// More about it, or empty.
    pub detail: String,
    /// The server's advice, or empty.
    pub hint: String,
    /// The server function that reported it: tells apart situations that share a code, in any language.
    pub(crate) routine: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.severity, self.sqlstate, self.message)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        if !self.hint.is_empty() {
            write!(f, " (server's hint: {})", self.hint)?;
        }
        Ok(())
    }
}

impl ServerError {
    /// Tells whether the server ended the session with this error.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

/// A replication session could not be started, or did not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReplicationError {
    /// Nothing answered at this address.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Host and port, or the path of the socket.
        endpoint: String,
        /// What the system said.
        source: io::Error,
    },

    /// The address did not answer in time.
    #[error("no answer from {endpoint} within {seconds} s")]
    ConnectTimeout {
        /// Host and port, or the path of the socket.
        endpoint: String,
        /// The limit, from `connect_timeout`.
        seconds: u64,
    },

    /// The server is there, but is starting, stopping or recovering.
    #[error("{endpoint} does not accept connections now")]
    NotReady {
        /// Host and port, or the path of the socket.
        endpoint: String,
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// The address answers, and is another kind of server than is wanted.
    #[error("{endpoint} is not what target_session_attrs={target} asks for")]
    WrongTarget {
        /// Host and port, or the path of the socket.
        endpoint: String,
        /// What was asked for.
        target: &'static str,
    },

    /// Somebody else listens at the socket.
    #[error("the server at {endpoint} runs as {owner}, not as {wanted} (requirepeer)")]
    WrongPeer {
        /// The path of the socket.
        endpoint: String,
        /// As whom it runs.
        owner: String,
        /// As whom it should.
        wanted: String,
    },

    /// The files for TLS cannot be used.
    #[error(transparent)]
    TlsSettings(#[from] TlsSettingsError),

    /// The server has no TLS.
    #[error("{endpoint} does not offer TLS, which sslmode={mode} demands")]
    TlsNotOffered {
        /// Host and port.
        endpoint: String,
        /// The mode as it was configured.
        mode: &'static str,
    },

    /// TLS with the server did not come about, or it is not the right server.
    #[error("cannot use TLS with {endpoint}")]
    Tls {
        /// Host and port.
        endpoint: String,
        /// Why.
        source: TlsError,
    },

    /// The server does not accept this user with this password.
    #[error("the server refused to log in user {user:?}")]
    AuthenticationFailed {
        /// The user of the connection string.
        user: String,
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// The server asks for a kind of login that pgark does not have, or does not do here.
    #[error("cannot log in as {user:?}: the server asks for {method}")]
    LoginMethod {
        /// The user of the connection string.
        user: String,
        /// What the server asks for.
        method: String,
    },

    /// The server asks for a kind of login that the connection string forbids.
    #[error("the server lets {user:?} log in {how}, which {keyword} forbids")]
    LoginForbidden {
        /// The user of the connection string.
        user: String,
        /// How.
        how: &'static str,
        /// What forbids it.
        keyword: &'static str,
    },

    /// The server wants to see a certificate of the client's.
    #[error("the server wants a client certificate of {user:?}")]
    ClientCertificateMissing {
        /// The user of the connection string.
        user: String,
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// This side refused to go on with the login: whoever answers is not the server that it should be.
    #[error("cannot log in as {user:?}: {reason}")]
    AuthenticationRefused {
        /// The user of the connection string.
        user: String,
        /// Why.
        reason: String,
    },

    /// The server wants a password and none is configured.
    #[error("the server asks for a password of {user:?} and none is configured")]
    PasswordMissing {
        /// The user of the connection string.
        user: String,
    },

    /// No line of `pg_hba.conf` lets this user in from here.
    #[error("pg_hba.conf does not allow this connection of {user:?}")]
    NotInPgHba {
        /// The user of the connection string.
        user: String,
        /// The line that would.
        line: String,
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// The role lacks the REPLICATION attribute.
    #[error("role {user:?} may not open replication connections")]
    MissingReplicationPrivilege {
        /// The user of the connection string.
        user: String,
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// As many replication connections as the server allows are open.
    #[error("{}", tell_senders(*.limit))]
    TooManySenders {
        /// How many it allows: none at all with `wal_level=minimal`.
        limit: u32,
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// All connections of the server, the database or the role are taken.
    #[error("the server has no connection left")]
    TooManyConnections {
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// All replication slots are taken.
    #[error("the server has no replication slot left (max_replication_slots = {limit})")]
    NoSlotFree {
        /// How many it allows.
        limit: u32,
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// Nothing is known of the server's version.
    #[error(
        "the server is PostgreSQL {major}, and this pgark knows {} to {} only",
        KNOWN_MAJOR_VERSIONS.start(),
        KNOWN_MAJOR_VERSIONS.end()
    )]
    UnknownVersion {
        /// Its major version.
        major: u32,
    },

    /// A command failed; the session can still be used unless the error was fatal.
    #[error("the server reported an error")]
    Server {
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// The whole backup was sent, but the server found damaged pages while it read them.
    #[error("the backup was sent completely up to {}, but the server found damaged pages in it", end.lsn)]
    PagesDamaged {
        /// Where the backup ends.
        end: BackupEnd,
        /// The server's words.
        #[source]
        server: Box<ServerError>,
    },

    /// The server ended the connection before it had answered.
    #[error("the server closed the connection {during}")]
    ConnectionClosed {
        /// What was going on.
        during: &'static str,
    },

    /// The connection broke.
    #[error("the connection broke {during}")]
    ConnectionLost {
        /// What was going on.
        during: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// The manifest of the parent cannot be read, in the middle of its upload.
    #[error("cannot read the manifest that the server is to be given")]
    Manifest {
        /// What the system said.
        source: io::Error,
    },

    /// The server, or something between, sent what the protocol does not allow here.
    #[error("protocol violation: {0}")]
    ProtocolViolation(String),

    /// The WAL that arrived does not continue the WAL before it.
    #[error("the WAL stream has a hole: expected {expected}, got {found}")]
    WalNotContiguous {
        /// Where the last piece ended.
        expected: pgark_postgres::Lsn,
        /// Where this one starts.
        found: pgark_postgres::Lsn,
    },

    /// A name or label cannot be sent.
    #[error(transparent)]
    Literal(#[from] LiteralError),

    /// An earlier command was left in the middle, so this connection cannot be used again.
    #[error("the replication connection was left in the middle of a command")]
    Unusable,
}

fn tell_senders(limit: u32) -> String {
    match limit {
        0 => {
            "the server allows no replication connection (max_wal_senders = 0, as with wal_level = minimal)".to_owned()
        }
        _ => format!("the server has no replication connection left (max_wal_senders = {limit})"),
    }
}

impl ReplicationError {
    pub(crate) fn violation(text: impl Into<String>) -> Self {
        Self::ProtocolViolation(text.into())
    }

    pub(crate) fn server(server: ServerError) -> Self {
        Self::Server { server: Box::new(server) }
    }

    /// The server's own error, where there is one.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::NotReady { server, .. }
            | Self::AuthenticationFailed { server, .. }
            | Self::NotInPgHba { server, .. }
            | Self::MissingReplicationPrivilege { server, .. }
            | Self::ClientCertificateMissing { server, .. }
            | Self::TooManySenders { server, .. }
            | Self::TooManyConnections { server }
            | Self::NoSlotFree { server, .. }
            | Self::Server { server }
            | Self::PagesDamaged { server, .. } => Some(server),
            _ => None,
        }
    }

    /// The server's error code, where there is one.
    pub fn sqlstate(&self) -> Option<&str> {
        self.server_error().map(|server| server.sqlstate.as_str())
    }

    /// Tells whether the file or timeline that was asked for does not exist on the server.
    pub fn is_missing_file(&self) -> bool {
        self.sqlstate() == Some(sqlstate::UNDEFINED_FILE)
    }

    /// Tells whether the named slot does not exist.
    pub fn is_missing_object(&self) -> bool {
        self.sqlstate() == Some(sqlstate::UNDEFINED_OBJECT)
    }

    /// Tells whether somebody canceled the command.
    pub fn is_canceled(&self) -> bool {
        self.sqlstate() == Some(sqlstate::QUERY_CANCELED)
    }

    /// Tells whether the same call may succeed later without anybody changing the configuration.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::NotReady { .. }
            | Self::WrongTarget { .. }
            | Self::TooManyConnections { .. }
            | Self::ConnectionClosed { .. }
            | Self::ConnectionLost { .. }
            | Self::Unusable => true,
            // With none at all it needs another configuration.
            Self::TooManySenders { limit, .. } => *limit > 0,
            Self::Tls { source, .. } => source.is_retryable(),
            // Class 57 is an operator's or the server's intervention, class 53 a lack of resources.
            Self::Server { server } => {
                server.is_fatal() || server.sqlstate.starts_with("57") || server.sqlstate.starts_with("53")
            }
            _ => false,
        }
    }

    /// Tells whether the same login may succeed with TLS where this one was without, or the other way round.
    pub(crate) fn may_depend_on_tls(&self) -> bool {
        matches!(
            self,
            Self::NotInPgHba { .. }
                | Self::AuthenticationFailed { .. }
                | Self::ClientCertificateMissing { .. }
                | Self::Tls { .. }
        )
    }
}
