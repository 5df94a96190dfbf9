//! The byte stream under a session: TCP, TLS over it, or a unix socket.
//!
//! Nothing above looks at which one it is, except the login: who may hear a password, and what ties it to this
//! connection.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::options::Keepalive;
use super::tls::EncryptedStream;

/// An open connection to a server.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Tls(Box<EncryptedStream>),
    Unix(UnixStream),
}

/// What protects a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Protection {
    /// It does not leave the machine.
    Local,
    /// Others could read and change what is sent.
    None,
    /// TLS, with what ties a login to it, if there is such a thing.
    Tls { end_point: Option<Vec<u8>> },
}

impl Transport {
    pub(crate) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
        UnixStream::connect(path).await
    }

    pub(crate) async fn connect_tcp(address: SocketAddr, keepalive: &Keepalive) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        set_keepalive(&stream, keepalive)?;
        Ok(stream)
    }

    pub(crate) fn protection(&self) -> Protection {
        match self {
            Self::Tcp(_) => Protection::None,
            Self::Tls(encrypted) => Protection::Tls { end_point: encrypted.end_point.clone() },
            Self::Unix(_) => Protection::Local,
        }
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
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(encrypted) => Pin::new(&mut encrypted.stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
