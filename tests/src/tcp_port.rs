//! Free ports on 127.0.0.1.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ports that Linux gives to clients by itself (from 32768), so that none of their connections can take one
/// while a slow server is on its way to it.
const FIRST: u32 = 10_000;
const PORTS: u32 = 20_000;

/// What one process may ask for before it comes to the ports of the process with the next id.
const PORTS_A_PROCESS: u32 = 16;

/// A port that nothing listens on, and that no test in another process is given at the same time: where to look
/// depends on the id of the process.
pub fn free_tcp_port() -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        let offset = ASKED.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (std::process::id().wrapping_mul(PORTS_A_PROCESS).wrapping_add(offset)) % PORTS;
        let port = u16::try_from(port).unwrap_or_else(|_| panic!("{port} is no port"));
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on 127.0.0.1");
}
