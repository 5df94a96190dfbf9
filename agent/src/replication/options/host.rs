//! The places where a server may listen, from `host`, `hostaddr` and `port`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::values::{Values, invalid};
use crate::replication::connection_string::ConnectionStringError;

const DEFAULT_PORT: u16 = 5432;
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// One place where a server may listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A name or a directory.
    pub endpoint: Endpoint,
    /// The TCP port, or the number in the socket's name.
    pub port: u16,
}

/// How to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The directory of the server's unix socket.
    SocketDirectory(PathBuf),
    /// TCP.
    Name {
        /// What to look up, and what stands in `.pgpass`.
        name: String,
        /// Where to connect without looking up, from `hostaddr`.
        address: Option<IpAddr>,
    },
}

impl Host {
    /// The path of the server's socket, where it is one.
    pub(crate) fn socket_path(&self) -> PathBuf {
        match &self.endpoint {
            Endpoint::SocketDirectory(directory) => directory.join(format!(".s.PGSQL.{}", self.port)),
            Endpoint::Name { .. } => PathBuf::new(),
        }
    }

    /// The first field of `.pgpass`: `localhost` stands for the default socket too.
    pub(crate) fn password_file_name(&self) -> String {
        match &self.endpoint {
            Endpoint::SocketDirectory(directory) if directory == Path::new(DEFAULT_SOCKET_DIRECTORY) => {
                "localhost".to_owned()
            }
            Endpoint::SocketDirectory(directory) => directory.to_string_lossy().into_owned(),
            Endpoint::Name { name, .. } => name.clone(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::SocketDirectory(_) => write!(f, "socket {}", self.socket_path().display()),
            Endpoint::Name { name, address } => {
                let bracket = name.contains(':');
                write!(f, "{}{name}{}:{}", if bracket { "[" } else { "" }, if bracket { "]" } else { "" }, self.port)?;
                match address {
                    Some(address) if address.to_string() != *name => write!(f, " ({address})"),
                    _ => Ok(()),
                }
            }
        }
    }
}

pub(super) fn parse_hosts(values: &Values) -> Result<Vec<Host>, ConnectionStringError> {
    let list = |keyword: &str| -> Vec<&str> {
        values.get_filled(keyword).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    // As in libpq, `hostaddr` alone is enough, and decides about the number.
    let count = if addresses.is_empty() { names.len().max(1) } else { addresses.len() };
    if !names.is_empty() && names.len() != count {
        return Err(ConnectionStringError::ListMismatch { keyword: "hostaddr", found: count, hosts: names.len() });
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(ConnectionStringError::ListMismatch { keyword: "port", found: ports.len(), hosts: count });
    }
    (0..count)
        .map(|index| {
            let name = names.get(index).copied().unwrap_or_default();
            let address = addresses.get(index).copied().unwrap_or_default();
            let port = if ports.len() == 1 { ports[0] } else { ports.get(index).copied().unwrap_or_default() };
            Ok(Host { endpoint: parse_endpoint(name, address)?, port: parse_port(port)? })
        })
        .collect()
}

fn parse_endpoint(name: &str, address: &str) -> Result<Endpoint, ConnectionStringError> {
    if !address.is_empty() {
        let parsed = address.parse().map_err(|_| invalid("hostaddr", "an IP address"))?;
        let name = if name.is_empty() { address } else { name };
        return Ok(Endpoint::Name { name: name.to_owned(), address: Some(parsed) });
    }
    if name.is_empty() {
        return Ok(Endpoint::SocketDirectory(PathBuf::from(DEFAULT_SOCKET_DIRECTORY)));
    }
    if name.starts_with('/') {
        return Ok(Endpoint::SocketDirectory(PathBuf::from(name)));
    }
    if name.starts_with('@') {
        return Err(ConnectionStringError::Unsupported { keyword: "host", reason: "abstract sockets are not there" });
    }
    Ok(Endpoint::Name { name: name.to_owned(), address: None })
}

fn parse_port(text: &str) -> Result<u16, ConnectionStringError> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    text.parse().ok().filter(|&port| port != 0).ok_or_else(|| invalid("port", "a number from 1 to 65535"))
}
