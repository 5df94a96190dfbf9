//! The top of every program: run the command, say in one line why it failed, and choose the exit code.
//!
//! Errors are `anyhow` chains. What decides the code travels inside the chain: a [`Failure`] names it outright, a
//! library's error is judged by the program's own function from error to [`Verdict`]. The first link that says
//! something wins, so a command can overrule its libraries. Nothing is redacted here, because secrets have a type that
//! does not print and never get into a message.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo};

use crate::configuration::{ConfigurationError, NotifyResult};
use crate::exit_code::{ExitCode, ExitPolicy};
use crate::logging::{self, LogFormat};
use crate::notify::notify_end;
use crate::output::printable;
use crate::terminal;

/// An error that knows its exit code, and often what the user can do.
#[derive(Debug)]
pub struct Failure {
    verdict: Verdict,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What follows from an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub code: ExitCode,
    /// What the user can do, as one sentence.
    pub hint: Option<String>,
}

/// What [`run`] needs to know about a program.
#[derive(Clone, Copy)]
pub struct Program {
    /// As it stands before its error messages, `pgark-agent`.
    pub name: &'static str,
    /// Who reads the exit code.
    pub policy: ExitPolicy,
    /// What follows from one link of an error chain, where the program knows it.
    pub judge: fn(&(dyn Error + 'static)) -> Option<Verdict>,
}

impl Failure {
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { verdict: Verdict { code, hint: None }, message: message.into(), source: None }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.verdict.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl Verdict {
    pub fn new(code: ExitCode) -> Self {
        Self { code, hint: None }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Runs a program from its arguments to its exit code. `body` parses the arguments (a `clap::Error` may just be
/// returned), loads the configuration, starts logging and does the work.
pub fn run(program: Program, body: impl FnOnce() -> anyhow::Result<ExitCode>) -> std::process::ExitCode {
    std::panic::set_hook(Box::new(move |panic| report_panic(program.name, panic)));
    let (code, error) = match std::panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(code)) => (code, None),
        Ok(Err(error)) => (report(program, &error), Some(error)),
        // The hook has said what happened. Unwinding ends here, because PostgreSQL counts the death of a command by
        // a signal in another way than an exit code.
        Err(payload) => {
            discard(payload);
            (ExitCode::Panicked, None)
        }
    };
    let number = code.number(program.policy);
    let result = match code {
        ExitCode::Done => NotifyResult::Success,
        ExitCode::SourceDamaged => NotifyResult::Warning,
        _ => NotifyResult::Failure,
    };
    let hint = error.as_ref().and_then(|error| judge(program, error).hint);
    notify_end(result, number, error.as_ref().map(chained), hint);
    std::process::ExitCode::from(number)
}

/// What [`run`] would say about an error, and what follows from it: for reports that hold failures.
pub fn explain(error: &anyhow::Error, judge_link: fn(&(dyn Error + 'static)) -> Option<Verdict>) -> (String, Verdict) {
    let program = Program { name: "", policy: ExitPolicy::Ordinary, judge: judge_link };
    (chained(error), judge(program, error))
}

/// Drops what a panic carried. Its destructor could panic again; then it is better to leak it.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(again) = std::panic::catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(again);
    }
}

fn report(program: Program, error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        // `--help` and `--version` arrive here too. A closed pipe is no reason to complain.
        drop(usage.print());
        return if usage.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
    }
    let Verdict { code, hint } = judge(program, error);
    // Several faults of a configuration are several lines.
    let message = chained(error);
    match logging::format() {
        LogFormat::Json => tracing::error!(
            target: "pgark_command",
            exit_code = code.number(program.policy),
            hint,
            "{message}"
        ),
        LogFormat::Text => {
            for line in message.lines() {
                terminal::write_line(&format!("{}: error: {line}", program.name));
            }
            if let Some(hint) = hint {
                terminal::write_line(&format!("hint: {hint}"));
            }
        }
    }
    code
}

/// The chain on one line; each `source` adds a part. Some libraries repeat their source in their own words: what has
/// been said already is left out.
fn chained(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for link in error.chain() {
        let text = link.to_string();
        // Names come from servers and repositories, and must not command the terminal. Only the faults of a
        // configuration are lines of our own.
        let text = if link.is::<ConfigurationError>() { text } else { printable(&text) };
        if message.is_empty() {
            message = text;
        } else if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
    }
    message
}

fn judge(program: Program, error: &anyhow::Error) -> Verdict {
    let verdict = error.chain().find_map(|link| {
        if let Some(failure) = link.downcast_ref::<Failure>() {
            return Some(failure.verdict.clone());
        }
        if link.is::<ConfigurationError>() {
            return Some(Verdict::new(ExitCode::Usage));
        }
        (program.judge)(link)
    });
    verdict.unwrap_or(Verdict::new(ExitCode::Failed))
}

fn report_panic(name: &str, panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("(no message)").replace('\n', " ");
    let place = panic.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
    match logging::format() {
        LogFormat::Json => {
            tracing::error!(target: "pgark_command", place, "internal error: {message}")
        }
        LogFormat::Text => {
            terminal::write_line(&format!(
                "{name}: error: internal error at {place}: {message} (this is a bug; please report it)"
            ));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use anyhow::Context;

    use super::*;

    const PROGRAM: Program = Program { name: "pgark-test", policy: ExitPolicy::Ordinary, judge: judge_io };

    fn judge_io(error: &(dyn Error + 'static)) -> Option<Verdict> {
        let error = error.downcast_ref::<std::io::Error>()?;
        match error.kind() {
            std::io::ErrorKind::InvalidData => Some(Verdict::new(ExitCode::Damaged).with_hint("look at the disk")),
            _ => None,
        }
    }

    #[test]
    fn a_failure_anywhere_in_the_chain_gives_the_code() {
        let failure = Failure::new(ExitCode::Unreachable, "there is no backup before the target").with_hint("go later");
        let error = anyhow::Error::from(failure).context("choose the backup");
        assert_eq!(judge(PROGRAM, &error), Verdict::new(ExitCode::Unreachable).with_hint("go later"));
        assert_eq!(chained(&error), "choose the backup: there is no backup before the target");
    }

    #[test]
    fn a_failure_overrules_its_source() {
        let damaged = std::io::Error::from(std::io::ErrorKind::InvalidData);
        let judged = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::InvalidData)).context("read");
        assert_eq!(judge(PROGRAM, &judged).code, ExitCode::Damaged);
        let overruled = anyhow::Error::from(Failure::new(ExitCode::Failed, "give up").with_source(damaged));
        assert_eq!(judge(PROGRAM, &overruled), Verdict::new(ExitCode::Failed));
        assert!(chained(&overruled).starts_with("give up: "));
    }

    #[test]
    fn b35_what_a_library_repeats_is_said_once() {
        let error = anyhow::anyhow!("connection refused").context("send: connection refused").context("store x");
        assert_eq!(chained(&error), "store x: send: connection refused");
    }

    #[test]
    fn names_from_elsewhere_do_not_command_the_terminal() {
        let error = anyhow::anyhow!("`a\nb\u{1b}[2J` is not allowed").context("read");
        assert_eq!(chained(&error), "read: `a\\nb\\u{1b}[2J` is not allowed");
    }

    #[test]
    fn other_errors_fail_and_configuration_is_usage() {
        assert_eq!(judge(PROGRAM, &anyhow::anyhow!("no")).code, ExitCode::Failed);
        let configuration: anyhow::Result<()> =
            Err(ConfigurationError::Missing { path: "/x".into() }).context("read the configuration");
        assert_eq!(judge(PROGRAM, &configuration.unwrap_err()).code, ExitCode::Usage);
    }
}
