//! Logging to standard error, as text for people or as JSON for collectors.
//!
//! ERROR means that a person must act. The programs write it through `run`, once, where the error ends.

use std::io::IsTerminal;
use std::sync::OnceLock;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use crate::configuration::Environment;
use crate::notify::WarningsForNotify;
use crate::options::GlobalOptions;
use crate::terminal::Stderr;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// The format that was started; text before that.
pub(crate) fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or(LogFormat::Text)
}

/// Starts logging for the whole process. `usual` is the level without `-v` and `-q`: INFO for commands that a person
/// watches, WARN for those whose output lands in PostgreSQL's log. A second call changes nothing.
pub fn start_logging(options: &GlobalOptions, usual: Level, environment: &Environment) {
    let (format, is_understood) = options.log_format(environment);
    if FORMAT.set(format).is_err() {
        return;
    }
    let colours = std::io::stderr().is_terminal() && environment.get("NO_COLOR").is_none();
    let level = level(usual, options.verbose, options.quiet);
    let started = tracing::subscriber::set_global_default(subscriber(format, level, colours, || Stderr));
    debug_assert!(started.is_ok(), "only this function starts logging");
    if !is_understood {
        tracing::warn!("PGARK_LOG_FORMAT is neither `text` nor `json`; logging as text");
    }
}

fn level(usual: Level, verbose: u8, quiet: bool) -> Level {
    const STEPS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
    if quiet {
        return Level::ERROR;
    }
    let start = STEPS.iter().position(|step| *step == usual).unwrap_or(2);
    STEPS[(start + usize::from(verbose)).min(STEPS.len() - 1)]
}

fn subscriber<W>(format: LogFormat, level: Level, colours: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // The details of HTTP and TLS libraries stay out until everything is asked for.
    let of_libraries = if level == Level::TRACE { Level::DEBUG } else { level.min(Level::WARN) };
    let filter = Targets::new().with_target("pgark", level).with_default(LevelFilter::from_level(of_libraries));
    // With `log_internal_errors`, a closed standard error would be a panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => Box::new(lines.with_ansi(colours).with_target(level >= Level::DEBUG).with_filter(filter)),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).with_ansi(false).with_filter(filter)),
    };
    Registry::default().with(lines).with(WarningsForNotify.with_filter(LevelFilter::WARN))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: Level) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        tracing::subscriber::with_default(subscriber(format, level, false, move || writer.clone()), || {
            tracing::info!(target: "pgark_agent::backup", segment = "00000001", "stored");
            tracing::debug!(target: "pgark_agent::backup", "detail");
            tracing::info!(target: "hyper", "chatter");
            tracing::error!(target: "hyper", "loud");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn levels_move_by_the_options() {
        assert_eq!(level(Level::INFO, 0, false), Level::INFO);
        assert_eq!(level(Level::WARN, 1, false), Level::INFO);
        assert_eq!(level(Level::INFO, 1, false), Level::DEBUG);
        assert_eq!(level(Level::INFO, 200, false), Level::TRACE);
        assert_eq!(level(Level::INFO, 0, true), Level::ERROR);
    }

    #[test]
    fn text_holds_fields_and_no_chatter_of_libraries() {
        let text = logged(LogFormat::Text, Level::INFO);
        assert!(text.contains(" INFO stored segment=\"00000001\""), "{text}");
        assert!(text.contains("loud"), "{text}");
        assert!(!text.contains("chatter") && !text.contains("detail") && !text.contains('\u{1b}'), "{text}");
        assert!(logged(LogFormat::Text, Level::DEBUG).contains("detail"));
        assert!(!logged(LogFormat::Text, Level::DEBUG).contains("chatter"));
        assert!(logged(LogFormat::Text, Level::TRACE).contains("chatter"));
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(LogFormat::Json, Level::INFO);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["message"], "stored");
        assert_eq!(lines[0]["segment"], "00000001");
        assert_eq!(lines[0]["level"], "INFO");
    }
}
