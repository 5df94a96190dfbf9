//! From a connection string to a session that is logged in: which host, which of its addresses, and with TLS or
//! without, as libpq goes about it.
//!
//! The next address or host is tried when one cannot be reached, is not ready or is not what
//! `target_session_attrs` asks for. A refused login is final: another host would refuse it too, and the password would
//! be tried all over a fleet. `sslmode=allow` and `prefer` try one address both ways.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;

use super::connection::ReplicationConnection;
use super::error::{ReplicationError, sqlstate};
use super::options::{ConnectionOptions, Endpoint, Host, Purpose, SslMode, TargetSession, user_name};
use super::tls::{self, Negotiated, TlsError};
use super::transport::Transport;

pub(crate) async fn dial(
    options: &ConnectionOptions,
    purpose: Purpose,
) -> Result<ReplicationConnection, ReplicationError> {
    match dial_any_host(options, options.target, purpose).await {
        Err(error) if options.target == TargetSession::PreferStandby && error.is_retryable() => {
            dial_any_host(options, TargetSession::Any, purpose).await
        }
        result => result,
    }
}

async fn dial_any_host(
    options: &ConnectionOptions,
    target: TargetSession,
    purpose: Purpose,
) -> Result<ReplicationConnection, ReplicationError> {
    let mut last_error = None;
    for host in in_order(options.hosts.clone(), options.load_balance) {
        let places = match within_limit(options, &host, look_up(&host)).await {
            Ok(places) => in_order(places, options.load_balance),
            Err(error) => {
                tracing::debug!(host = %host, error = &error as &dyn std::error::Error, "host is not known");
                last_error = Some(error);
                continue;
            }
        };
        for host in places {
            let attempt = async {
                let mut connection = connect_to(options, &host, purpose).await?;
                if connection.is_wanted(target).await? {
                    return Ok(connection);
                }
                connection.close().await;
                Err(ReplicationError::WrongTarget { endpoint: host.to_string(), target: target.as_str() })
            };
            match within_limit(options, &host, attempt).await {
                Err(error) if error.is_retryable() => {
                    tracing::debug!(host = %host, error = &error as &dyn std::error::Error, "host does not answer");
                    last_error = Some(error);
                }
                result => return result,
            }
        }
    }
    Err(last_error.unwrap_or_else(|| ReplicationError::Connect {
        endpoint: "any host".to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "no host is configured"),
    }))
}

async fn connect_to(
    options: &ConnectionOptions,
    host: &Host,
    purpose: Purpose,
) -> Result<ReplicationConnection, ReplicationError> {
    let attempt = Attempt { options, host, purpose, session_settings: true };
    match attempt.make().await {
        // PostgreSQL 13 does not know the setting.
        Err(error) if error.sqlstate() == Some(sqlstate::UNDEFINED_OBJECT) => {
            Attempt { session_settings: false, ..attempt }.make().await
        }
        result => result,
    }
}

/// The time limit holds for each address anew.
async fn within_limit<T>(
    options: &ConnectionOptions,
    host: &Host,
    work: impl Future<Output = Result<T, ReplicationError>>,
) -> Result<T, ReplicationError> {
    // On the heap: the many steps of a login would make every future above as large.
    let work = Box::pin(work);
    match options.connect_timeout {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(ReplicationError::ConnectTimeout { endpoint: host.to_string(), seconds: limit.as_secs() })
        }),
    }
}

/// The addresses of a host, each as a host of its own.
async fn look_up(host: &Host) -> Result<Vec<Host>, ReplicationError> {
    let Endpoint::Name { name, address: None } = &host.endpoint else {
        return Ok(vec![host.clone()]);
    };
    let failed = |source| ReplicationError::Connect { endpoint: host.to_string(), source };
    let found = tokio::net::lookup_host((name.as_str(), host.port)).await.map_err(failed)?;
    let at = |address: SocketAddr| Host {
        endpoint: Endpoint::Name { name: name.clone(), address: Some(address.ip()) },
        port: host.port,
    };
    let places: Vec<Host> = found.map(at).collect();
    if places.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    Ok(places)
}

fn in_order<T>(mut list: Vec<T>, random: bool) -> Vec<T> {
    if random {
        // The standard library's hash keys are random: enough to spread connections.
        for index in (1..list.len()).rev() {
            let number = RandomState::new().build_hasher().finish();
            let below = u64::try_from(index).unwrap_or(0) + 1;
            list.swap(index, usize::try_from(number % below).unwrap_or(0));
        }
    }
    list
}

/// One address.
struct Attempt<'a> {
    options: &'a ConnectionOptions,
    host: &'a Host,
    purpose: Purpose,
    /// Whether the session gets settings of pgark's own.
    session_settings: bool,
}

impl Attempt<'_> {
    async fn make(&self) -> Result<ReplicationConnection, ReplicationError> {
        match &self.host.endpoint {
            Endpoint::SocketDirectory(_) => self.over_unix().await,
            // Always resolved by now.
            Endpoint::Name { address: None, .. } => Err(self.not_reached(io::ErrorKind::InvalidInput.into())),
            Endpoint::Name { address: Some(address), .. } => {
                let address = SocketAddr::new(*address, self.host.port);
                match self.options.tls.mode {
                    SslMode::Disable => self.without_tls(address).await,
                    SslMode::Allow => self.without_tls_first(address).await,
                    SslMode::Prefer | SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                        self.with_tls(address).await
                    }
                }
            }
        }
    }

    /// TLS is never used there: nobody else can listen.
    async fn over_unix(&self) -> Result<ReplicationConnection, ReplicationError> {
        let stream =
            Transport::connect_unix(&self.host.socket_path()).await.map_err(|error| self.not_reached(error))?;
        if let Some(wanted) = &self.options.required_peer {
            let owner = stream.peer_cred().map_err(|error| self.not_reached(error))?.uid();
            let name = user_name(owner);
            if name.as_ref() != Some(wanted) {
                return Err(ReplicationError::WrongPeer {
                    endpoint: self.host.to_string(),
                    owner: name.unwrap_or_else(|| owner.to_string()),
                    wanted: wanted.clone(),
                });
            }
        }
        self.log_in(Transport::Unix(stream)).await
    }

    async fn without_tls(&self, address: SocketAddr) -> Result<ReplicationConnection, ReplicationError> {
        let stream = self.reach(address).await?;
        self.log_in(Transport::Tcp(stream)).await
    }

    async fn without_tls_first(&self, address: SocketAddr) -> Result<ReplicationConnection, ReplicationError> {
        let plain = match self.without_tls(address).await {
            Err(error) if error.may_depend_on_tls() => error,
            result => return result,
        };
        match self.negotiate(address).await? {
            Negotiated::NotOffered(_) => Err(plain),
            Negotiated::Encrypted(stream) => {
                self.log_in(Transport::Tls(stream)).await.map_err(|encrypted| more_telling(encrypted, plain))
            }
        }
    }

    /// With `prefer` the server may decline it, and whatever fails with it is tried again without.
    async fn with_tls(&self, address: SocketAddr) -> Result<ReplicationConnection, ReplicationError> {
        let attempt = match self.negotiate(address).await {
            Ok(Negotiated::NotOffered(stream)) => return self.log_in(Transport::Tcp(stream)).await,
            Ok(Negotiated::Encrypted(stream)) => self.log_in(Transport::Tls(stream)).await,
            Err(error) => Err(error),
        };
        match attempt {
            Err(error) if self.options.tls.mode == SslMode::Prefer && error.may_depend_on_tls() => {
                tracing::debug!(host = %self.host, error = &error as &dyn std::error::Error, "trying without TLS");
                self.without_tls(address).await.map_err(|plain| more_telling(error, plain))
            }
            result => result,
        }
    }

    async fn negotiate(&self, address: SocketAddr) -> Result<Negotiated, ReplicationError> {
        let stream = self.reach(address).await?;
        tls::negotiate(stream, self.host, &self.options.tls).await
    }

    async fn reach(&self, address: SocketAddr) -> Result<tokio::net::TcpStream, ReplicationError> {
        Transport::connect_tcp(address, &self.options.keepalive).await.map_err(|error| self.not_reached(error))
    }

    async fn log_in(&self, transport: Transport) -> Result<ReplicationConnection, ReplicationError> {
        let mut connection = ReplicationConnection::new(transport, self.host.clone());
        let result = connection.log_in(self.options, self.purpose, self.session_settings).await;
        result.map(|()| connection).map_err(|error| match &error {
            // TLS 1.3 tells what it thinks of our certificate when we take it for done.
            ReplicationError::ConnectionLost { source, .. } => match TlsError::of_broken_connection(source) {
                Some(source) => ReplicationError::Tls { endpoint: self.host.to_string(), source },
                None => error,
            },
            _ => error,
        })
    }

    fn not_reached(&self, source: io::Error) -> ReplicationError {
        ReplicationError::Connect { endpoint: self.host.to_string(), source }
    }
}

/// Of two failures at one address, what the user should see: the one with TLS, unless it did not get as far as the
/// other one.
fn more_telling(encrypted: ReplicationError, plain: ReplicationError) -> ReplicationError {
    let got_further = matches!(encrypted, ReplicationError::Tls { .. } | ReplicationError::ConnectionLost { .. })
        && !matches!(plain, ReplicationError::NotInPgHba { .. });
    if got_further { plain } else { encrypted }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_random_order_loses_nobody_and_differs() {
        let list: Vec<u32> = (0..20).collect();
        assert_eq!(in_order(list.clone(), false), list);
        let mut shuffled = in_order(list.clone(), true);
        assert_ne!(shuffled, list);
        shuffled.sort_unstable();
        assert_eq!(shuffled, list);
    }
}
