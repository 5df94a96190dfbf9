//! Proves that the harness works, so that a whole-system test that fails means pgark and not its surroundings.

#![allow(clippy::unwrap_used, reason = "tests")]

mod fault_proxy;
mod object_storage;
mod postgres_server;
mod programs;
