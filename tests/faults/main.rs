//! Faults: programs that are killed, disks that are full, connections that are cut, servers that go away, and stored
//! bytes that rot. Each test breaks one thing on real servers, and then looks at what counts: the exit code and the
//! sentence, that nothing half-done is visible, that the next run works, and that nothing damaged is ever restored.
//!
//! Tests whose names begin with `soak_` do the same for long and run in `make soak`; `heavy_` ones want the machine.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; what was checked is printed")]

mod connection;
mod damage;
mod damaged_source;
mod delta;
mod disk_full;
mod hostile_repository;
mod hostile_server;
mod interrupted;
mod killed_archive_command;
mod killed_backup;
mod killed_expire;
mod killed_restore;
mod memory;
mod object_store;
mod random_events;
mod receiving;
mod repositories;
mod repository_files;
mod site;
mod strace;
mod streamed_wal;
mod tmpfs;
mod verify;
