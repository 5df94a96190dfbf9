//! The server of a drill: PostgreSQL on the restored directory, with settings of its own.
//!
//! Nothing that was configured for the original acts here: `postgresql.conf` is the drill's own, `postgresql.auto.conf`
//! holds nothing but the recovery settings, and so a drill needs neither the original's certificates nor its included
//! files, and cannot archive, replicate, subscribe or listen. Dropping it ends the server.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use pgark_command::{ExitCode, Failure};
use pgark_postgres::{ControlFile, Lsn};
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use super::programs::Programs;
use super::throwaway::Throwaway;

const PORT: u16 = 5432;
/// How often is looked whether something has happened.
const PAUSE: Duration = Duration::from_millis(50);
/// A shutdown with a checkpoint; then the server is ended without one.
const FAST_LIMIT: Duration = Duration::from_secs(120);
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(10);
/// What is looked at of a log: a server that recovers for hours writes a line for every segment.
const LOG_LIMIT: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    user: String,
}

impl Server {
    /// Starts PostgreSQL; it begins to recover.
    pub(crate) fn start(
        programs: &Programs,
        place: &Throwaway,
        control: &ControlFile,
        user: &str,
        settings: &[String],
    ) -> anyhow::Result<Self> {
        let write = |name: &str, content: &str| {
            let path = place.path().join(name);
            let mut file = File::options().create_new(true).write(true).mode(0o600).open(&path)?;
            file.write_all(content.as_bytes())?;
            Ok::<_, std::io::Error>(path)
        };
        let hba = write("pg_hba.conf", "local all all trust\n").context("write pg_hba.conf")?;
        let ident = write("pg_ident.conf", "").context("write pg_ident.conf")?;
        let conf = configuration(control, &place.socket(), &hba, &ident, settings);
        let conf = write("postgresql.conf", &conf).context("write postgresql.conf")?;
        let log = write("server.log", "").context("create server.log")?;
        let output = || File::options().append(true).open(&log).context("open server.log");
        let mut command = Command::new(programs.directory.join("postgres"));
        command.arg("-D").arg(place.data()).arg("-c").arg(format!("config_file={}", conf.display()));
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_libpq_variable(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        // The reason of a failed fetch is looked for in the log.
        command.env("PGARK_LOG_FORMAT", "text");
        // A terminal's Ctrl-C is for the drill, which then ends its server.
        command.process_group(0).stdin(Stdio::null()).stdout(output()?).stderr(output()?);
        let child = command.spawn().context("start postgres")?;
        Ok(Self { child, log, socket: place.socket(), user: user.to_owned() })
    }

    /// Waits until recovery has ended and the server takes connections.
    pub(crate) async fn wait_until_open(&mut self) -> anyhow::Result<()> {
        loop {
            if let Some(status) = self.child.try_wait().context("wait for postgres")? {
                return Err(self.explain_end(status).into());
            }
            match self.connect("template1").await {
                Ok(_) => return Ok(()),
                Err(error) if is_starting(&error) => tokio::time::sleep(PAUSE).await,
                Err(error) => {
                    let message = format!("the restored server refuses the role \"{}\": {}", self.user, said(&error));
                    let hint = "name a superuser of the cluster as user in [drill]";
                    return Err(Failure::new(ExitCode::Usage, message).with_hint(hint).into());
                }
            }
        }
    }

    /// Logs in to a database.
    pub(crate) async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket).port(PORT).user(&self.user).dbname(database).application_name("pgark drill");
        // What the cluster's roles and databases have set for themselves must not cut a check short.
        config.options(
            "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 \
             -c default_transaction_read_only=off -c row_security=on -c lc_messages=C",
        );
        let (client, connection) = config.connect(NoTls).await?;
        // It ends with the client.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the server of the drill ended");
            }
        });
        Ok(client)
    }

    /// For PostgreSQL's own programs.
    pub(crate) fn connection_variables(&self) -> [(&'static str, String); 3] {
        [("PGHOST", self.socket.display().to_string()), ("PGPORT", PORT.to_string()), ("PGUSER", self.user.clone())]
    }

    /// Where replay ended, as the server says.
    pub(crate) fn recovered(&self) -> Recovered {
        Recovered::read(&self.log_text())
    }

    /// Stops the server with a checkpoint, as an administrator would.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::INT);
        let began = Instant::now();
        while began.elapsed() < FAST_LIMIT {
            match self.child.try_wait().context("wait for postgres")? {
                None => tokio::time::sleep(PAUSE).await,
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.explain_end(status).into()),
            }
        }
        anyhow::bail!("the server did not shut down within {} s", FAST_LIMIT.as_secs())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, signal)
        {
            // It is gone by now, as its child handle will say.
            tracing::debug!(%error, "the server could not be told to stop");
        }
    }

    fn log_text(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_LIMIT)..]).into_owned()
    }

    /// Why the server ended that should not have: what the fetch of WAL said counts more than what the server makes of it.
    fn explain_end(&self, status: ExitStatus) -> Failure {
        let log = self.log_text();
        let fetch = log.lines().rev().find_map(|line| line.split_once("pgark-restore: error: ").map(|(_, text)| text));
        let own = log.lines().rev().find_map(|line| {
            let levels = ["PANIC:  ", "FATAL:  ", "ERROR:  "];
            levels.iter().find_map(|level| line.split_once(level).map(|(_, text)| text)).filter(|text| !is_echo(text))
        });
        match (fetch, own) {
            (Some(reason), _) => {
                let code = if reason.contains(" is damaged") { ExitCode::Damaged } else { ExitCode::Failed };
                Failure::new(code, format!("the server stopped recovery, because WAL could not be fetched: {reason}"))
            }
            (None, Some(reason)) => {
                let unreached = reason.contains("before configured recovery target was reached");
                let code = if unreached { ExitCode::Unreachable } else { ExitCode::Failed };
                Failure::new(code, format!("the server stopped: {reason}"))
            }
            (None, None) => Failure::new(ExitCode::Failed, format!("the server ended with {status}")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for signal in [Signal::QUIT, Signal::KILL] {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            self.signal(signal);
            let began = Instant::now();
            while began.elapsed() < IMMEDIATE_LIMIT && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// What the server's log says about the end of recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The last record that was replayed.
    pub(crate) last_record: Option<Lsn>,
    /// Why it was the last one, where a target ended recovery: `before commit of transaction 747, time …`.
    pub(crate) stopped: Option<String>,
}

impl Recovered {
    fn read(log: &str) -> Self {
        let last = |mark: &str| log.lines().rev().find_map(|line| line.split_once(mark).map(|(_, rest)| rest));
        let last_record = last("LOG:  redo done at ").and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Self { last_record, stopped: last("LOG:  recovery stopping ").map(str::to_owned) }
    }
}

/// Messages that follow from another one.
fn is_echo(text: &str) -> bool {
    ["the database system is ", "terminating ", "could not restore file "].iter().any(|start| text.starts_with(start))
}

fn is_starting(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        // The socket is not there yet, or the server ends: then its end is seen next.
        None => true,
        Some(code) => *code == SqlState::CANNOT_CONNECT_NOW,
    }
}

/// The server's own words, or why there are none.
pub(crate) fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(answer) => answer.message().to_owned(),
        None => format!("{:#}", anyhow::Error::msg(error.to_string())),
    }
}

fn is_libpq_variable(name: &str) -> bool {
    name.starts_with("PG") && !name.starts_with("PGARK_")
}

/// What has to fit the original comes from its control file; all else is the least that a drill needs.
fn configuration(control: &ControlFile, socket: &Path, hba: &Path, ident: &Path, settings: &[String]) -> String {
    let path = |path: &Path| quoted(&path.display().to_string());
    let mut lines = vec![
        "# Written by pgark-restore drill.".to_owned(),
        "listen_addresses = ''".to_owned(),
        format!("port = {PORT}"),
        format!("unix_socket_directories = {}", path(socket)),
        "unix_socket_permissions = 0700".to_owned(),
        format!("hba_file = {}", path(hba)),
        format!("ident_file = {}", path(ident)),
        "ssl = off".to_owned(),
        // Nothing reaches production, and nothing starts by itself.
        "archive_mode = off".to_owned(),
        "max_wal_senders = 0".to_owned(),
        "max_logical_replication_workers = 0".to_owned(),
        "shared_preload_libraries = ''".to_owned(),
        "autovacuum = off".to_owned(),
        "jit = off".to_owned(),
        "restart_after_crash = off".to_owned(),
        // Connections are taken when recovery has ended; until then the original's limits need not be met.
        "hot_standby = off".to_owned(),
        format!("max_connections = {}", control.max_connections.clamp(20, 200)),
        format!("max_prepared_transactions = {}", control.max_prepared_transactions),
        format!("max_locks_per_transaction = {}", control.max_locks_per_transaction.max(64)),
        "shared_buffers = 128MB".to_owned(),
        "max_wal_size = 4GB".to_owned(),
        "logging_collector = off".to_owned(),
        "log_destination = stderr".to_owned(),
        "log_line_prefix = '%m [%p] '".to_owned(),
        "log_timezone = 'UTC'".to_owned(),
        "timezone = 'UTC'".to_owned(),
        "lc_messages = 'C'".to_owned(),
    ];
    if control.major() >= 17 {
        lines.push("event_triggers = off".to_owned());
    }
    let own = settings.iter().filter_map(|setting| setting.split_once('='));
    lines.extend(own.map(|(name, value)| format!("{} = {}", name.trim(), quoted(value.trim()))));
    lines.push(String::new());
    lines.join("\n")
}

/// A value of a configuration file.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_where_recovery_ended() {
        let log = "2026-11-21 10:00:00.1 UTC [7] LOG:  starting archive recovery\n\
                   2026-11-21 10:00:00.2 UTC [7] LOG:  recovery stopping before commit of transaction 747, time x\n\
                   2026-11-21 10:00:00.3 UTC [7] LOG:  redo done at 0/3000110 system usage: CPU: user: 0.00 s\n";
        let found = Recovered::read(log);
        assert_eq!(found.last_record, Some("0/3000110".parse().unwrap()));
        assert_eq!(found.stopped.as_deref(), Some("before commit of transaction 747, time x"));
        assert_eq!(Recovered::read(""), Recovered::default());
    }

    #[test]
    fn values_survive_the_configuration_file() {
        assert_eq!(quoted("it's C:\\x"), "'it''s C:\\\\x'");
        assert!(is_libpq_variable("PGOPTIONS") && !is_libpq_variable("PGARK_CONFIG"));
    }
}
