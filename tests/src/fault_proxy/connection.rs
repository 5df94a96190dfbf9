//! One connection of the proxy: two directions that pass bytes until an end of stream, a fault or `cut_all`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::{Action, Shared, Trigger, Upstream};

/// Why a connection ends before both sides are done.
enum End {
    Close,
    Reset,
    Stall,
    Answer(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

pub(super) async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((client, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(serve(client, Arc::clone(&shared)));
    }
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let end = tokio::select! {
        end = pass(&mut client, &shared) => end,
        _ = cuts.changed() => End::Reset,
    };
    match end {
        End::Close => answer(client, &[]).await,
        End::Reset => reset(client),
        // `pass` stands still by itself, with the server's side open.
        End::Stall => {}
        End::Answer(bytes) => answer(client, &bytes).await,
    }
}

async fn pass(client: &mut TcpStream, shared: &Shared) -> End {
    if let Some((action, ())) = shared.strike(|when| (*when == Trigger::Connect).then_some(())) {
        match action {
            Action::Delay(time) => tokio::time::sleep(time).await,
            action => return stand_still_or(end_of(action)).await,
        }
    }
    // The client learns of a server that is away by the end of its own connection.
    match &shared.upstream {
        Upstream::Tcp(address) => match TcpStream::connect(address).await {
            Ok(server) => pass_both(client, server, shared).await,
            Err(_) => End::Reset,
        },
        Upstream::Unix(path) => match UnixStream::connect(path).await {
            Ok(server) => pass_both(client, server, shared).await,
            Err(_) => End::Reset,
        },
    }
}

async fn pass_both(client: &mut TcpStream, server: impl AsyncRead + AsyncWrite, shared: &Shared) -> End {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let lose_answer = AtomicBool::new(false);
    let there = Pump { shared, direction: Direction::ToServer, lose_answer: &lose_answer, passed: 0, tail: Vec::new() };
    let back = Pump { shared, direction: Direction::ToClient, lose_answer: &lose_answer, passed: 0, tail: Vec::new() };
    let ended =
        tokio::try_join!(there.run(&mut from_client, &mut to_server), back.run(&mut from_server, &mut to_client));
    let end = ended.err().unwrap_or(End::Close);
    // The halves are still here: while it stands still, the server's side stays open.
    stand_still_or(end).await
}

async fn stand_still_or(end: End) -> End {
    if matches!(end, End::Stall) {
        std::future::pending::<()>().await;
    }
    end
}

struct Pump<'a> {
    shared: &'a Shared,
    direction: Direction,
    /// Set by the direction to the server, when the next answer must not pass.
    lose_answer: &'a AtomicBool,
    passed: u64,
    /// The end of what has passed, for requests whose text is split over two reads.
    tail: Vec<u8>,
}

impl Pump<'_> {
    async fn run(mut self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> Result<(), End> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = from.read(&mut buffer).await.map_err(|_| End::Reset)?;
            if length == 0 {
                // One direction may end while the other goes on.
                drop(to.shutdown().await);
                return Ok(());
            }
            let mut chunk = &buffer[..length];
            if self.direction == Direction::ToClient && self.lose_answer.swap(false, Ordering::SeqCst) {
                return Err(End::Reset);
            }
            if let Some((action, allowed)) = self.strike(chunk) {
                match action {
                    Action::Delay(time) => tokio::time::sleep(time).await,
                    Action::LoseAnswer => self.lose_answer.store(true, Ordering::SeqCst),
                    action => {
                        chunk = &chunk[..allowed];
                        self.write(&mut to, chunk).await?;
                        return Err(end_of(action));
                    }
                }
            }
            self.write(&mut to, chunk).await?;
            self.remember(chunk);
        }
    }

    /// The fault that this chunk meets, and how much of the chunk still passes.
    fn strike(&self, chunk: &[u8]) -> Option<(Action, usize)> {
        let end = self.passed + chunk.len() as u64;
        self.shared.strike(|when| {
            let limit = match (when, self.direction) {
                (Trigger::BytesToServer(limit), Direction::ToServer)
                | (Trigger::BytesToClient(limit), Direction::ToClient) => *limit,
                (Trigger::RequestWith(text), Direction::ToServer) => return self.end_of(text, chunk).map(|_| 0),
                (Trigger::AnswerWith(text), Direction::ToClient) => return self.end_of(text, chunk),
                _ => return None,
            };
            let allowed = limit.checked_sub(self.passed)?;
            (limit < end).then(|| usize::try_from(allowed).unwrap_or(chunk.len()))
        })
    }

    /// Where in this chunk a text ends that may have begun before it.
    fn end_of(&self, text: &str, chunk: &[u8]) -> Option<usize> {
        // What had passed before this chunk was looked at then, but for a text that began there.
        let begun = self.tail.len().saturating_sub(text.len().saturating_sub(1));
        let before = &self.tail[begun..];
        let seen = [before, chunk].concat();
        let start = memchr::memmem::find(&seen, text.as_bytes())?;
        Some(start + text.len() - before.len())
    }

    async fn write(&mut self, to: &mut (impl AsyncWrite + Unpin), chunk: &[u8]) -> Result<(), End> {
        to.write_all(chunk).await.map_err(|_| End::Reset)?;
        self.passed += chunk.len() as u64;
        let total: &AtomicU64 = match self.direction {
            Direction::ToServer => &self.shared.bytes_to_server,
            Direction::ToClient => &self.shared.bytes_to_client,
        };
        total.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    fn remember(&mut self, chunk: &[u8]) {
        const LONGEST_TEXT: usize = 512;
        self.tail.extend_from_slice(&chunk[chunk.len().saturating_sub(LONGEST_TEXT)..]);
        self.tail.drain(..self.tail.len().saturating_sub(LONGEST_TEXT));
    }
}

fn end_of(action: Action) -> End {
    match action {
        Action::Close | Action::Delay(_) => End::Close,
        Action::Reset | Action::LoseAnswer => End::Reset,
        Action::Stall => End::Stall,
        Action::Answer(bytes) => End::Answer(bytes),
    }
}

fn reset(client: TcpStream) {
    // A socket that is closed with nothing to linger for sends a reset.
    drop(client.set_zero_linger());
    drop(client);
}

async fn answer(mut client: TcpStream, bytes: &[u8]) {
    drop(client.write_all(bytes).await);
    drop(client.shutdown().await);
    // Closing with unread bytes of the request would send a reset, which can overtake the answer.
    let mut rest = vec![0; 64 * 1024];
    let drained = async { while client.read(&mut rest).await.is_ok_and(|length| length > 0) {} };
    drop(tokio::time::timeout(Duration::from_secs(5), drained).await);
}
