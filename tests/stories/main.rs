//! Whole stories on real servers: a cluster is backed up and archived, something happens to it, it is restored, started
//! and looked at. Nothing here knows the inside of pgark: programs, their exit codes and PostgreSQL's own tools speak.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests; what was measured is printed"
)]

mod archive_command;
mod chains;
mod check;
mod connections;
mod consolidate;
mod drill;
mod encryption;
mod every_version;
mod expire;
mod included;
mod incremental;
mod look_ahead;
mod moments;
mod notify;
mod odd_files;
mod packaging;
mod prefetch;
mod random_chains;
mod recovery_targets;
mod refusals;
mod reports;
mod several_segments;
mod standard_restore;
mod standby;
mod standby_backup;
mod tablespaces;
mod timelines;
mod under_load;
mod whole_loop;
