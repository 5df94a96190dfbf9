//! The same connection strings for pgark and for psql: both connect or both fail, and with TLS or without.

use std::process::Command;

use harness::{CertificateAuthority, PostgresServer, TempDir, newest_major};
use pgark_agent::replication::{ConnectionOptions, ReplicationConnection, ReplicationError};

use crate::{refused, tls_server};

/// What libpq makes of the same string: whether it connects, and with TLS.
fn libpq(server: &PostgresServer, text: &str) -> Option<bool> {
    let mut psql: Command = server.command("psql");
    psql.env("HOME", "/nonexistent").args(["-XAtq", "-d", &format!("{text} dbname=postgres")]);
    psql.args(["-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"]);
    let output = psql.output().unwrap();
    output.status.success().then(|| output.stdout.starts_with(b"t"))
}

/// What pgark makes of it.
async fn ours(server: &PostgresServer, text: &str) -> Option<bool> {
    let options = ConnectionOptions::parse(text, &|_| None, None).ok()?;
    let connection = ReplicationConnection::connect(&options).await.ok()?;
    let ssl = server.psql(&format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {}", connection.process_id()));
    connection.close().await;
    Some(ssl == "t")
}

/// Both make the same of it, which is returned.
async fn agreed(server: &PostgresServer, text: &str) -> Option<bool> {
    let ours = ours(server, text).await;
    assert_eq!(ours, libpq(server, text), "{text}");
    ours
}

#[tokio::test]
async fn a54_every_sslmode_does_what_libpq_does() {
    let dir = TempDir::for_test_user("tls");
    let authority = CertificateAuthority::new(&dir, "root");
    let other = CertificateAuthority::new(&dir, "other");
    let mut server = tls_server(newest_major(), &authority.server("server", &["db.test"]), &authority);
    let port = server.port();
    let root = format!("sslrootcert={}", authority.root().display());
    let other = format!("sslrootcert={}", other.root().display());
    let mut outcomes = [0; 3];
    for tls in ["on", "off"] {
        server.alter_system("ssl", tls);
        server.wait_for("SHOW ssl", tls);
        for user in ["either", "encrypted", "plain"] {
            for mode in ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] {
                for (host, root) in [("db.test", ""), ("db.test", &root), ("x.test", &root), ("db.test", &other)] {
                    let text = format!(
                        "host={host} hostaddr=127.0.0.1 port={port} user={user} password=s3cret sslmode={mode} {root}"
                    );
                    match agreed(&server, &text).await {
                        None => outcomes[0] += 1,
                        Some(false) => outcomes[1] += 1,
                        Some(true) => outcomes[2] += 1,
                    }
                }
            }
        }
    }
    assert!(outcomes.iter().all(|&count| count > 20), "{outcomes:?}");
    for mode in ["require", "verify-ca", "verify-full"] {
        let text = format!("host=127.0.0.1 port={port} user=either password=s3cret sslmode={mode} {root}");
        assert!(matches!(refused(&text).await, ReplicationError::TlsNotOffered { .. }));
    }
}

#[tokio::test]
async fn a54_every_login_and_keyword_does_what_it_does_with_libpq() {
    let dir = TempDir::for_test_user("tls");
    let authority = CertificateAuthority::new(&dir, "root");
    let server = tls_server(newest_major(), &authority.server("server", &["db.test"]), &authority);
    let port = server.port();
    let at = |rest: &str| format!("host=db.test hostaddr=127.0.0.1 port={port} password=s3cret {rest}");
    for user in ["either", "clear", "certified", "postgres"] {
        for binding in ["disable", "prefer", "require"] {
            for methods in ["", "scram-sha-256", "password,none", "!none", "!scram-sha-256,!password", "md5,!none"] {
                let rest = format!("user={user} channel_binding={binding} require_auth={methods} sslmode=require");
                agreed(&server, &at(&rest)).await;
            }
        }
    }
    let root = format!("sslrootcert={}", authority.root().display());
    for (rest, expected) in [
        ("sslmode=disable channel_binding=require", None),
        ("sslmode=require sslnegotiation=direct", Some(true)),
        ("sslmode=prefer sslnegotiation=direct", None),
        ("sslmode=require sslcertmode=require", None),
        ("sslmode=require sslcertmode=disable sslsni=0", Some(true)),
        ("sslmode=require sslrootcert=system", None),
        ("sslmode=require ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", None),
        ("sslmode=require ssl_min_protocol_version=TLSv1.3", Some(true)),
        ("ssl_max_protocol_version=TLSv1.2", Some(true)),
        ("target_session_attrs=read-write", Some(true)),
        ("target_session_attrs=primary gssencmode=disable", Some(true)),
        ("target_session_attrs=prefer-standby", Some(true)),
        ("target_session_attrs=standby", None),
        ("target_session_attrs=read-only", None),
        ("target_session_attrs=read-only options='-c default_transaction_read_only=on'", Some(true)),
        ("target_session_attrs=read-write options='-c default_transaction_read_only=on'", None),
        ("requirepeer=nobody keepalives=0 connect_timeout=5", Some(true)),
        ("load_balance_hosts=random host=db.test,db.test hostaddr=127.0.0.1,127.0.0.2", Some(true)),
        ("load_balance_hosts=sometimes", None),
        ("host=db.test,db.test", None),
    ] {
        assert_eq!(agreed(&server, &at(&format!("user=either {rest}"))).await, expected, "{rest}");
    }
    let url = format!("postgresql://either:s3cret@db.test:{port}/?hostaddr=127.0.0.1&sslmode=verify-full&{root}");
    assert_eq!(ours(&server, &url).await, Some(true));
}
