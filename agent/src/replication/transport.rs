//! The byte stream under a session: TCP or a unix socket.
//!
//! TLS will be a third kind here; nothing above looks at which one it is, except to refuse a password in clear text.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::error::ReplicationError;
use super::options::{Endpoint, Host, Keepalive};

/// An open connection to a server.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Transport {
    /// Opens the connection; the time limit is the caller's.
    pub(crate) async fn connect(host: &Host, keepalive: &Keepalive) -> Result<Self, ReplicationError> {
        Self::open(host, keepalive)
            .await
            .map_err(|source| ReplicationError::Connect { endpoint: host.to_string(), source })
    }

    async fn open(host: &Host, keepalive: &Keepalive) -> io::Result<Self> {
        match &host.endpoint {
            Endpoint::SocketDirectory(_) => Ok(Self::Unix(UnixStream::connect(host.socket_path()).await?)),
            Endpoint::Name { name, address } => {
                let stream = match address {
                    Some(address) => TcpStream::connect((*address, host.port)).await?,
                    None => TcpStream::connect((name.as_str(), host.port)).await?,
                };
                stream.set_nodelay(true)?;
                set_keepalive(&stream, keepalive)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Tells whether others could read what is sent.
    pub(crate) fn is_readable_by_others(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

/// A server that waits for a spread checkpoint is silent for minutes, so no read may time out: a dead peer is found
/// by the kernel instead.
fn set_keepalive(stream: &TcpStream, keepalive: &Keepalive) -> io::Result<()> {
    use rustix::net::sockopt;

    if !keepalive.enabled {
        return Ok(());
    }
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, keepalive.idle)?;
    sockopt::set_tcp_keepintvl(stream, keepalive.interval)?;
    sockopt::set_tcp_keepcnt(stream, keepalive.count)?;
    if keepalive.user_timeout > Duration::ZERO {
        let milliseconds = u32::try_from(keepalive.user_timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(stream, milliseconds)?;
    }
    Ok(())
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
