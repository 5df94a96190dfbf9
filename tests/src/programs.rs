//! pgark's own programs: built when they are not, run as a user would run them, and measured.

mod build;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

pub use build::program_path;

use crate::test_user::TestUser;
use crate::wait::wait_until;

/// How long a program may take before a test gives it up.
const LIMIT: Duration = Duration::from_secs(300);

/// A run of a program that is being put together. It sees no settings of the tester: no `PGARK_…`, `PG…`, `AWS_…`,
/// `AZURE_…` or `GOOGLE_…` variables.
#[derive(Debug)]
pub struct Program {
    command: Command,
    limit: Duration,
}

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    /// Nothing when a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub duration: Duration,
    /// The most resident memory, as the kernel counts it; read every few milliseconds while the program ran.
    pub peak_memory_bytes: u64,
}

/// A program that is running. It is killed when dropped.
#[derive(Debug)]
pub struct RunningProgram {
    name: String,
    child: Child,
    started: Instant,
    limit: Duration,
    peak_memory: Option<JoinHandle<u64>>,
    stdout: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<()>>,
    stdout_text: Arc<Mutex<Vec<u8>>>,
    stderr_text: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Program {
    pub fn agent() -> Self {
        Self::at(&program_path("pgark-agent"))
    }

    pub fn archive_command() -> Self {
        Self::at(&program_path("pgark-archive-command"))
    }

    pub fn restore() -> Self {
        Self::at(&program_path("pgark-restore"))
    }

    /// Any other program, such as `age` or `zstd`.
    pub fn at(path: &Path) -> Self {
        let mut command = Command::new(path);
        for (variable, _) in std::env::vars_os() {
            let theirs = ["PG", "AWS_", "AZURE_", "GOOGLE_"];
            if variable.to_str().is_some_and(|name| theirs.iter().any(|prefix| name.starts_with(prefix))) {
                command.env_remove(variable);
            }
        }
        command.env("HOME", "/nonexistent").env("TZ", "UTC").current_dir("/");
        Self { command, limit: LIMIT }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn config(self, path: &Path) -> Self {
        self.arg("--config").arg(path)
    }

    pub fn current_dir(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Runs it as the user that servers run as, and not as whoever runs the tests.
    pub fn as_test_user(mut self) -> Self {
        TestUser::get().run(&mut self.command);
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.start().wait()
    }

    /// Runs it to its end; panics with its messages unless it exits 0.
    pub fn succeed(self) -> Outcome {
        let shown = format!("{:?}", self.command);
        let outcome = self.run();
        assert_eq!(outcome.code, Some(0), "{shown} failed:\n{}{}", outcome.stdout, outcome.stderr);
        outcome
    }

    /// Runs it to its end; panics with its messages unless it exits with `code`.
    pub fn fail_with(self, code: i32) -> Outcome {
        let shown = format!("{:?}", self.command);
        let outcome = self.run();
        let said = || format!("{shown} was to exit with {code}:\n{}{}", outcome.stdout, outcome.stderr);
        assert_eq!(outcome.code, Some(code), "{}", said());
        outcome
    }

    /// Starts it and returns at once.
    pub fn start(mut self) -> RunningProgram {
        let name = self.command.get_program().display().to_string();
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let (stdout_text, stderr_text) = (Arc::default(), Arc::default());
        let (end, ended) = channel::<()>();
        let stdout = child.stdout.take().map(|stdout| collect(stdout, Arc::clone(&stdout_text)));
        let stderr = child.stderr.take().map(|stderr| collect(stderr, Arc::clone(&stderr_text)));
        let pid = child.id();
        let peak_memory = Some(spawn(move || {
            // Dropped, and so disconnected, when there is nothing more to read about the process.
            let _end = end;
            watch_memory(pid)
        }));
        RunningProgram {
            name,
            child,
            started: Instant::now(),
            limit: self.limit,
            peak_memory,
            stdout,
            stderr,
            stdout_text,
            stderr_text,
            ended,
        }
    }
}

impl RunningProgram {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        text(&self.stdout_text)
    }

    pub fn stderr(&self) -> String {
        text(&self.stderr_text)
    }

    /// Waits until it has printed `expected` to standard error.
    pub fn wait_for_stderr(&self, expected: &str) {
        let what = format!("{expected:?} from {}", self.name);
        wait_until(&what, self.limit, || self.stderr().contains(expected).then_some(()));
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.unwrap_or_else(|| panic!("{} has no pid", self.name));
        // A program that has ended, but was not waited for, takes a signal too; so this fails only by mistake.
        kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
    }

    /// Kills it as a crash would, unless it has ended, and waits until it is gone.
    pub fn kill9(mut self) -> Outcome {
        self.child.kill().unwrap_or_else(|error| panic!("cannot kill {}: {error}", self.name));
        self.wait()
    }

    /// Waits for its end; kills it and panics with its messages when that takes too long.
    pub fn wait(mut self) -> Outcome {
        // The watcher of its memory notices the end of the process at once, without reaping it.
        let left = self.limit.saturating_sub(self.started.elapsed());
        let late = matches!(self.ended.recv_timeout(left), Err(std::sync::mpsc::RecvTimeoutError::Timeout));
        let duration = self.started.elapsed();
        if late {
            drop(self.child.kill());
        }
        let status = self.child.wait().unwrap_or_else(|error| panic!("cannot wait for {}: {error}", self.name));
        let peak_memory_bytes = self.peak_memory.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        for thread in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            drop(thread.join());
        }
        let (stdout, stderr) = (self.stdout(), self.stderr());
        assert!(!late, "{} did not end within {:?}; it printed:\n{stdout}{stderr}", self.name, self.limit);
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        Outcome { code: status.code(), signal, stdout, stderr, duration, peak_memory_bytes }
    }
}

impl Drop for RunningProgram {
    fn drop(&mut self) {
        // After `wait` there is nothing left to kill, and both do nothing.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn collect(mut from: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    spawn(move || {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..length]);
        }
    })
}

fn text(bytes: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// Reads the high-water mark of a process until it has ended; a process that ended has none any more.
fn watch_memory(pid: u32) -> u64 {
    let mut peak = 0;
    while let Some(now) = high_water_mark(pid) {
        peak = peak.max(now);
        sleep(Duration::from_millis(2));
    }
    peak
}

fn high_water_mark(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}
