//! A proxy in front of a real PostgreSQL that answers chosen commands itself: with what the server once said, changed.
//!
//! It knows the framing of messages and nothing else, so it is used without TLS. Everything that is not chosen passes.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use harness::PostgresServer;

/// Writes what a client gets in place of the server's answer.
pub(crate) type Answer = Arc<dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync>;

pub(crate) struct CommandProxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: PathBuf,
    /// A command that begins with this text gets this answer.
    chosen: Mutex<Option<(&'static str, Answer)>>,
    /// What the server said to the last command that begins with this text.
    recording: Mutex<(&'static str, Vec<u8>)>,
}

impl CommandProxy {
    pub(crate) fn start(server: &PostgresServer) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server: server.socket_dir().join(format!(".s.PGSQL.{}", server.port())),
            chosen: Mutex::default(),
            recording: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, shared) = (client.unwrap(), Arc::clone(&accepting));
                thread::spawn(move || drop(serve(client, &shared)));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn connection_string(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable", self.port)
    }

    pub(crate) fn answer(&self, command: &'static str, answer: Answer) {
        *self.shared.chosen.lock().unwrap() = Some((command, answer));
    }

    /// Keeps what the server says to the next command that begins so.
    pub(crate) fn record(&self, command: &'static str) {
        *self.shared.recording.lock().unwrap() = (command, Vec::new());
    }

    pub(crate) fn recorded(&self) -> Vec<u8> {
        std::mem::take(&mut self.shared.recording.lock().unwrap().1)
    }
}

fn serve(mut client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let mut server = UnixStream::connect(&shared.server)?;
    // The first message has no tag.
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
    client.read_exact(&mut rest)?;
    server.write_all(&[&length, rest.as_slice()].concat())?;

    let recording = Arc::new(Mutex::new(false));
    let back = {
        let (mut server, mut client) = (server.try_clone()?, client.try_clone()?);
        let (shared, recording) = (Arc::clone(shared), Arc::clone(&recording));
        thread::spawn(move || {
            while let Ok(message) = read_message(&mut server) {
                let mut is_recorded = recording.lock().unwrap();
                if *is_recorded {
                    shared.recording.lock().unwrap().1.extend_from_slice(&message);
                    *is_recorded = message[0] != b'Z';
                }
                drop(is_recorded);
                if client.write_all(&message).is_err() {
                    break;
                }
            }
            drop(client.shutdown(Shutdown::Both));
        })
    };
    while let Ok(message) = read_message(&mut client) {
        let begins =
            |command: &str| message[0] == b'Q' && !command.is_empty() && message[5..].starts_with(command.as_bytes());
        let answer = shared.chosen.lock().unwrap().clone();
        if let Some((_, answer)) = answer.filter(|(command, _)| begins(command)) {
            // A client that has had enough closes the connection.
            let mut buffered = io::BufWriter::with_capacity(64 << 10, &mut client);
            if answer(&mut buffered).and_then(|()| buffered.flush()).is_err() {
                break;
            }
            continue;
        }
        if begins(shared.recording.lock().unwrap().0) {
            *recording.lock().unwrap() = true;
        }
        server.write_all(&message)?;
    }
    drop(server.shutdown(Shutdown::Both));
    drop(back.join());
    Ok(())
}

/// Tag, length and body.
fn read_message(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 5];
    input.read_exact(&mut message)?;
    let length = u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize;
    message.resize(length + 1, 0);
    input.read_exact(&mut message[5..])?;
    Ok(message)
}
