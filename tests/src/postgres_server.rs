//! One PostgreSQL server of a test: made from a cached template, listening on a private unix socket, run as the test
//! user, stopped when dropped.
//!
//! The same type also runs a directory that pgark restored ([`PostgresServerBuilder::start_restored`]): then nothing in
//! the directory is edited, the socket and "no archiving" are given on the command line, and the directory stays when
//! the server goes.

mod builder;
mod installation;
mod template;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;

pub use builder::PostgresServerBuilder;
pub use installation::newest_major;

use crate::pgbench::Pgbench;
use crate::server_process::ServerProcess;
use crate::temp_dir::TempDir;
use crate::test_user::TestUser;
use crate::wait::wait_until;
use installation::Installation;

/// How long a server may take to start, to recover or to reach a state, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct PostgresServer {
    installation: Installation,
    /// The running postmaster; nothing while stopped.
    process: Option<ServerProcess>,
    /// Holds the socket, the log and, for a server that was not restored, the data.
    dir: TempDir,
    data_dir: PathBuf,
    port: u16,
    tcp: bool,
    /// Given as `-c name=value` at every start.
    command_line: Vec<(String, String)>,
}

impl PostgresServer {
    pub fn builder() -> PostgresServerBuilder {
        PostgresServerBuilder::default()
    }

    /// A running PostgreSQL 15 with the defaults of the builder.
    pub fn start_default() -> Self {
        Self::builder().start()
    }

    /// Starts a restored directory on a private socket, without archiving. Does not wait: see the `wait_until_…` methods.
    pub fn start_restored(data_dir: impl AsRef<Path>, major: u32) -> Self {
        Self::builder().major(major).start_restored(data_dir)
    }

    pub fn major(&self) -> u32 {
        self.installation.major()
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The folder of the unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The port: of the socket's name, and on 127.0.0.1 when the server was built with `tcp`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A libpq connection string over the unix socket, as superuser `postgres`.
    pub fn connection_string(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.socket_dir().display(), self.port)
    }

    /// The same over TCP, for servers that were built with `tcp`.
    pub fn tcp_connection_string(&self) -> String {
        assert!(self.tcp, "this server was not built with tcp()");
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// A program of this server's own version, such as `pg_verifybackup`; for 14 and 16, which come without client
    /// tools, of the next version that has it.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.installation.bin(name)
    }

    /// A command for a program of this version, with the connection in its environment (`PGHOST`, `PGPORT`, `PGUSER`,
    /// `PGDATABASE`).
    pub fn command(&self, name: &str) -> Command {
        let mut command = self.installation.command(name);
        command.env("PGHOST", self.socket_dir()).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// Runs a program of this version to its end and returns what it printed; panics with its messages when it fails.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, name: &str, arguments: &[S]) -> String {
        let output = self.command(name).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("cannot run {name}: {error}"));
        assert!(
            output.status.success(),
            "{name} failed ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs SQL (several statements, each in a transaction of its own) and returns the rows: unaligned, columns
    /// separated by `|`, without the last line end. Panics with the server's message on an error.
    pub fn psql(&self, sql: &str) -> String {
        self.psql_in("postgres", sql)
    }

    pub fn psql_in(&self, database: &str, sql: &str) -> String {
        self.try_psql_in(database, sql).unwrap_or_else(|message| panic!("this SQL failed:\n{sql}\n{message}"))
    }

    /// As [`Self::psql`], with the messages of psql as the error.
    pub fn try_psql(&self, sql: &str) -> Result<String, String> {
        self.try_psql_in("postgres", sql)
    }

    /// Asks until the answer is `expected`; panics with the last answer and the log when it does not come.
    pub fn wait_for(&mut self, sql: &str, expected: &str) {
        let Some(mut process) = self.process.take() else {
            panic!("the server is stopped; it cannot answer {sql}");
        };
        let what = format!("{expected:?} as the answer to {sql}");
        process.wait_until(&what, LIMIT, || (self.try_psql(sql).as_deref() == Ok(expected)).then_some(()));
        self.process = Some(process);
    }

    /// Waits until the server accepts connections: also in recovery, once it is consistent.
    pub fn wait_until_ready(&mut self) {
        let pid_file = self.data_dir.join("postmaster.pid");
        let pid = self.pid().to_string();
        self.process_mut().wait_until("connections accepted", LIMIT, || {
            // The file of a killed server says "ready" until the next one has written its own.
            let content = std::fs::read_to_string(&pid_file).ok()?;
            let mut lines = content.lines().map(str::trim_end);
            let of_this_server = lines.next()? == pid;
            let ready = matches!(lines.nth(6)?, "ready" | "standby");
            (of_this_server && ready).then_some(())
        });
    }

    /// Waits until recovery has reached its target and stands still there.
    pub fn wait_until_paused(&mut self) {
        // 13 cannot tell a pause that was asked for from one that has begun.
        let paused =
            if self.major() < 14 { "pg_is_wal_replay_paused()" } else { "pg_get_wal_replay_pause_state() = 'paused'" };
        self.wait_for(&format!("SELECT CASE WHEN pg_is_in_recovery() THEN {paused} END"), "t");
    }

    /// Waits until recovery has ended and the server takes writes.
    pub fn wait_until_promoted(&mut self) {
        self.wait_for("SELECT pg_is_in_recovery()", "f");
    }

    /// Waits until the server ends by itself, as after `recovery_target_action = shutdown` or a fatal error.
    pub fn wait_until_ended(&mut self) -> ExitStatus {
        let status = self.process_mut().wait_for_end(LIMIT);
        self.process = None;
        status
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// The pid of the postmaster.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap_or_else(|| panic!("the server is stopped")).pid()
    }

    /// All that the server has written to its log, over all starts.
    pub fn log(&self) -> String {
        std::fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Starts a stopped server and waits until it is ready.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    pub fn restart(&mut self) {
        self.stop_fast();
        self.start();
    }

    /// An orderly shutdown: `pg_ctl stop -m fast`.
    pub fn stop_fast(&mut self) {
        let status = self.stop(Signal::INT);
        assert!(status.success(), "the server ended with {status} after a fast shutdown; log:\n{}", self.log());
    }

    /// A shutdown without a checkpoint: `pg_ctl stop -m immediate`.
    pub fn stop_immediate(&mut self) {
        self.stop(Signal::QUIT);
    }

    /// Kills the postmaster and every process it has, as a power cut would, and waits until they are gone.
    pub fn kill9(&mut self) {
        let children = children_of(self.pid());
        self.stop(Signal::KILL);
        for child in children {
            if let Some(pid) = i32::try_from(child).ok().and_then(rustix::process::Pid::from_raw) {
                // It may have noticed the end of the postmaster by itself.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                wait_until("the end of a server process", LIMIT, || {
                    rustix::process::test_kill_process(pid).is_err().then_some(())
                });
            }
        }
    }

    /// Ends recovery, and waits until the server takes writes.
    pub fn promote(&mut self) {
        self.psql("SELECT pg_promote(true, 100)");
        self.wait_until_promoted();
    }

    /// Sends the postmaster a hang-up, so that it reads its configuration again.
    pub fn reload(&mut self) {
        self.process_mut().signal(Signal::HUP);
    }

    /// Sets a parameter with `ALTER SYSTEM` and reloads; parameters that need a restart need a `restart()` after it.
    pub fn alter_system(&mut self, name: &str, value: &str) {
        self.psql(&format!("ALTER SYSTEM SET {name} = '{}'", value.replace('\'', "''")));
        self.psql("SELECT pg_reload_conf()");
    }

    /// Takes a base backup with `pg_basebackup` and starts a standby of this server from it.
    pub fn start_standby(&self) -> Self {
        let dir = TempDir::for_test_user("standby");
        let data_dir = dir.join("data");
        let mut command = self.command("pg_basebackup");
        command.args(["--checkpoint=fast", "--write-recovery-conf", "--pgdata"]).arg(&data_dir);
        let output = TestUser::get()
            .run(&mut command)
            .output()
            .unwrap_or_else(|error| panic!("cannot run pg_basebackup: {error}"));
        assert!(output.status.success(), "pg_basebackup failed:\n{}", String::from_utf8_lossy(&output.stderr));
        let mut standby = Self::builder().major(self.major()).start_in(dir, data_dir);
        standby.wait_until_ready();
        standby
    }

    /// Creates the tables of pgbench and fills them, in database `postgres`.
    pub fn init_pgbench(&self, scale: u32) {
        self.run("pgbench", &["--initialize", "--quiet", "--scale", &scale.to_string()]);
    }

    /// Runs pgbench in the background until the handle is stopped.
    pub fn start_pgbench(&self, clients: u32) -> Pgbench {
        Pgbench::start(self, clients)
    }

    /// The data of a test user's server is owned by that user; this makes it so again after a test wrote there as root.
    pub fn own_data_dir(&self) {
        TestUser::get().own_all(&self.data_dir);
    }

    fn spawn(&mut self) {
        assert!(!self.is_running(), "the server runs already");
        let mut command = self.installation.command("postgres");
        command.arg("-D").arg(&self.data_dir).current_dir(self.dir.path());
        for (name, value) in &self.command_line {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let name = format!("PostgreSQL {} in {}", self.major(), self.data_dir.display());
        self.process = Some(ServerProcess::start(&name, TestUser::get().run(&mut command), &self.log_path()));
    }

    fn stop(&mut self, signal: Signal) -> ExitStatus {
        let status = self.process_mut().stop(signal);
        self.process = None;
        status
    }

    fn process_mut(&mut self) -> &mut ServerProcess {
        self.process.as_mut().unwrap_or_else(|| panic!("the server is stopped"))
    }

    fn try_psql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut command = self.command("psql");
        command.args(["-X", "-A", "-t", "-q", "-F", "|", "-v", "ON_ERROR_STOP=1", "-f", "-", "-d", database]);
        let output = run_with_input(&mut command, sql.as_bytes());
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        if process.ended().is_some() {
            return;
        }
        process.signal(Signal::QUIT);
        // An immediate shutdown takes the postmaster at most 5 s; the process is killed when this value goes.
        let end = std::time::Instant::now() + Duration::from_secs(8);
        while process.ended().is_none() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let program = command.get_program().display().to_string();
    let run = |command: &mut Command| -> std::io::Result<Output> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            // A program that stops at an error does not read the rest: its exit status tells.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            child.wait_with_output()
        })
    };
    run(command).unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
}

fn children_of(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
