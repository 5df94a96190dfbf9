//! A connection for ordinary SQL: hosts, TLS and the login are those of a replication connection, and tokio-postgres
//! speaks on it from then on.
//!
//! tokio-postgres begins with a login of its own. It hears that it is in as soon as it asks, and what it asked for is
//! not sent on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::dial::dial;
use super::error::ReplicationError;
use super::options::{ConnectionOptions, Purpose};
use super::transport::Transport;

/// AuthenticationOk and ReadyForQuery.
const YOU_ARE_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

/// The stream for `tokio_postgres::Config::connect_raw`.
#[derive(Debug)]
pub(crate) struct SqlStream {
    transport: Transport,
    /// What is read before anything from the server.
    heard: Bytes,
    /// What has been written of the start-up message, while it is not complete.
    startup: Option<BytesMut>,
}

impl SqlStream {
    /// Connects to the first host that is wanted and logs in to the database of the connection string.
    pub(crate) async fn connect(options: &ConnectionOptions) -> Result<Self, ReplicationError> {
        let (transport, input) = dial(options, Purpose::Sql).await?.into_parts();
        let mut heard = BytesMut::from(YOU_ARE_IN);
        heard.extend_from_slice(&input);
        Ok(Self::new(transport, heard.freeze()))
    }

    fn new(transport: Transport, heard: Bytes) -> Self {
        Self { transport, heard, startup: Some(BytesMut::new()) }
    }

    /// Takes what belongs to the start-up message, and says how much that was.
    fn swallow(&mut self, bytes: &[u8]) -> usize {
        let Some(startup) = &mut self.startup else { return 0 };
        let before = startup.len();
        for &byte in bytes {
            startup.extend_from_slice(&[byte]);
            // The length comes first and counts itself.
            let len = startup.get(..4).and_then(|len| <[u8; 4]>::try_from(len).ok()).map(u32::from_be_bytes);
            if len.is_some_and(|len| u32::try_from(startup.len()).is_ok_and(|written| written >= len)) {
                let taken = startup.len() - before;
                self.startup = None;
                return taken;
            }
        }
        bytes.len()
    }
}

impl AsyncRead for SqlStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.heard.is_empty() {
            return Pin::new(&mut this.transport).poll_read(cx, buf);
        }
        let len = this.heard.len().min(buf.remaining());
        buf.put_slice(&this.heard[..len]);
        this.heard.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SqlStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.startup.is_some() && !buf.is_empty() {
            return Poll::Ready(Ok(this.swallow(buf)));
        }
        Pin::new(&mut this.transport).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn the_second_login_stays_here_in_pieces_of_any_size() {
        let startup = b"\0\0\0\x0c\0\x03\0\0abcd";
        for size in [1, 3, 5, 12, 100] {
            let (client, mut server) = UnixStream::pair().unwrap();
            let mut stream = SqlStream::new(Transport::Unix(client), Bytes::from_static(b"hello "));
            for piece in [&startup[..], b"question"].concat().chunks(size) {
                stream.write_all(piece).await.unwrap();
            }
            let mut question = [0; 8];
            server.read_exact(&mut question).await.unwrap();
            assert_eq!(&question, b"question");
            server.write_all(b"world").await.unwrap();
            let mut heard = [0; 11];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"hello world");
        }
    }
}
