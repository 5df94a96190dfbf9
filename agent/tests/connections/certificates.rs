//! Certificates of servers and of the client, good and bad, and what comes before TLS.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use harness::{Certificate, CertificateAuthority, PostgresServer, TempDir, newest_major};
use pgark_agent::replication::{ReplicationConnection, ReplicationError, TlsError, TlsSettingsError};

use crate::{connect, options, refused, tls_server};

fn use_certificate(server: &mut PostgresServer, certificate: &Certificate) {
    server.alter_system("ssl_key_file", &certificate.key.display().to_string());
    server.alter_system("ssl_cert_file", &certificate.certificate.display().to_string());
    // The next connection sees it: the postmaster has read it when it says so.
    server.wait_for("SHOW ssl_cert_file", &certificate.certificate.display().to_string());
}

/// What the server knows of a connection: its TLS version, or nothing.
async fn tls_version(server: &PostgresServer, text: &str) -> String {
    let connection = connect(text).await;
    let pid = connection.process_id();
    let version = server.psql(&format!("SELECT version FROM pg_stat_ssl WHERE pid = {pid}"));
    connection.close().await;
    version
}

#[tokio::test]
async fn a54_the_certificate_of_the_server_decides() {
    for major in [15, newest_major()] {
        check_server_certificates(major).await;
    }
}

async fn check_server_certificates(major: u32) {
    let dir = TempDir::for_test_user("tls");
    let authority = CertificateAuthority::new(&dir, "root");
    let good = authority.server("server", &["db.test", "*.wild.test", "127.0.0.1"]);
    let mut server = tls_server(major, &good, &authority);
    let at = |host: &str, rest: &str| {
        format!(
            "host={host} hostaddr=127.0.0.1 port={} user=either password=s3cret sslrootcert={} {rest}",
            server.port(),
            authority.root().display()
        )
    };
    let full = |host: &str| at(host, "sslmode=verify-full");
    let why = async |text: String| match refused(&text).await {
        ReplicationError::Tls { source, .. } => source,
        other => panic!("{text}: {other:?}"),
    };
    for host in ["db.test", "DB.test", "a.wild.test", "127.0.0.1"] {
        assert_eq!(tls_version(&server, &full(host)).await, "TLSv1.3", "{host}");
    }
    assert_eq!(tls_version(&server, &at("db.test", "ssl_max_protocol_version=TLSv1.2")).await, "TLSv1.2");
    for host in ["x.test", "wild.test", "a.b.wild.test", "127.0.0.2"] {
        let error = why(full(host)).await;
        assert!(matches!(&error, TlsError::WrongName { .. }), "{error:?}");
        assert!(error.to_string().contains("is for db.test, *.wild.test, 127.0.0.1, not for"), "{error}");
    }
    // The name does not count here.
    connect(&at("x.test", "sslmode=verify-ca")).await;
    // The login is tied to the connection if it must be, and can be.
    connect(&at("db.test", "sslmode=require channel_binding=require require_auth=scram-sha-256")).await;
    let error = refused(&at("db.test", "sslmode=disable channel_binding=require")).await;
    assert!(matches!(error, ReplicationError::LoginForbidden { keyword: "channel_binding", .. }), "{error:?}");
    let direct = at("db.test", "sslmode=verify-full sslnegotiation=direct");
    if major >= 17 {
        connect(&direct).await;
    } else {
        let error = why(direct).await;
        assert!(error.hint().unwrap().contains("sslnegotiation=direct"), "{error:?}");
    }
    // A password in clear text is sent under TLS only.
    connect(&full("db.test").replace("user=either", "user=clear")).await;
    let revoked = format!("{} sslcrl={}", full("db.test"), authority.revoke(&good).display());
    assert!(matches!(why(revoked).await, TlsError::Revoked));

    let expired = authority.expired_server("expired", &["db.test"]);
    let named = authority.common_name("named", "old.test");
    let own = Certificate::self_signed(&dir, "own", &["db.test"]);
    let port = server.port();
    use_certificate(&mut server, &expired);
    let at = |host: &str, root: &std::path::Path| {
        format!(
            "host={host} hostaddr=127.0.0.1 port={port} user=either password=s3cret sslmode=verify-full sslrootcert={}",
            root.display()
        )
    };
    let error = why(at("db.test", authority.root())).await;
    assert_eq!(error.to_string(), "its certificate has expired at 2001-02-03T00:00:00Z");
    use_certificate(&mut server, &authority.server_by_intermediate("indirect", &["db.test"]));
    connect(&at("db.test", authority.root())).await;
    use_certificate(&mut server, &named);
    connect(&at("old.test", authority.root())).await;
    assert!(matches!(why(at("db.test", authority.root())).await, TlsError::WrongName { .. }));
    use_certificate(&mut server, &own);
    assert!(matches!(why(at("db.test", authority.root())).await, TlsError::UnknownAuthority { .. }));
    connect(&at("db.test", &own.certificate)).await;
}

#[tokio::test]
async fn a54_the_client_shows_its_own_certificate() {
    let dir = TempDir::for_test_user("tls");
    let authority = CertificateAuthority::new(&dir, "root");
    let server = tls_server(15, &authority.server("server", &["db.test"]), &authority);
    let stranger = CertificateAuthority::new(&dir, "other").common_name("stranger", "certified");
    let certified = authority.common_name("certified", "certified");
    let at = |user: &str, rest: &str| {
        format!("host=db.test hostaddr=127.0.0.1 port={} user={user} sslmode=require {rest}", server.port())
    };
    let with = |user: &str, pair: &Certificate| {
        at(user, &format!("password=s3cret sslcert={} sslkey={}", pair.certificate.display(), pair.key.display()))
    };
    connect(&with("certified", &certified)).await;
    connect(&with("doubly", &certified)).await;
    connect(&format!("{} sslcertmode=require", with("either", &certified))).await;
    for text in [at("certified", ""), format!("{} sslcertmode=disable", with("doubly", &certified))] {
        let error = refused(&text).await;
        assert!(matches!(error, ReplicationError::ClientCertificateMissing { .. }), "{error:?}");
    }
    let error = refused(&with("certified", &stranger)).await;
    assert!(matches!(error, ReplicationError::Tls { source: TlsError::Refused { .. }, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("ssl_ca_file"));
    let error = refused(&at("either", "password=s3cret sslcertmode=require")).await;
    assert!(matches!(error, ReplicationError::Tls { source: TlsError::ClientCertificateNotAsked, .. }), "{error:?}");

    let settings = async |text: String| match ReplicationConnection::connect(&options(&text)).await {
        Err(ReplicationError::TlsSettings(error)) => error,
        other => panic!("{text}: {other:?}"),
    };
    fs::set_permissions(&certified.key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = settings(with("certified", &certified)).await;
    assert_eq!(error.hint(), Some(format!("chmod 0600 {} (0640 if root owns it)", certified.key.display())));
    fs::set_permissions(&certified.key, fs::Permissions::from_mode(0o600)).unwrap();
    let mut mixed = certified.clone();
    mixed.key.clone_from(&stranger.key);
    assert!(matches!(settings(with("certified", &mixed)).await, TlsSettingsError::Key { .. }));
    let locked =
        dir.write("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o600)).unwrap();
    mixed.key = locked;
    assert!(matches!(settings(with("certified", &mixed)).await, TlsSettingsError::KeyEncrypted { .. }));
    // What somebody has named must be there, in every mode.
    for missing in ["sslcert=/nonexistent", "sslrootcert=/nonexistent", "sslmode=verify-ca"] {
        let error = settings(at("either", missing)).await;
        assert!(matches!(error, TlsSettingsError::Read { .. } | TlsSettingsError::NoRoots { .. }), "{error:?}");
    }
}

/// What the client makes of a server that answers its first message with these bytes.
async fn answered(answer: &'static [u8], rest: &str) -> ReplicationError {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for stream in listener.incoming().take(1) {
            let mut stream = stream.unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            stream.write_all(answer).unwrap();
            if !answer.is_empty() {
                // Until the client has had enough.
                let _ignored = stream.read_to_end(&mut Vec::new());
            }
        }
    });
    let error = refused(&format!("host=127.0.0.1 port={port} user=ada {rest}")).await;
    server.join().unwrap();
    error
}

#[tokio::test]
async fn a54_what_comes_before_tls_is_not_believed() {
    let why = async |answer| match answered(answer, "sslmode=require").await {
        ReplicationError::Tls { source, .. } => source,
        other => panic!("{other:?}"),
    };
    assert!(matches!(why(b"SR\0\0\0\x08\0\0\0\0").await, TlsError::Unprotected));
    assert!(matches!(why(b"X").await, TlsError::UnknownAnswer { byte: b'X' }));
    assert!(matches!(why(b"").await, TlsError::Handshake(_)));
    let error = why(b"EFATAL, click on https://example.com\0").await;
    assert!(matches!(error, TlsError::ErrorInstead));
    assert!(!format!("{error:?} {error}").contains("click"));
    let declined = answered(b"N", "sslmode=require").await;
    assert!(matches!(declined, ReplicationError::TlsNotOffered { .. }), "{declined:?}");
}
