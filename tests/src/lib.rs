//! Real servers for the whole-system tests: PostgreSQL, S3, Azure, a proxy that breaks connections, and pgark's own
//! programs.
//!
//! Everything here panics with a sentence when something is missing or fails: a test that cannot have its server must
//! fail, never pass. Servers listen on a private unix socket or on 127.0.0.1, run as an unprivileged user when the
//! tests run as root (PostgreSQL refuses root), and are stopped by the pid they were started with. `PGARK_KEEP=1`
//! leaves the folders of a test in place for a look afterwards.

mod pgbench;
mod postgres_server;
mod server_process;
mod tcp_port;
mod temp_dir;
mod test_user;
mod wait;

pub use pgbench::Pgbench;
pub use postgres_server::{PostgresServer, PostgresServerBuilder, newest_major};
pub use server_process::ServerProcess;
pub use tcp_port::free_tcp_port;
pub use temp_dir::TempDir;
pub use test_user::TestUser;
pub use wait::wait_until;
