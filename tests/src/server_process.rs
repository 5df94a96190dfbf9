//! A server as a child of the test: started with its output in a log file, stopped by its pid, never left behind.
//!
//! Servers stay in the process group of the test, so that a test runner that ends a hanging test ends them too.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long an orderly stop may take on a loaded machine.
const STOP_LIMIT: Duration = Duration::from_secs(90);

#[derive(Debug)]
pub struct ServerProcess {
    name: String,
    log: PathBuf,
    child: Child,
    status: Option<ExitStatus>,
}

impl ServerProcess {
    /// Starts `command`, appending what it prints to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let output = || -> File {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(log)
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", log.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({}): {error}", command.get_program().display()));
        Self { name: name.to_owned(), log: log.to_owned(), child, status: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status once the server has ended, else nothing.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status =
                self.child.try_wait().unwrap_or_else(|error| panic!("cannot wait for {}: {error}", self.name));
        }
        self.status
    }

    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits for a condition on a running server; panics with the end of its log when it ends first or is late.
    pub fn wait_until<T>(&mut self, what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + limit;
        loop {
            if let Some(value) = attempt() {
                return value;
            }
            if let Some(status) = self.ended() {
                panic!("{} ended ({status}) before {what}; its log ends with:\n{}", self.name, self.log_tail());
            }
            assert!(
                Instant::now() < end,
                "gave up after {limit:?} of waiting for {what}; the log of {} ends with:\n{}",
                self.name,
                self.log_tail()
            );
            sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal; a server that has already ended is left alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_some() {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.unwrap_or_else(|| panic!("{} has no pid", self.name));
        kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
    }

    /// Sends a signal and waits for the end.
    pub fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait_for_end(STOP_LIMIT)
    }

    pub fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "{} did not end within {limit:?}; its log ends with:\n{}",
                self.name,
                self.log_tail()
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// Ends the server at once, whatever state it is in. Does not panic: this is what drops do.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        if let Ok(status) = self.child.wait() {
            self.status = Some(status);
        }
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
        }
    }
}
