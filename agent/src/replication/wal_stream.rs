//! `START_REPLICATION`: WAL as the server writes it, until somebody ends it or the timeline does.
//!
//! ```text
//! W  d*                              w WAL | k keepalive      client: d r  status
//! c (client: c)  T D C [C] Z         the timeline ended: the next one and where it starts
//! C "COPY 0"  end of connection      the server shuts down
//! ```
//!
//! Each piece must start where the last one ended. The positions in a keepalive, and the second one of a WAL piece,
//! tell how far the *server* is: they are never to be reported back as received.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes};
use pgark_postgres::{Lsn, TimelineId};
use postgres_protocol::message::frontend;

use super::commands::{parse_column, timeline_column};
use super::connection::{ReplicationConnection, Row, unexpected};
use super::error::ReplicationError;
use super::literal;
use super::message::BackendMessage;

/// PostgreSQL counts time from 2000-01-01, this many seconds after Unix does.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

const PLACE: &str = "in a WAL stream";

/// The end of a timeline, as the server tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineEnd {
    /// The timeline that follows.
    pub next_timeline: TimelineId,
    /// Where it starts: may lie below what has been received.
    pub next_start: Lsn,
}

/// What arrives in a WAL stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalMessage {
    /// The next bytes of WAL. A slice of the read buffer: copy or use it promptly.
    Data {
        /// The position of the first byte.
        start: Lsn,
        /// How far the server's own WAL reaches.
        server_end: Lsn,
        /// The WAL.
        bytes: Bytes,
    },
    /// The server is alive.
    Keepalive {
        /// How far the server's own WAL reaches.
        server_end: Lsn,
        /// The server ends the connection unless a status follows soon.
        reply_requested: bool,
    },
    /// The timeline ended and the connection is free for the next command.
    TimelineEnd(TimelineEnd),
    /// The server shuts down: everything that it had has been sent and the connection is over.
    ServerShutdown,
}

/// A WAL stream under way.
///
/// A stream that is dropped before its end leaves the connection unusable; [`WalStream::stop`] ends it in order.
#[derive(Debug)]
pub struct WalStream<'a> {
    connection: &'a mut ReplicationConnection,
    timeline: TimelineId,
    /// Where the next piece must start.
    position: Lsn,
    /// The first piece may start below the position that was asked for.
    first: bool,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Streaming,
    /// Both sides have ended the copy, or there was none; the result set follows.
    Ending {
        next: Option<TimelineEnd>,
        command_complete: bool,
    },
    Done,
}

impl ReplicationConnection {
    /// Starts to stream the WAL of one timeline, with a slot or without.
    ///
    /// To start exactly where a historic timeline ends is allowed: the first message is then its end.
    pub async fn start_replication(
        &mut self,
        slot: Option<&str>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<WalStream<'_>, ReplicationError> {
        let mut command = "START_REPLICATION".to_owned();
        if let Some(slot) = slot {
            command.push_str(&format!(" SLOT {}", literal::slot_name(slot)?));
        }
        // Without a timeline the server streams its current one, whose bytes may differ.
        command.push_str(&format!(" PHYSICAL {start} TIMELINE {timeline}"));
        self.start_command(&command)?;
        let phase = match self.receive("before a WAL stream").await? {
            BackendMessage::CopyBothResponse => Phase::Streaming,
            BackendMessage::RowDescription => Phase::Ending { next: None, command_complete: false },
            BackendMessage::ErrorResponse(server) => return Err(self.fail_command(server).await),
            other => return Err(unexpected(&other, "before a WAL stream")),
        };
        Ok(WalStream { connection: self, timeline, position: start, first: true, phase })
    }
}

impl WalStream<'_> {
    /// The timeline that is streamed.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The end of what has been received.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Waits for the next message; nothing after a [`WalMessage::TimelineEnd`] or [`WalMessage::ServerShutdown`].
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<WalMessage>, ReplicationError> {
        loop {
            match self.phase {
                Phase::Streaming => {
                    if let Some(message) = self.next_streaming().await? {
                        return Ok(Some(message));
                    }
                }
                Phase::Ending { .. } => {
                    return match self.read_end().await? {
                        Some(end) => Ok(Some(WalMessage::TimelineEnd(end))),
                        None => Err(ReplicationError::violation("the WAL stream ended without a reason")),
                    };
                }
                Phase::Done => return Ok(None),
            }
        }
    }

    async fn next_streaming(&mut self) -> Result<Option<WalMessage>, ReplicationError> {
        match self.connection.receive(PLACE).await? {
            BackendMessage::CopyData(data) => self.interpret(data),
            BackendMessage::CopyDone => {
                frontend::copy_done(self.connection.output());
                self.phase = Phase::Ending { next: None, command_complete: false };
                Ok(None)
            }
            BackendMessage::CommandComplete(_) => {
                self.phase = Phase::Done;
                Ok(Some(WalMessage::ServerShutdown))
            }
            BackendMessage::ErrorResponse(server) => Err(self.connection.fail_command(server).await),
            other => Err(unexpected(&other, PLACE)),
        }
    }

    fn interpret(&mut self, mut data: Bytes) -> Result<Option<WalMessage>, ReplicationError> {
        let kind = data.try_get_u8().map_err(|_| ReplicationError::violation("empty piece of a WAL stream"))?;
        match kind {
            b'w' if data.len() >= 24 => {
                let start = Lsn::new(data.get_u64());
                let server_end = Lsn::new(data.get_u64());
                // The server's clock is of no use here.
                data.advance(8);
                self.accept_wal(start, server_end, data)
            }
            b'k' if data.len() == 17 => {
                let server_end = Lsn::new(data.get_u64());
                data.advance(8);
                Ok(Some(WalMessage::Keepalive { server_end, reply_requested: data.get_u8() != 0 }))
            }
            b'w' | b'k' => {
                Err(ReplicationError::violation(format!("piece '{}' of a WAL stream has a wrong length", kind as char)))
            }
            other => {
                Err(ReplicationError::violation(format!("unknown piece '{}' of a WAL stream", other.escape_ascii())))
            }
        }
    }

    fn accept_wal(
        &mut self,
        mut start: Lsn,
        server_end: Lsn,
        mut bytes: Bytes,
    ) -> Result<Option<WalMessage>, ReplicationError> {
        let len = bytes.len() as u64;
        let end = start
            .checked_add(len)
            .ok_or_else(|| ReplicationError::violation(format!("WAL at {start} passes the last position")))?;
        if self.first && start < self.position {
            // What lies below the position that was asked for is not wanted.
            let surplus = (self.position.as_u64() - start.as_u64()).min(len);
            bytes.advance(usize::try_from(surplus).unwrap_or(bytes.len()));
            start = start.saturating_add(surplus);
            if bytes.is_empty() {
                return Ok(None);
            }
        }
        if start != self.position {
            return Err(ReplicationError::WalNotContiguous { expected: self.position, found: start });
        }
        self.first = false;
        self.position = end;
        Ok(Some(WalMessage::Data { start, server_end, bytes }))
    }

    /// Reports how far WAL is written, flushed and applied here.
    ///
    /// The server moves the slot to `flush` without asking questions, so only what is durable may be reported. A server
    /// that is gone is found by [`Self::next`], after what it said before.
    pub async fn send_status(&mut self, written: Lsn, flushed: Lsn, applied: Lsn, reply_requested: bool) {
        let output = self.connection.output();
        output.put_u8(b'd');
        output.put_u32(4 + 1 + 4 * 8 + 1);
        output.put_u8(b'r');
        output.put_u64(written.as_u64());
        output.put_u64(flushed.as_u64());
        output.put_u64(applied.as_u64());
        output.put_i64(postgres_time(SystemTime::now()));
        output.put_u8(u8::from(reply_requested));
        self.connection.send_queued().await;
    }

    /// Ends the stream from this side, after which the connection is free for the next command.
    ///
    /// WAL that is still under way is thrown away. The timeline's end is returned if the server came to it meanwhile.
    pub async fn stop(mut self) -> Result<Option<TimelineEnd>, ReplicationError> {
        if matches!(self.phase, Phase::Streaming) {
            frontend::copy_done(self.connection.output());
            loop {
                match self.connection.receive("at the end of a WAL stream").await? {
                    BackendMessage::CopyData(_) => {}
                    BackendMessage::CopyDone => break,
                    BackendMessage::ErrorResponse(server) => {
                        return Err(self.connection.fail_command(server).await);
                    }
                    other => return Err(unexpected(&other, "at the end of a WAL stream")),
                }
            }
            self.phase = Phase::Ending { next: None, command_complete: false };
        }
        match self.phase {
            Phase::Ending { .. } => self.read_end().await,
            _ => Ok(None),
        }
    }

    /// Reads `[T D C] C [C] Z`. What has been read is kept in the phase, so that a dropped call loses nothing.
    async fn read_end(&mut self) -> Result<Option<TimelineEnd>, ReplicationError> {
        const PLACE: &str = "at the end of a timeline";
        while let Phase::Ending { next, command_complete } = &mut self.phase {
            match self.connection.receive(PLACE).await? {
                BackendMessage::RowDescription => {}
                BackendMessage::DataRow(row) if next.is_none() => *next = Some(parse_timeline_end(&row)?),
                // One for the result, one for the copy and one for the command; 13.0 leaves out the last.
                BackendMessage::CommandComplete(_) => *command_complete = true,
                BackendMessage::ReadyForQuery if *command_complete => {
                    let next = *next;
                    self.phase = Phase::Done;
                    self.connection.end_command();
                    return Ok(next);
                }
                BackendMessage::ErrorResponse(server) => {
                    return Err(self.connection.fail_command(server).await);
                }
                other => return Err(unexpected(&other, PLACE)),
            }
        }
        Ok(None)
    }
}

fn parse_timeline_end(row: &Row) -> Result<TimelineEnd, ReplicationError> {
    Ok(TimelineEnd {
        next_timeline: timeline_column(row, 0)?,
        next_start: parse_column(row, 1, "the start of a timeline")?,
    })
}

/// Microseconds since 2000-01-01; a clock before that counts as that day.
fn postgres_time(now: SystemTime) -> i64 {
    let since = now.duration_since(UNIX_EPOCH + POSTGRES_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::super::scripted::Script;
    use super::*;

    const START: u64 = 0x100_0000;

    fn one() -> TimelineId {
        TimelineId::new(1).unwrap()
    }

    fn wal(start: u64, bytes: &[u8]) -> Vec<u8> {
        let mut piece = vec![b'w'];
        piece.put_u64(start);
        piece.put_u64(start + 1_000_000);
        piece.put_u64(0);
        piece.put_slice(bytes);
        piece
    }

    fn streaming() -> Script {
        Script::default().message(b'W', &[0, 0, 0])
    }

    async fn receive(script: Script) -> Result<Vec<WalMessage>, ReplicationError> {
        let (mut connection, _server) = script.connect().await;
        let mut stream = connection.start_replication(Some("slot"), Lsn::new(START), one()).await?;
        let mut messages = Vec::new();
        while let Some(message) = stream.next().await? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[tokio::test]
    async fn a43_a_hole_is_refused_also_at_the_start() {
        let hole = streaming().message(b'd', &wal(START, b"abc")).message(b'd', &wal(START + 4, b"e"));
        let error = receive(hole).await.unwrap_err();
        let expected = Lsn::new(START + 3);
        assert!(matches!(error, ReplicationError::WalNotContiguous { expected: e, .. } if e == expected), "{error}");
        let late = streaming().message(b'd', &wal(START + 1, b"abc"));
        assert!(matches!(receive(late).await, Err(ReplicationError::WalNotContiguous { .. })));
    }

    #[tokio::test]
    async fn a43_an_overlap_is_cut_at_the_start_and_refused_later() {
        let early = streaming()
            .message(b'd', &wal(START - 9, b"xxx"))
            .message(b'd', &wal(START - 2, b"xxab"))
            .message(b'd', &wal(START + 2, b"c"))
            .complete("COPY 0");
        let messages = receive(early).await.unwrap();
        let pieces: Vec<_> = messages
            .iter()
            .filter_map(|message| match message {
                WalMessage::Data { start, bytes, .. } => Some((start.as_u64(), bytes.as_ref())),
                _ => None,
            })
            .collect();
        assert_eq!(pieces, [(START, &b"ab"[..]), (START + 2, b"c")]);
        assert_eq!(messages.last(), Some(&WalMessage::ServerShutdown));
        let again = streaming().message(b'd', &wal(START, b"abc")).message(b'd', &wal(START + 1, b"bc"));
        assert!(matches!(receive(again).await, Err(ReplicationError::WalNotContiguous { .. })));
    }

    #[tokio::test]
    async fn a_timeline_end_is_read_with_one_to_three_completions_and_noise() {
        for completions in 1..=3 {
            let mut script = streaming().message(b'c', b"").row(&["2", "0/1000100"]);
            for _ in 0..completions {
                script = script.complete("START_STREAMING");
            }
            let messages = receive(script.ready().noisy()).await.unwrap();
            let end = TimelineEnd { next_timeline: TimelineId::new(2).unwrap(), next_start: Lsn::new(0x100_0100) };
            assert_eq!(messages, [WalMessage::TimelineEnd(end)]);
        }
    }

    #[tokio::test]
    async fn a_start_at_the_end_of_a_timeline_has_no_copy() {
        let script = Script::default().row(&["2", "0/1000000"]).complete("A").complete("B").ready();
        assert!(matches!(receive(script).await.unwrap()[..], [WalMessage::TimelineEnd(_)]));
    }

    #[tokio::test]
    async fn a02_a_bare_end_of_the_connection_is_never_the_end_of_wal() {
        let script = streaming().message(b'd', &wal(START, b"abc")).message(b'c', b"").row(&["2", "0/1000003"]);
        let script = script.complete("A").ready();
        for count in 0..script.len() {
            let error = receive(script.cut_after(count)).await.unwrap_err();
            assert!(matches!(error, ReplicationError::ConnectionClosed { .. }), "after {count}: {error}");
        }
    }

    #[tokio::test]
    async fn pieces_of_a_wrong_form_are_refused() {
        let past_the_end = wal(u64::MAX - 1_000_000, &[0; 2_000_000]);
        for piece in [&b""[..], b"x", b"w", b"w123", b"k123", b"d", &past_the_end[..]] {
            let script = streaming().message(b'd', piece);
            // The long piece does not fit into a socket's buffer, so it is looked at without one.
            if piece.len() < 1000 {
                assert!(matches!(receive(script).await, Err(ReplicationError::ProtocolViolation(_))));
            } else {
                let (mut connection, _server) = streaming().connect().await;
                let mut stream = connection.start_replication(None, Lsn::new(START), one()).await.unwrap();
                stream.interpret(Bytes::copy_from_slice(piece)).unwrap_err();
            }
        }
    }

    #[test]
    fn the_clock_of_a_status_counts_from_2000() {
        assert_eq!(postgres_time(UNIX_EPOCH), 0);
        assert_eq!(postgres_time(UNIX_EPOCH + POSTGRES_EPOCH + Duration::from_millis(3)), 3000);
    }

    proptest! {
        #[test]
        fn random_pieces_never_panic(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..60), 0..8,
        )) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let script = pieces.iter().fold(streaming(), |script, piece| script.message(b'd', piece));
                receive(script).await.unwrap_err();
            });
        }
    }
}
