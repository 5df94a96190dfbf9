//! Free ports on 127.0.0.1.

use std::net::{Ipv4Addr, TcpListener};

/// Asks the kernel for a free port. It is free when this returns; a server that then fails to bind says so and fails
/// its test.
pub fn free_tcp_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unwrap_or_else(|error| panic!("no free port on 127.0.0.1: {error}"))
        .port()
}
