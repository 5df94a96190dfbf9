//! A TCP proxy that breaks connections where a test tells it to: in front of PostgreSQL (TCP or unix socket) or of an
//! object store.
//!
//! Faults are data: *when* (so many bytes passed, or a request that contains some text) and *what then* (close, reset,
//! stand still, lose the answer, answer something else), a limited number of times or always. Bytes are counted per
//! connection, and exactly that many pass. Requests and answers are recognised by their text on the wire, so without TLS.

mod connection;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::postgres_server::PostgresServer;

/// When a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// As soon as the client has connected.
    Connect,
    /// When this many bytes of one connection have gone to the server, and more come.
    BytesToServer(u64),
    /// When this many bytes of one connection have gone to the client, and more come.
    BytesToClient(u64),
    /// When the client sends this text.
    RequestWith(String),
    /// When the server sends this text, and just after it has passed.
    AnswerWith(String),
}

/// What happens then. All but `Delay` are the end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Both sides see an orderly end of the stream.
    Close,
    /// The client gets a reset.
    Reset,
    /// Nothing passes any more, in either direction, but both sides stay connected: what a dead network looks like.
    Stall,
    /// The request reaches the server and is carried out; its answer does not come back, the client gets a reset.
    LoseAnswer,
    /// The server sees nothing of the request; the client gets these bytes, and then the end.
    Answer(Vec<u8>),
    /// What was about to pass waits so long.
    Delay(Duration),
}

/// A fault, and how often it strikes.
#[derive(Debug, Clone)]
pub struct Fault {
    pub when: Trigger,
    pub then: Action,
    /// Nothing for "every time".
    pub times: Option<u32>,
}

impl Fault {
    pub fn once(when: Trigger, then: Action) -> Self {
        Self { when, then, times: Some(1) }
    }

    pub fn always(when: Trigger, then: Action) -> Self {
        Self { when, then, times: None }
    }

    /// An answer of an HTTP server in trouble, for [`Action::Answer`].
    pub fn http_answer(status: &str, body: &str) -> Action {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n");
        Action::Answer(format!("{head}Connection: close\r\n\r\n{body}").into_bytes())
    }
}

#[derive(Debug, Clone)]
enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The proxy. Without faults it passes everything; it and its connections end when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    upstream: Upstream,
    faults: Mutex<Vec<Fault>>,
    /// Counts the calls of `cut_all`: a connection ends when it changes.
    cuts: watch::Sender<u64>,
    struck: AtomicU64,
    connections: AtomicU64,
    bytes_to_server: AtomicU64,
    bytes_to_client: AtomicU64,
}

impl FaultProxy {
    /// In front of a server on a port of 127.0.0.1.
    pub fn to_port(port: u16) -> Self {
        Self::start(Upstream::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    }

    /// In front of PostgreSQL, whether it listens on TCP or not.
    pub fn to_postgres(server: &PostgresServer) -> Self {
        Self::start(Upstream::Unix(server.socket_dir().join(format!(".s.PGSQL.{}", server.port()))))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// As `endpoint` of an object store behind it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// As a libpq connection string, for a PostgreSQL behind it. Without TLS, since requests are recognised by their
    /// text, and a first attempt with it that was cut would be followed by one without.
    pub fn connection_string(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable", self.port)
    }

    /// Adds a fault, for bytes that have not passed yet.
    pub fn add(&self, fault: Fault) {
        self.shared.faults().push(fault);
    }

    /// Takes all faults away. Connections that stand still stay so.
    pub fn clear(&self) {
        self.shared.faults().clear();
    }

    /// Resets every connection there is, also those that stand still.
    pub fn cut_all(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// How often a fault has struck: a test of a fault must see that it did.
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Bytes that have passed, over all connections: a first run without faults tells a test where it can cut.
    pub fn bytes_to_server(&self) -> u64 {
        self.shared.bytes_to_server.load(Ordering::SeqCst)
    }

    pub fn bytes_to_client(&self) -> u64 {
        self.shared.bytes_to_client.load(Ordering::SeqCst)
    }

    fn start(upstream: Upstream) -> Self {
        let fail = |error: std::io::Error| -> ! { panic!("cannot start a proxy: {error}") };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| fail(error));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap_or_else(|error| fail(error));
        let port = listener.local_addr().unwrap_or_else(|error| fail(error)).port();
        listener.set_nonblocking(true).unwrap_or_else(|error| fail(error));
        let shared = Arc::new(Shared {
            upstream,
            faults: Mutex::default(),
            cuts: watch::Sender::new(0),
            struck: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            bytes_to_server: AtomicU64::new(0),
            bytes_to_client: AtomicU64::new(0),
        });
        runtime.spawn(connection::accept(listener, Arc::clone(&shared)));
        Self { port, shared, runtime: Some(runtime) }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A test may itself run inside a runtime, where waiting for another one is not allowed.
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the first fault whose trigger `matches`, counts it as struck, and returns what happens and the value of
    /// the match.
    fn strike<T>(&self, matches: impl Fn(&Trigger) -> Option<T>) -> Option<(Action, T)> {
        let mut faults = self.faults();
        let (index, value) =
            faults.iter().enumerate().find_map(|(index, fault)| Some((index, matches(&fault.when)?)))?;
        let fault = &mut faults[index];
        let then = fault.then.clone();
        if let Some(times) = &mut fault.times {
            *times -= 1;
            if *times == 0 {
                faults.remove(index);
            }
        }
        self.struck.fetch_add(1, Ordering::SeqCst);
        Some((then, value))
    }
}
