//! A server for unit tests that says what it is told to, whatever the client sends.

use bytes::{BufMut, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::connection::ReplicationConnection;
use super::transport::Transport;

/// What the server will say, message by message.
#[derive(Clone, Default)]
pub(crate) struct Script {
    messages: Vec<BytesMut>,
}

impl Script {
    pub(crate) fn message(mut self, tag: u8, body: &[u8]) -> Self {
        let mut message = BytesMut::new();
        message.put_u8(tag);
        message.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
        message.put_slice(body);
        self.messages.push(message);
        self
    }

    /// A result set with one row of texts; an empty one is NULL.
    pub(crate) fn row(self, columns: &[&str]) -> Self {
        let mut body = BytesMut::new();
        body.put_u16(u16::try_from(columns.len()).unwrap_or(u16::MAX));
        for column in columns {
            if column.is_empty() {
                body.put_i32(-1);
            } else {
                body.put_u32(u32::try_from(column.len()).unwrap_or(u32::MAX));
                body.put_slice(column.as_bytes());
            }
        }
        self.message(b'T', &[0, 0]).message(b'D', &body)
    }

    pub(crate) fn complete(self, tag: &str) -> Self {
        self.message(b'C', format!("{tag}\0").as_bytes())
    }

    pub(crate) fn error(self, sqlstate: &str) -> Self {
        self.message(b'E', format!("SERROR\0VERROR\0C{sqlstate}\0Mas told\0\0").as_bytes())
    }

    /// What may stand between any two messages.
    pub(crate) fn noise(self) -> Self {
        self.message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mjust so\0\0")
            .message(b'S', b"TimeZone\0UTC\0")
            .message(b'A', b"\0\0\0\x01channel\0\0")
    }

    pub(crate) fn ready(self) -> Self {
        self.message(b'Z', b"I")
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The same with noise before every message.
    pub(crate) fn noisy(&self) -> Self {
        self.messages.iter().fold(Self::default(), |mut script, message| {
            script = script.noise();
            script.messages.push(message.clone());
            script
        })
    }

    /// The same, but the connection ends after so many messages.
    pub(crate) fn cut_after(&self, count: usize) -> Self {
        Self { messages: self.messages[..count].to_vec() }
    }

    /// A connection whose login is done. The other end must live as long as the client writes.
    pub(crate) async fn connect(self) -> (ReplicationConnection, UnixStream) {
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(&self.messages.concat()).await.unwrap();
        server.shutdown().await.unwrap();
        (ReplicationConnection::logged_in(Transport::Unix(client)), server)
    }
}
