//! Each fault does what its name says, in front of the servers it is meant for.

use std::io::Read;
use std::time::{Duration, Instant};

use harness::{Action, Fault, FaultProxy, PostgresServer, S3Server, Trigger};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use crate::object_storage::s3;

/// What psql prints for a query through the proxy, and whether it succeeded.
fn query(server: &PostgresServer, proxy: &FaultProxy, sql: &str) -> (bool, String) {
    let connection = format!("{} sslmode=disable gssencmode=disable", proxy.connection_string());
    let output = server.command("psql").args(["-XAtc", sql, "-d", &connection]).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
}

#[test]
fn a_postgres_connection_is_cut_after_exactly_so_many_bytes() {
    let server = PostgresServer::start_default();
    let proxy = FaultProxy::to_postgres(&server);
    assert_eq!(query(&server, &proxy, "SELECT 42"), (true, "42\n".to_owned()));
    let whole = proxy.bytes_to_client();
    for action in [Action::Close, Action::Reset] {
        let before = proxy.bytes_to_client();
        proxy.add(Fault::once(Trigger::BytesToClient(whole - 1), action));
        let (succeeded, message) = query(&server, &proxy, "SELECT 42");
        assert!(!succeeded, "{message}");
        assert_eq!(proxy.bytes_to_client() - before, whole - 1);
    }
    assert_eq!(proxy.struck(), 2);
    // Each fault struck once, and is gone.
    assert_eq!(query(&server, &proxy, "SELECT 42"), (true, "42\n".to_owned()));

    proxy.add(Fault::once(Trigger::BytesToServer(0), Action::Delay(Duration::from_millis(300))));
    let started = Instant::now();
    assert!(query(&server, &proxy, "SELECT 42").0);
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_connection_that_stands_still_stays_open_until_all_are_cut() {
    let server = PostgresServer::start_default();
    let proxy = FaultProxy::to_postgres(&server);
    proxy.add(Fault::always(Trigger::Connect, Action::Stall));
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let waited = connection.read(&mut [0]).unwrap_err();
    assert_eq!(waited.kind(), std::io::ErrorKind::WouldBlock);
    proxy.cut_all();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let cut = connection.read(&mut [0]).unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_object_is_stored_though_its_answer_is_lost() {
    let server = S3Server::start();
    let proxy = FaultProxy::to_port(server.port());
    let store = s3(&proxy.endpoint(), "backups", server.keys());
    proxy.add(Fault::once(Trigger::RequestWith("PUT /backups/wal/0001".to_owned()), Action::LoseAnswer));
    // Without a retry this is an error to the client; an overwriting put is retried, and succeeds.
    store.put(&Path::from("wal/0001"), PutPayload::from("segment")).await.unwrap();
    assert_eq!(proxy.struck(), 1);
    assert_eq!(std::fs::read(server.bucket_dir("backups").join("wal/0001")).unwrap(), b"segment");

    let slow_down = Fault::http_answer("503 Slow Down", "<Error><Code>SlowDown</Code></Error>");
    proxy.add(Fault {
        when: Trigger::RequestWith("PUT /backups/wal/0002".to_owned()),
        then: slow_down,
        times: Some(2),
    });
    store.put(&Path::from("wal/0002"), PutPayload::from("segment")).await.unwrap();
    assert_eq!(proxy.struck(), 3);

    let denied = Fault::http_answer("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>");
    proxy.add(Fault::always(Trigger::RequestWith("PUT /backups/wal/0003".to_owned()), denied));
    let refused = store.put(&Path::from("wal/0003"), PutPayload::from("segment")).await;
    assert!(matches!(refused, Err(object_store::Error::PermissionDenied { .. })), "{refused:?}");
}
