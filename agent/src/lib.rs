//! (being written)

pub mod replication;
