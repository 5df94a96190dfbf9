#![allow(clippy::unwrap_used, reason = "tests")]

mod real;
mod synthetic;
