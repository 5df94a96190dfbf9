//! Tells a command of the user's how things went (`[notify]`).
//!
//! A command of pgark that is worth telling about says so once, with [`notify_about`]; its end is then told by `run`, and
//! what it logged as a warning goes along. A service has no end to wait for, so its warnings and errors are told when
//! they are logged. The event goes to the standard input of the user's command and nowhere else: nothing of it is ever
//! part of a shell command. Whatever happens to that command is a warning, and changes no exit code.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::configuration::{Configuration, NotifyConfiguration, NotifyResult};

/// The version of the event; it grows when a field changes its meaning or goes away, not when one is added.
const EVENT_VERSION: u32 = 1;
/// An event fits into a pipe, so that a command that does not read it holds nobody up.
const MOST_WARNINGS: usize = 20;
const LONGEST_TEXT: usize = 2000;
/// A service that warns again and again is told once in this time.
const REPEAT: Duration = Duration::from_secs(3600);
const POLL: Duration = Duration::from_millis(20);

static ABOUT: Mutex<Option<About>> = Mutex::new(None);

/// What is being done, and who wants to know.
struct About {
    event: &'static str,
    cluster: String,
    settings: NotifyConfiguration,
    /// What the user's command is told of a success.
    message: Option<String>,
    warnings: Vec<String>,
    /// Events of a service, and the thread's word that all were told.
    service: Option<Service>,
}

struct Service {
    queue: SyncSender<Notice>,
    done: Receiver<()>,
    /// When which message was told last.
    told: HashMap<String, Instant>,
}

#[derive(Serialize)]
struct Notice {
    version: u32,
    event: &'static str,
    result: NotifyResult,
    cluster: String,
    host: String,
    time: Timestamp,
    /// Nothing while a service goes on.
    exit_code: Option<u8>,
    message: String,
    hint: Option<String>,
    warnings: Vec<String>,
}

/// From here on, how this process ends is told to the command of `[notify]`.
pub fn notify_about(event: &'static str, configuration: &Configuration) {
    about(event, configuration, false);
}

/// The same for a service, which also tells what it warns of while it goes on.
pub fn notify_while(event: &'static str, configuration: &Configuration) {
    about(event, configuration, true);
}

/// What a success is told as.
pub fn notify_message(message: impl Into<String>) {
    if let Some(about) = &mut *lock() {
        about.message = Some(message.into());
    }
}

fn about(event: &'static str, configuration: &Configuration, is_service: bool) {
    let settings = configuration.notify.clone();
    if settings.command.is_none() {
        return;
    }
    let service = is_service.then(|| {
        let (queue, notices) = sync_channel::<Notice>(64);
        let (finished, done) = sync_channel(1);
        let settings = settings.clone();
        std::thread::spawn(move || {
            notices.iter().for_each(|notice| tell(&settings, &notice));
            drop(finished);
        });
        Service { queue, done, told: HashMap::new() }
    });
    let cluster = configuration.cluster.name.clone();
    *lock() = Some(About { event, cluster, settings, message: None, warnings: Vec::new(), service });
}

fn lock() -> MutexGuard<'static, Option<About>> {
    ABOUT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells how the process ends.
pub(crate) fn notify_end(result: NotifyResult, exit_code: u8, message: Option<String>, hint: Option<String>) {
    let Some(about) = lock().take() else { return };
    // A success with warnings is one that somebody should look at.
    let result = match result {
        NotifyResult::Success if !about.warnings.is_empty() => NotifyResult::Warning,
        result => result,
    };
    let message = message.or_else(|| about.message.clone()).unwrap_or_else(|| match exit_code {
        0 => format!("{} is done", about.event),
        code => format!("{} ended with exit code {code}", about.event),
    });
    let mut notice = about.notice(result, message);
    notice.exit_code = Some(exit_code);
    notice.hint = hint;
    notice.warnings.clone_from(&about.warnings);
    let is_wanted = about.settings.on.contains(&result);
    if let Some(Service { queue, done, .. }) = about.service {
        if is_wanted {
            drop(queue.try_send(notice));
        }
        drop(queue);
        // The sender sends nothing: what ends the wait is that it goes.
        done.recv_timeout(about.settings.deadline * 2).unwrap_or_default();
    } else if is_wanted {
        tell(&about.settings, &notice);
    }
}

impl About {
    fn notice(&self, result: NotifyResult, message: String) -> Notice {
        Notice {
            version: EVENT_VERSION,
            event: self.event,
            result,
            cluster: self.cluster.clone(),
            host: host_name(),
            time: Timestamp::now(),
            exit_code: None,
            message: shortened(message),
            hint: None,
            warnings: Vec::new(),
        }
    }

    fn logged(&mut self, level: Level, message: String) {
        let message = shortened(message);
        let result = if level == Level::ERROR { NotifyResult::Failure } else { NotifyResult::Warning };
        if self.service.is_none() {
            if self.warnings.len() < MOST_WARNINGS {
                self.warnings.push(message);
            }
            return;
        }
        if !self.settings.on.contains(&result) {
            return;
        }
        let notice = self.notice(result, message.clone());
        if let Some(service) = &mut self.service {
            let now = Instant::now();
            service.told.retain(|_, told| now.duration_since(*told) < REPEAT);
            // What comes faster than it can be told is in the log.
            if service.told.insert(message, now).is_none() {
                drop(service.queue.try_send(notice));
            }
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.push('…');
    }
    text
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Runs the user's command. Its standard output goes nowhere: that of pgark may be JSON that somebody reads.
fn tell(settings: &NotifyConfiguration, notice: &Notice) {
    let Some(command) = &settings.command else { return };
    let outcome = start(command, notice).and_then(|child| wait(child, settings.deadline));
    match outcome {
        Ok(None) => {}
        Ok(Some(problem)) => tracing::warn!("notify.command {problem}"),
        Err(error) => tracing::warn!(%error, "notify.command cannot be run"),
    }
}

fn start(command: &str, notice: &Notice) -> std::io::Result<Child> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        let mut event = serde_json::to_vec(notice)?;
        event.push(b'\n');
        // A command that does not read has its own reasons.
        drop(input.write_all(&event));
    }
    Ok(child)
}

/// What went wrong, if anything did.
fn wait(mut child: Child, deadline: Duration) -> std::io::Result<Option<String>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!status.success()).then(|| format!("ended with {status}")));
        }
        if started.elapsed() >= deadline {
            // With everything that it has started.
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                kill_process_group(group, Signal::KILL)?;
            }
            child.wait()?;
            return Ok(Some(format!("was killed after {} s (notify.deadline)", deadline.as_secs_f64())));
        }
        std::thread::sleep(POLL);
    }
}

/// Takes note of warnings and errors of pgark itself while they are logged.
pub(crate) struct WarningsForNotify;

impl<S: Subscriber> Layer<S> for WarningsForNotify {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // What ends the program is told then, and what goes wrong here is only logged.
        let is_own = metadata.target() == "pgark_command" || metadata.target() == module_path!();
        if is_own || !metadata.target().starts_with("pgark") {
            return;
        }
        // Never in the way of a thread that holds it: that one is not logging for the user.
        let Ok(mut about) = ABOUT.try_lock() else { return };
        if let Some(about) = &mut *about {
            let mut text = Text::default();
            event.record(&mut text);
            about.logged(*metadata.level(), format!("{}{}", text.message, text.fields));
        }
    }
}

/// An event as one line: its message, then its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a text does not fail.
        match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        }
        .unwrap_or_default();
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
