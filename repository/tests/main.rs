//! Tests of the repository against real stores. Names carry the rows of the failure catalogue that they cover.
//!
//! `contract` runs on every store; tests on Ceph's gateway are ignored, as in the harness, and belong to the full suite
//! (`make test-full`). Tests whose names begin with `heavy_` take long or measure.

#![allow(clippy::unwrap_used, clippy::large_futures, reason = "tests")]

mod backups;
mod contract;
mod deletion;
mod durability;
mod format;
mod local_directory;
mod lost_answers;
mod manifest_mismatch;
mod memory;
mod pieces;
mod place;
mod racing_creates;
mod sample_backup;
mod secrets;
mod wal_archive;
