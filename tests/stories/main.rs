//! Whole stories on real servers: a cluster is backed up and archived, something happens to it, it is restored, started
//! and looked at. Nothing here knows the inside of pgark: programs, their exit codes and PostgreSQL's own tools speak.

#![allow(clippy::unwrap_used, reason = "tests")]

mod recovery_targets;
mod timelines;
