//! Random sequences that a seed replays.

use crate::environment::from_environment;

/// A generator of numbers, the same ones for the same seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with `SEED`, or where that is not set with another seed in each process, and prints it.
    pub fn from_environment() -> Self {
        Self::new(from_environment("SEED", u64::from(std::process::id())))
    }

    /// Begins with a seed, which it prints.
    #[allow(clippy::print_stdout, reason = "shown when the test fails")]
    pub fn new(seed: u64) -> Self {
        println!("SEED={seed}");
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}
