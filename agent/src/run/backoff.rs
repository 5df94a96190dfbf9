//! How long to wait before the next try: longer each time, and never at the same moment as everybody else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double from half a second on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The next wait: between half of its full length and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let full = Duration::from_millis(500).saturating_mul(1 << self.tries.min(10)).min(LONGEST);
        self.tries += 1;
        // Agents that lost the same server come back at different moments; nothing depends on how random this is.
        let noise = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos() % 1000;
        full / 2 + full.mul_f64(f64::from(noise) / 2000.0)
    }

    /// Begins with short waits again after something worked for a while.
    pub(crate) fn calm_down(&mut self, worked_for: Duration) {
        if worked_for > Duration::from_secs(10) {
            self.tries = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_bounded() {
        let mut backoff = Backoff::default();
        let first = backoff.next();
        assert!((Duration::from_millis(250)..=Duration::from_millis(500)).contains(&first), "{first:?}");
        let later = (0..40).map(|_| backoff.next()).last().unwrap_or_default();
        assert!((LONGEST / 2..=LONGEST).contains(&later), "{later:?}");
        backoff.calm_down(Duration::from_secs(60));
        assert!(backoff.next() <= Duration::from_millis(500));
    }
}
