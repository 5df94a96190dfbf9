//! How far a long transfer has come: a bar on a terminal, a log line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::logging::{self, LogFormat};
use crate::options::GlobalOptions;
use crate::output::{format_duration, format_size};
use crate::terminal;

/// Often enough to see that something moves, seldom enough for a log that is kept.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

const BAR: &str = "{prefix} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressDisplay {
    Bar,
    Lines,
    Hidden,
}

impl ProgressDisplay {
    /// A bar for a person at a terminal, lines for a log, nothing with `--quiet`. Call it after logging has started.
    pub fn detect(options: &GlobalOptions) -> Self {
        if options.quiet {
            Self::Hidden
        } else if logging::format() == LogFormat::Text && std::io::stderr().is_terminal() {
            Self::Bar
        } else {
            Self::Lines
        }
    }
}

/// Bytes done of an estimate. It can be shared between tasks; the bar goes away when it is finished or dropped.
#[derive(Debug)]
pub struct Progress {
    label: &'static str,
    done: AtomicU64,
    total: AtomicU64,
    started: Instant,
    show: Show,
}

#[derive(Debug)]
enum Show {
    Bar(ProgressBar),
    /// When the last line was written, or the start.
    Lines(Mutex<Instant>),
    Hidden,
}

impl Progress {
    /// Starts at zero of an unknown total. `label` is a word like "backup".
    pub fn start(label: &'static str, display: ProgressDisplay) -> Self {
        let started = Instant::now();
        let show = match display {
            ProgressDisplay::Bar => Show::Bar(bar(label)),
            ProgressDisplay::Lines => Show::Lines(Mutex::new(started)),
            ProgressDisplay::Hidden => Show::Hidden,
        };
        Self { label, done: AtomicU64::new(0), total: AtomicU64::new(0), started, show }
    }

    /// Sets how many bytes are expected; it may be an estimate and may change.
    pub fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
        if let Show::Bar(bar) = &self.show {
            bar.set_length(bytes.max(self.done.load(Ordering::Relaxed)));
        }
    }

    /// Sets how many bytes are done.
    pub fn set(&self, bytes: u64) {
        self.done.store(bytes, Ordering::Relaxed);
        self.update(bytes);
    }

    /// Adds to the bytes that are done.
    pub fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.update(done);
    }

    /// Takes the bar away. The summary that follows is the command's.
    pub fn finish(self) {}

    fn update(&self, done: u64) {
        match &self.show {
            Show::Bar(bar) => {
                // The server's estimate is sometimes short; a bar beyond its end would look broken.
                if bar.length().is_some_and(|length| length < done) {
                    bar.set_length(done);
                }
                bar.set_position(done);
            }
            Show::Lines(last) => {
                // Who does not get the lock need not write either.
                if let Ok(mut last) = last.try_lock() {
                    let now = Instant::now();
                    if is_due(*last, now) {
                        *last = now;
                        self.log(done, now.duration_since(self.started));
                    }
                }
            }
            Show::Hidden => {}
        }
    }

    fn log(&self, done: u64, elapsed: Duration) {
        let line = line(self.label, done, self.total.load(Ordering::Relaxed), elapsed);
        tracing::info!(target: "pgark_command", "{line}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Show::Bar(bar) = &self.show {
            bar.finish_and_clear();
            terminal::set_bar(None);
        }
    }
}

fn is_due(last: Instant, now: Instant) -> bool {
    now.duration_since(last) >= LINE_INTERVAL
}

fn bar(label: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // The template is a constant, and a test reads it; without it the default bar is shown.
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(label);
    terminal::set_bar(Some(bar.clone()));
    bar
}

/// `backup: 1.2 GiB of 4.0 GiB (30 %), 104.3 MiB/s, 27.0 s left`. Rate and time left are averages since the start.
fn line(label: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
    let mut line = format!("{label}: {}", format_size(done));
    if total > 0 {
        let percent = (u128::from(done) * 100 / u128::from(total)).min(100);
        line.push_str(&format!(" of {} ({percent} %)", format_size(total.max(done))));
    }
    line.push_str(&format!(", {}/s", format_size(rate as u64)));
    if rate >= 1.0 && total > done {
        // A stalled transfer would take centuries; a day is enough to show that it is stalled.
        let left = ((total - done) as f64 / rate).min(86_400.0);
        line.push_str(&format!(", {} left", format_duration(Duration::from_secs_f64(left))));
    }
    line
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let mib = 1 << 20;
        assert_eq!(
            line("backup", 1200 * mib, 4000 * mib, Duration::from_secs(12)),
            "backup: 1.2 GiB of 3.9 GiB (30 %), 100.0 MiB/s, 28.0 s left"
        );
        assert_eq!(line("backup", 10, 0, Duration::from_secs(10)), "backup: 10 B, 1 B/s");
        assert_eq!(line("backup", 0, 100, Duration::ZERO), "backup: 0 B of 100 B (0 %), 0 B/s");
        // More than the estimate is no error and is never above 100 %.
        assert_eq!(line("backup", 200, 100, Duration::from_secs(1)), "backup: 200 B of 200 B (100 %), 200 B/s");
    }

    #[test]
    fn lines_are_seldom() {
        let start = Instant::now();
        assert!(!is_due(start, start + Duration::from_secs(9)));
        assert!(is_due(start, start + Duration::from_secs(10)));
    }

    #[test]
    fn the_bar_follows_the_bytes_and_outgrows_a_short_estimate() {
        let progress = Progress::start("backup", ProgressDisplay::Bar);
        progress.set_total(100);
        progress.set(50);
        progress.advance(100);
        let Show::Bar(bar) = &progress.show else { panic!("a bar was asked for") };
        assert_eq!((bar.position(), bar.length()), (150, Some(150)));
        let bar = bar.clone();
        progress.finish();
        assert!(bar.is_finished());
    }

    #[test]
    fn the_template_of_the_bar_is_valid() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }

    proptest! {
        #[test]
        fn any_progress_can_be_shown(done: u64, total: u64, milliseconds in 0_u64..1_000_000_000) {
            prop_assert!(line("x", done, total, Duration::from_millis(milliseconds)).starts_with("x: "));
        }
    }
}
