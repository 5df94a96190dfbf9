//! Waiting for a condition with a limit: never a bare sleep, never forever.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Calls `attempt` until it returns a value; panics after `limit` with what was being waited for.
pub fn wait_until<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(started.elapsed() < limit, "gave up after {limit:?} of waiting for {what}");
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
