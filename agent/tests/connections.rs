//! Connecting to real servers: every way to log in, TLS as libpq has it, and which of several hosts is taken.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use harness::{Certificate, CertificateAuthority, PostgresServer, TempDir, newest_major};
use pgark_agent::replication::{
    ConnectionOptions, ReplicationConnection, ReplicationError, TlsError, TlsSettingsError,
};

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

fn scram_server() -> PostgresServer {
    let server = PostgresServer::builder()
        .tcp()
        .hba("local replication plain password")
        .hba("host replication plain 127.0.0.1/32 password")
        .hba("local replication hashed,scrambled md5")
        .hba("host replication hashed 127.0.0.1/32 md5")
        .hba("host replication scrambled 127.0.0.1/32 scram-sha-256")
        .hba("host replication unlisted 127.0.0.1/32 reject")
        .hba("local replication peered peer")
        .start();
    server.psql(
        "SET password_encryption = 'md5';
         CREATE ROLE hashed LOGIN REPLICATION PASSWORD 's3cret';
         SET password_encryption = 'scram-sha-256';
         CREATE ROLE scrambled LOGIN REPLICATION PASSWORD 's3cret';
         CREATE ROLE plain LOGIN REPLICATION PASSWORD 's3cret';
         CREATE ROLE unlisted LOGIN REPLICATION;
         CREATE ROLE peered LOGIN REPLICATION;
         CREATE ROLE powerless LOGIN;",
    );
    server
}

#[tokio::test]
async fn every_login_method_lets_the_right_password_in_and_no_other() {
    let server = scram_server();
    let socket = format!("host={} port={}", server.socket_dir().display(), server.port());
    let tcp = format!("host=127.0.0.1 port={}", server.port());
    let log_in = async |text: String| {
        let mut connection = connect(&text).await;
        connection.identify_system().await.unwrap();
        connection.close().await;
    };
    log_in(format!("{socket} user=postgres")).await;
    log_in(format!("{tcp} user=postgres sslmode=disable")).await;
    log_in(format!("{socket} user=postgres sslmode=verify-full")).await;
    for (place, user) in
        [(&tcp, "hashed"), (&tcp, "scrambled"), (&socket, "hashed"), (&socket, "scrambled"), (&socket, "plain")]
    {
        log_in(format!("{place} user={user} password=s3cret")).await;
        let error = refused(&format!("{place} user={user} password=wrong")).await;
        assert!(matches!(error, ReplicationError::AuthenticationFailed { .. }), "{user}: {error:?}");
        assert_eq!(error.sqlstate(), Some("28P01"));
        assert!(!error.is_retryable());
        let error = refused(&format!("{place} user={user}")).await;
        assert!(matches!(error, ReplicationError::PasswordMissing { .. }), "{user}: {error:?}");
    }
    log_in(format!("postgresql://scrambled:s3cret@127.0.0.1:{}/x?application_name=a%20b", server.port())).await;

    let error = refused(&format!("{tcp} user=plain password=s3cret")).await;
    assert!(error.to_string().contains("clear text"), "{error}");
}

#[tokio::test]
async fn the_password_file_is_asked_for_database_replication() {
    let server = scram_server();
    let dir = TempDir::new("pgpass");
    let path = dir.write(
        "pgpass",
        format!("127.0.0.1:{0}:postgres:scrambled:wrong\n127.0.0.1:{0}:replication:scrambled:s3cret\n", server.port()),
    );
    let text = format!("host=127.0.0.1 port={} user=scrambled passfile={}", server.port(), path.display());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    connect(&text).await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(refused(&text).await, ReplicationError::PasswordMissing { .. }));
}

#[tokio::test]
async fn a23_missing_rights_have_their_own_errors_and_hints() {
    let server = scram_server();
    let tcp = format!("host=127.0.0.1 port={}", server.port());

    let error = refused(&format!("{tcp} user=powerless")).await;
    assert!(matches!(error, ReplicationError::MissingReplicationPrivilege { .. }), "{error:?}");
    let statement = error.hint().unwrap();
    assert_eq!(statement, "ALTER ROLE \"powerless\" REPLICATION;");
    server.psql(&statement);
    connect(&format!("{tcp} user=powerless")).await;

    let error = refused(&format!("{tcp} user=unlisted")).await;
    assert!(matches!(error, ReplicationError::NotInPgHba { .. }), "{error:?}");
    let line = "host replication unlisted 127.0.0.1/32 scram-sha-256";
    assert!(error.hint().unwrap().contains(line), "{:?}", error.hint());

    let error = refused(&format!("{tcp} user=nobody_at_all")).await;
    assert!(matches!(error, ReplicationError::AuthenticationFailed { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("CREATE ROLE"));

    let socket = format!("host={} port={}", server.socket_dir().display(), server.port());
    let error = refused(&format!("{socket} user=peered")).await;
    assert!(matches!(error, ReplicationError::AuthenticationFailed { .. }), "{error:?}");
}

#[tokio::test]
async fn a23_too_many_senders_may_be_tried_again() {
    let server = PostgresServer::builder().setting("max_wal_senders", "1").start();
    let first = connect(&server.connection_string()).await;
    let error = refused(&server.connection_string()).await;
    assert!(matches!(error, ReplicationError::TooManySenders { limit: 1, .. }), "{error:?}");
    assert!(error.is_retryable());
    assert!(error.hint().unwrap().contains("ALTER SYSTEM SET max_wal_senders = '6';"));
    first.close().await;
}

#[tokio::test]
async fn hosts_are_tried_in_order_until_one_answers() {
    let server = PostgresServer::builder().tcp().start();
    let closed = harness::free_tcp_port();
    let error = refused(&format!("host=127.0.0.1 port={closed} user=postgres")).await;
    assert!(matches!(error, ReplicationError::Connect { .. }) && error.is_retryable());
    let text = format!("host=/nonexistent,127.0.0.1,127.0.0.1 port=1,{closed},{} user=postgres", server.port());
    connect(&text).await;
}

#[tokio::test]
async fn a_silent_server_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = refused(&format!("host=127.0.0.1 port={port} user=postgres connect_timeout=1")).await;
    assert!(matches!(error, ReplicationError::ConnectTimeout { seconds: 1, .. }), "{error:?}");
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

/// What libpq makes of the same string: whether it connects, and with TLS.
fn libpq(server: &PostgresServer, text: &str) -> Option<bool> {
    let mut psql: Command = server.command("psql");
    psql.env("HOME", "/nonexistent").args(["-XAtq", "-d", &format!("{text} dbname=postgres")]);
    psql.args(["-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"]);
    let output = psql.output().unwrap();
    output.status.success().then(|| output.stdout.starts_with(b"t"))
}

#[tokio::test]
async fn a54_every_sslmode_does_what_libpq_does() {
    let dir = TempDir::for_test_user("tls");
    let authority = CertificateAuthority::new(&dir, "root");
    let other = CertificateAuthority::new(&dir, "other");
    let mut server = tls_server(newest_major(), &authority.server("server", &["db.test"]), &authority);
    let roots = [
        String::new(),
        format!("sslrootcert={}", authority.root().display()),
        format!("sslrootcert={}", other.root().display()),
    ];
    let mut encrypted = 0;
    for tls in ["on", "off"] {
        server.alter_system("ssl", tls);
        server.wait_for("SHOW ssl", tls);
        for user in ["either", "encrypted", "plain"] {
            for mode in ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] {
                for (host, root) in
                    [("db.test", &roots[0]), ("db.test", &roots[1]), ("x.test", &roots[1]), ("db.test", &roots[2])]
                {
                    let text = format!(
                        "host={host} hostaddr=127.0.0.1 port={} user={user} password=s3cret sslmode={mode} {root}",
                        server.port()
                    );
                    let ours = match ReplicationConnection::connect(&options(&text)).await {
                        Err(_) => None,
                        Ok(connection) => {
                            let pid = connection.process_id();
                            let ssl = server.psql(&format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {pid}"));
                            connection.close().await;
                            Some(ssl == "t")
                        }
                    };
                    encrypted += u32::from(ours == Some(true));
                    assert_eq!(ours, libpq(&server, &text), "{text}, ssl = {tls}");
                }
            }
        }
    }
    assert!(encrypted > 20, "{encrypted}");
    for mode in ["require", "verify-ca", "verify-full"] {
        let text =
            format!("host=127.0.0.1 port={} user=either password=s3cret sslmode={mode} {}", server.port(), roots[1]);
        assert!(matches!(refused(&text).await, ReplicationError::TlsNotOffered { .. }));
    }
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

#[tokio::test]
async fn the_wanted_one_of_several_hosts_is_taken() {
    for major in [13, newest_major()] {
        let primary = PostgresServer::builder().major(major).start();
        let standby = primary.start_standby();
        let dirs = |first: &PostgresServer, second: &PostgresServer| {
            format!(
                "host={},{} port={},{} user=postgres",
                first.socket_dir().display(),
                second.socket_dir().display(),
                first.port(),
                second.port()
            )
        };
        let (forward, backward) = (dirs(&primary, &standby), dirs(&standby, &primary));
        for (attribute, wanted) in [
            ("primary", &primary),
            ("read-write", &primary),
            ("standby", &standby),
            ("prefer-standby", &standby),
            ("read-only", &standby),
        ] {
            for text in [&forward, &backward] {
                let connection = connect(&format!("{text} target_session_attrs={attribute}")).await;
                let socket = wanted.socket_dir().display().to_string();
                assert!(connection.host().to_string().contains(&socket), "{attribute}: {}", connection.host());
                connection.close().await;
            }
        }
        let alone = primary.connection_string();
        connect(&format!("{alone} target_session_attrs=prefer-standby")).await;
        let error = refused(&format!("{alone} target_session_attrs=standby")).await;
        assert!(matches!(error, ReplicationError::WrongTarget { target: "standby", .. }), "{error:?}");
        let error = refused(&format!("{alone} requirepeer=nobody")).await;
        let ReplicationError::WrongPeer { owner, .. } = error else { panic!("{error:?}") };
        connect(&format!("{alone} requirepeer={owner}")).await;
        connect(&format!("{backward} load_balance_hosts=random")).await;
    }
}
