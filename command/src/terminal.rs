//! The one way to standard error: a progress bar steps aside while a line is written.
//!
//! A standard error that is closed is ignored: there is nobody left to tell, and the work goes on.

use std::io::{self, Write};
use std::sync::Mutex;

use indicatif::ProgressBar;

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Lets `bar` step aside from now on; `None` ends that.
pub(crate) fn set_bar(bar: Option<ProgressBar>) {
    if let Ok(mut current) = BAR.lock() {
        *current = bar;
    }
}

/// Writes a line, with its newline, in one call, so that lines of several threads do not mix.
pub(crate) fn write_line(line: &str) {
    drop(Stderr.write_all(format!("{line}\n").as_bytes()));
}

/// Standard error for the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not `lock`: a panic inside of the bar's own code must still be able to report itself.
        let bar = BAR.try_lock().ok().and_then(|bar| bar.clone());
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write_all(bytes)),
            None => io::stderr().write_all(bytes),
        }?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
