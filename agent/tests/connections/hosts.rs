//! Which of several hosts is taken, and how long one is waited for.

use harness::{PostgresServer, newest_major};
use pgark_agent::replication::ReplicationError;

use crate::{connect, refused};

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
