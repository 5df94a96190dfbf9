//! What the caller of a benchmark or a long test chooses by variables.

use std::str::FromStr;

/// The value of an environment variable, or the default where it is not set or makes no sense.
pub fn from_environment<T: FromStr>(variable: &str, default: T) -> T {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
