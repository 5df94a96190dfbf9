//! Each way to log in, and what a server that lacks something answers.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use harness::{PostgresServer, TempDir};
use pgark_agent::replication::ReplicationError;

use crate::{connect, refused};

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
