//! A physical replication session: start-up, framing, and the simple-query commands under everything else.
//!
//! No `client_encoding` is sent: a physical session passes raw bytes, and with UTF-8 one odd tablespace path would end
//! a backup in the middle. Receiving is cancel-safe: bytes stay in the buffers, so `receive` may stand in `select!`.

use std::collections::BTreeMap;
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::authentication::Login;
use super::damaged_files::DamagedFiles;
use super::dial::dial;
use super::error::{ReplicationError, ServerError};
use super::message::{BackendMessage, Phase, Taken, take_message};
#[cfg(test)]
use super::options::Endpoint;
use super::options::{ConnectionOptions, Host, Purpose, TargetSession};
use super::transport::Transport;

/// One read buffer, handed out in slices and used again as soon as all of them are dropped. Larger than what a socket
/// holds, so that a read takes all that is there; small enough to stay in the processor's cache.
const READ_BUFFER_LEN: usize = 1 << 20;

/// Below this much free space the buffer is turned over before the next read.
const MIN_READ_LEN: usize = 128 << 10;

/// Result sets here have a row a tablespace at most; a history file is the largest value.
const MAX_ROWS: usize = 100_000;
const MAX_RESULT_BYTES: usize = 128 << 20;

/// A server reports some twenty parameters of a few bytes.
const MAX_PARAMETERS: usize = 1_000;
const MAX_PARAMETER_BYTES: usize = 64 << 10;

/// Notices that follow each other without anything in between. A server has a handful for a damaged file.
const MAX_NOTICES: usize = 10_000;

/// The server must not end a session that waits while a backup is uploaded. A setting of the user's own comes after
/// this one and wins.
const SESSION_SETTINGS: &str = "-c idle_session_timeout=0";

const WARNING: &str = "WARNING";

/// A physical replication connection that is between two commands.
#[derive(Debug)]
pub struct ReplicationConnection {
    transport: Transport,
    host: Host,
    input: BytesMut,
    output: BytesMut,
    phase: Phase,
    /// Set while a command's answer is under way; a connection that is left so cannot be used again.
    busy: bool,
    /// Set while what was written may still wait below, such as in a TLS record.
    unflushed: bool,
    /// A failed write waits here until the server's own words, if there are any, have been read.
    write_error: Option<io::Error>,
    process_id: i32,
    parameters: BTreeMap<Vec<u8>, Bytes>,
    damaged_files: DamagedFiles,
    pub(crate) version: Option<u32>,
}

/// A row of raw columns.
pub(crate) type Row = Vec<Option<Bytes>>;

impl ReplicationConnection {
    /// Connects to the first host that answers and is wanted, and logs in.
    ///
    /// The next host is tried when one cannot be reached, is not ready or is another kind of server than
    /// `target_session_attrs` asks for; a refused login is final.
    pub async fn connect(options: &ConnectionOptions) -> Result<Self, ReplicationError> {
        dial(options, Purpose::Replication).await
    }

    pub(crate) fn new(transport: Transport, host: Host) -> Self {
        Self {
            transport,
            host,
            input: BytesMut::new(),
            output: BytesMut::new(),
            phase: Phase::Login,
            busy: true,
            unflushed: false,
            write_error: None,
            process_id: 0,
            parameters: BTreeMap::new(),
            damaged_files: DamagedFiles::default(),
            version: None,
        }
    }

    /// A session of PostgreSQL 15 on a stream that needs no login.
    #[cfg(test)]
    pub(crate) fn logged_in(transport: Transport) -> Self {
        let host = Host { endpoint: Endpoint::SocketDirectory("/".into()), port: 5432 };
        Self { phase: Phase::Session, busy: false, version: Some(150_000), ..Self::new(transport, host) }
    }

    pub(crate) async fn log_in(
        &mut self,
        options: &ConnectionOptions,
        purpose: Purpose,
        session_settings: bool,
    ) -> Result<(), ReplicationError> {
        self.start_up(options, purpose, session_settings)?;
        let protection = self.transport.protection();
        let mut login = Login::new(options, options.password_for(&self.host, purpose), protection.clone());
        loop {
            match self.receive("during the login").await? {
                BackendMessage::Authentication(request) => {
                    if login.answer(request, &mut self.output)? {
                        self.phase = Phase::Session;
                    }
                }
                BackendMessage::ErrorResponse(server) => {
                    return Err(ReplicationError::from_login(server, options, purpose, &self.host, &protection));
                }
                BackendMessage::NegotiateProtocolVersion if self.phase == Phase::Login => {}
                BackendMessage::BackendKeyData { process_id } if self.phase == Phase::Session => {
                    self.process_id = process_id;
                }
                BackendMessage::ReadyForQuery if self.phase == Phase::Session => {
                    self.busy = false;
                    return Ok(());
                }
                other => return Err(unexpected(&other, "during the login")),
            }
        }
    }

    fn start_up(
        &mut self,
        options: &ConnectionOptions,
        purpose: Purpose,
        session_settings: bool,
    ) -> Result<(), ReplicationError> {
        let settings = [session_settings.then_some(SESSION_SETTINGS), options.options.as_deref()];
        let settings = settings.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let mut parameters =
            vec![("user", options.user.as_str()), ("application_name", options.application_name.as_str())];
        match purpose {
            Purpose::Replication => parameters.push(("replication", "true")),
            Purpose::Sql => parameters.extend([("database", options.database.as_str()), ("client_encoding", "UTF8")]),
        }
        if !settings.is_empty() {
            parameters.push(("options", settings.as_str()));
        }
        frontend::startup_message(parameters, &mut self.output).map_err(|_| ReplicationError::AuthenticationRefused {
            user: options.user.clone(),
            reason: "user, dbname, application_name or options contain a zero byte".to_owned(),
        })
    }

    /// Tells whether the server is of the kind that is asked for.
    pub(crate) async fn is_wanted(&mut self, target: TargetSession) -> Result<bool, ReplicationError> {
        if target == TargetSession::Any {
            return Ok(true);
        }
        let reported = |name| self.parameter(name).map(|value| value == b"on");
        let state = match (reported("in_hot_standby"), reported("default_transaction_read_only")) {
            (Some(in_recovery), Some(read_only)) => (in_recovery, read_only),
            // 13 reports neither. Recovery makes transactions read-only, whatever the setting is.
            _ => {
                let read_only = self.show("transaction_read_only").await? == "on";
                let by_setting = self.show("default_transaction_read_only").await? == "on";
                (read_only && !by_setting, read_only)
            }
        };
        Ok(target.accepts(state.0, state.1))
    }

    /// Where this connection leads, with the address that was chosen: [`ConnectionOptions::only`] takes further ones
    /// there too.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The stream under a session that is between two commands, and what has been read from it already.
    pub(crate) fn into_parts(self) -> (Transport, BytesMut) {
        (self.transport, self.input)
    }

    /// The server process that serves this connection, as `pg_stat_replication` names it.
    pub fn process_id(&self) -> i32 {
        self.process_id
    }

    /// A parameter that the server reported by itself, such as `in_hot_standby`.
    pub fn parameter(&self, name: &str) -> Option<&[u8]> {
        self.parameters.get(name.as_bytes()).map(AsRef::as_ref)
    }

    /// The files whose pages the server has warned of.
    pub fn damaged_files(&self) -> &DamagedFiles {
        &self.damaged_files
    }

    /// Says goodbye. Dropping the connection has the same effect for the server, with a line in its log.
    pub async fn close(mut self) {
        frontend::terminate(&mut self.output);
        // Nothing can be done about a failure, and nothing is lost by it.
        let _ignored = self.flush().await;
        let _ignored = self.transport.shutdown().await;
    }

    /// Starts a command whose answer the caller reads; [`Self::end_command`] or [`Self::read_ready`] ends it.
    pub(crate) fn start_command(&mut self, command: &str) -> Result<(), ReplicationError> {
        if std::mem::replace(&mut self.busy, true) {
            return Err(ReplicationError::Unusable);
        }
        tracing::trace!(command, "replication command");
        frontend::query(command, &mut self.output)
            .map_err(|_| ReplicationError::violation("a command contains a zero byte"))
    }

    /// Notes that ReadyForQuery has been read.
    pub(crate) fn end_command(&mut self) {
        self.busy = false;
    }

    /// Runs a command that answers with one result set.
    pub(crate) async fn query(&mut self, command: &str) -> Result<Vec<Row>, ReplicationError> {
        self.start_command(command)?;
        let rows = self.read_result_set().await?;
        self.read_ready("after a command").await?;
        Ok(rows)
    }

    /// Reads the ReadyForQuery that ends a command.
    pub(crate) async fn read_ready(&mut self, place: &'static str) -> Result<(), ReplicationError> {
        match self.receive(place).await? {
            BackendMessage::ReadyForQuery => {
                self.end_command();
                Ok(())
            }
            BackendMessage::ErrorResponse(server) => Err(self.fail_command(server).await),
            other => Err(unexpected(&other, place)),
        }
    }

    /// Reads `T D* C`, or a bare `C` from a command without a result.
    pub(crate) async fn read_result_set(&mut self) -> Result<Vec<Row>, ReplicationError> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        loop {
            match self.receive("in the middle of a result").await? {
                BackendMessage::RowDescription => {}
                BackendMessage::DataRow(row) => {
                    bytes += row.iter().flatten().map(Bytes::len).sum::<usize>();
                    if rows.len() >= MAX_ROWS || bytes > MAX_RESULT_BYTES {
                        return Err(ReplicationError::violation(format!(
                            "a result goes on after {} rows with {bytes} bytes",
                            rows.len()
                        )));
                    }
                    rows.push(row);
                }
                BackendMessage::CommandComplete(_) => return Ok(rows),
                BackendMessage::ErrorResponse(server) => {
                    return Err(self.fail_command(server).await);
                }
                other => return Err(unexpected(&other, "in a result")),
            }
        }
    }

    /// Reads on to ReadyForQuery after an error, so that the connection can be used again, and returns the error.
    pub(crate) async fn fail_command(&mut self, server: ServerError) -> ReplicationError {
        while !server.is_fatal() {
            match self.receive("after an error").await {
                Ok(BackendMessage::ReadyForQuery) => {
                    self.end_command();
                    break;
                }
                Ok(_) => {}
                // The error that the server reported says more than the end that followed it.
                Err(_) => break,
            }
        }
        ReplicationError::server(server)
    }

    /// Queues bytes that the next [`Self::receive`] or [`Self::flush`] sends.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Sends what is queued. A call that is dropped half-way is continued by the next one.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        while self.output.has_remaining() {
            self.unflushed = true;
            if self.transport.write_buf(&mut self.output).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.transport.flush().await?;
        self.unflushed = false;
        Ok(())
    }

    /// Waits for the next message that is not a notice, a notification or a parameter report.
    pub(crate) async fn receive(&mut self, during: &'static str) -> Result<BackendMessage, ReplicationError> {
        let mut notices = 0;
        loop {
            if notices > MAX_NOTICES {
                return Err(ReplicationError::violation(format!("more than {MAX_NOTICES} notices in a row {during}")));
            }
            let missing = match take_message(&mut self.input, self.phase)? {
                Taken::Message(BackendMessage::ParameterStatus { name, value }) => {
                    notices += 1;
                    if self.parameters.len() >= MAX_PARAMETERS || name.len() + value.len() > MAX_PARAMETER_BYTES {
                        return Err(ReplicationError::violation("too many or too long parameters are reported"));
                    }
                    // Copied, because a slice would keep the whole read buffer.
                    self.parameters.insert(name.to_vec(), Bytes::copy_from_slice(&value));
                    continue;
                }
                Taken::Message(BackendMessage::NoticeResponse(notice)) => {
                    notices += 1;
                    if notice.severity == WARNING {
                        self.damaged_files.note(&notice.message);
                    }
                    log_notice(&notice);
                    continue;
                }
                Taken::Message(BackendMessage::NotificationResponse) => {
                    notices += 1;
                    continue;
                }
                Taken::Message(message) => return Ok(message),
                Taken::Missing(missing) => missing,
            };
            self.read_more(missing, during).await?;
        }
    }

    /// Sends what is queued. A failure is told by the read that finds the connection ended: a server that shuts down
    /// goes away without waiting for an answer, and what it said before is still there to be read.
    pub(crate) async fn send_queued(&mut self) {
        if (self.unflushed || !self.output.is_empty())
            && let Err(error) = self.flush().await
        {
            self.output.clear();
            self.unflushed = false;
            self.write_error.get_or_insert(error);
        }
    }

    async fn read_more(&mut self, missing: usize, during: &'static str) -> Result<(), ReplicationError> {
        self.send_queued().await;
        let needed = missing.max(MIN_READ_LEN);
        if self.input.capacity() - self.input.len() < needed {
            // Asking for a whole buffer makes `bytes` turn the old one over when no slice of it is held any more.
            self.input.reserve(needed.max(READ_BUFFER_LEN.saturating_sub(self.input.len())));
        }
        match self.transport.read_buf(&mut self.input).await {
            Ok(0) => Err(match self.write_error.take() {
                Some(source) => ReplicationError::ConnectionLost { during, source },
                None => ReplicationError::ConnectionClosed { during },
            }),
            Ok(_) => Ok(()),
            // Under TLS: the server process is gone without a goodbye.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(ReplicationError::ConnectionClosed { during })
            }
            Err(source) => Err(ReplicationError::ConnectionLost { during, source }),
        }
    }
}

/// The error for a message that has no place here.
pub(crate) fn unexpected(message: &BackendMessage, place: &str) -> ReplicationError {
    let name = match message {
        BackendMessage::Authentication(_) => "Authentication",
        BackendMessage::BackendKeyData { .. } => "BackendKeyData",
        BackendMessage::CommandComplete(_) => "CommandComplete",
        BackendMessage::CopyBothResponse => "CopyBothResponse",
        BackendMessage::CopyData(_) => "CopyData",
        BackendMessage::CopyDone => "CopyDone",
        BackendMessage::CopyInResponse => "CopyInResponse",
        BackendMessage::CopyOutResponse => "CopyOutResponse",
        BackendMessage::DataRow(_) => "DataRow",
        BackendMessage::EmptyQueryResponse => "EmptyQueryResponse",
        BackendMessage::ErrorResponse(_) => "ErrorResponse",
        BackendMessage::NegotiateProtocolVersion => "NegotiateProtocolVersion",
        BackendMessage::NoticeResponse(_) => "NoticeResponse",
        BackendMessage::NotificationResponse => "NotificationResponse",
        BackendMessage::ParameterStatus { .. } => "ParameterStatus",
        BackendMessage::ReadyForQuery => "ReadyForQuery",
        BackendMessage::RowDescription => "RowDescription",
    };
    ReplicationError::violation(format!("unexpected {name} {place}"))
}

fn log_notice(notice: &ServerError) {
    if notice.severity == WARNING {
        tracing::warn!(sqlstate = notice.sqlstate, detail = notice.detail, "server: {}", notice.message);
    } else {
        tracing::debug!(sqlstate = notice.sqlstate, detail = notice.detail, "server: {}", notice.message);
    }
}
