//! Real servers for the whole-system tests: PostgreSQL, S3, Azure, a proxy that breaks connections, and pgark's own
//! programs.
//!
//! Everything here panics with a sentence when something is missing or fails: a test that cannot have its server must
//! fail, never pass. Servers listen on a private unix socket or on 127.0.0.1, run as an unprivileged user when the
//! tests run as root (PostgreSQL refuses root), and are stopped by the pid they were started with. `PGARK_KEEP=1`
//! leaves the folders of a test in place for a look afterwards.

mod azurite;
mod certificates;
mod environment;
mod fault_proxy;
mod gcs_stub;
mod object_storage;
mod pgbench;
mod postgres_server;
mod programs;
mod protected_cluster;
mod random;
mod rgw_server;
mod s3_server;
mod server_process;
mod standard_tools;
mod tcp_port;
mod temp_dir;
mod test_user;
mod wait;

pub use azurite::Azurite;
pub use certificates::{Certificate, CertificateAuthority};
pub use environment::from_environment;
pub use fault_proxy::{Action, Fault, FaultProxy, Trigger};
pub use gcs_stub::{GcsStub, service_account};
pub use object_storage::{S3Keys, azure_repository, gcs_repository, s3_repository};
pub use pgbench::Pgbench;
pub use postgres_server::{PostgresServer, PostgresServerBuilder, newest_major};
pub use programs::{Outcome, Program, RunningProgram, program_path};
pub use protected_cluster::{ProtectedCluster, ProtectedClusterBuilder, archive_all, local_repository};
pub use random::Random;
pub use rgw_server::RgwServer;
pub use s3_server::S3Server;
pub use server_process::ServerProcess;
pub use standard_tools::{bash, standard_tool};
pub use tcp_port::free_tcp_port;
pub use temp_dir::TempDir;
pub use test_user::TestUser;
pub use wait::wait_until;
