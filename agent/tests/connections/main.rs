//! Connecting to real servers: every way to log in, TLS as libpq has it, and which of several hosts is taken.

#![allow(clippy::unwrap_used, reason = "tests")]

mod as_libpq;
mod certificates;
mod hosts;
mod logins;

use harness::{Certificate, CertificateAuthority, PostgresServer};
use pgark_agent::replication::{ConnectionOptions, ReplicationConnection, ReplicationError};

fn options(text: &str) -> ConnectionOptions {
    ConnectionOptions::parse(text, &|_| None, None).unwrap()
}

async fn connect(text: &str) -> ReplicationConnection {
    ReplicationConnection::connect(&options(text)).await.unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

async fn refused(text: &str) -> ReplicationError {
    let Err(error) = ReplicationConnection::connect(&options(text)).await else { panic!("{text} connects") };
    let hint = error.hint().unwrap_or_else(|| panic!("{error} has no hint"));
    assert!(!hint.contains("s3cret"), "{hint}");
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    error
}

/// A server with TLS, and roles that are let in in one way each.
fn tls_server(major: u32, certificate: &Certificate, authority: &CertificateAuthority<'_>) -> PostgresServer {
    let server = PostgresServer::builder()
        .major(major)
        .tls(certificate, authority)
        .hba("host postgres,replication either 127.0.0.1/32 scram-sha-256")
        .hba("hostssl postgres,replication encrypted 127.0.0.1/32 scram-sha-256")
        .hba("hostnossl postgres,replication plain 127.0.0.1/32 scram-sha-256")
        .hba("hostssl postgres,replication clear 127.0.0.1/32 password")
        .hba("hostssl postgres,replication certified 127.0.0.1/32 cert")
        .hba("hostssl postgres,replication doubly 127.0.0.1/32 scram-sha-256 clientcert=verify-ca")
        .hba("host postgres,replication encrypted,plain,clear,certified,doubly 127.0.0.1/32 reject")
        .start();
    let roles = ["either", "encrypted", "plain", "clear", "certified", "doubly"];
    let create = |role| format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 's3cret';");
    server.psql(&format!("SET password_encryption = 'scram-sha-256'; {}", roles.map(create).concat()));
    server
}
