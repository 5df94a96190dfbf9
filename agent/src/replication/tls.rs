//! TLS on a connection to a server: how it begins, and what is checked before anything else is said.
//!
//! PostgreSQL negotiates TLS on its own port. The client asks with SSLRequest and gets a single byte: `S` for "begin",
//! `N` for "not here". With `sslnegotiation=direct` (from 17 on) TLS begins at once. What the server sent before TLS
//! began is not protected, so nothing of it is used: more than that byte is refused (CVE-2021-23222), and the words of
//! an error instead of it are not repeated (CVE-2024-10977).
//!
//! The chain of the server's certificate is checked within the handshake ([`verifier`]), its name right after it
//! ([`certificate`]), and both only as far as `sslmode` and the root certificates say.

mod certificate;
mod client_certificate;
mod error;
mod files;
mod verifier;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::certificate::ServerCertificate;
use self::client_certificate::ClientCertificate;
use self::files::Roots;
use self::verifier::Verifier;
use super::error::ReplicationError;
use super::options::{ClientCertificateMode, Endpoint, Host, SslMode, SslNegotiation, TlsOptions, TlsVersion};

pub use self::error::{TlsError, TlsSettingsError};

/// The name of PostgreSQL's protocol in TLS, so that a server of another protocol cannot be used in its place.
const PROTOCOL: &[u8] = b"postgresql";

/// What became of the wish for TLS.
#[derive(Debug)]
pub(crate) enum Negotiated {
    Encrypted(Box<EncryptedStream>),
    /// The server has no TLS, and the connection is as it was.
    NotOffered(TcpStream),
}

/// A connection under TLS whose server has been checked.
#[derive(Debug)]
pub(crate) struct EncryptedStream {
    pub(crate) stream: TlsStream<TcpStream>,
    /// The hash of the server's certificate that ties a login to this connection, if its signature has one.
    pub(crate) end_point: Option<Vec<u8>>,
}

/// Begins TLS on a connection to `host`, as far as the server has it.
pub(crate) async fn negotiate(
    mut stream: TcpStream,
    host: &Host,
    options: &TlsOptions,
) -> Result<Negotiated, ReplicationError> {
    let roots = files::read_roots(options)?;
    let names = roots.description();
    let client_certificate = Arc::new(ClientCertificate::read(options)?);
    let config = configure(options, roots, Arc::clone(&client_certificate))?;
    let failed = |source: TlsError| ReplicationError::Tls { endpoint: host.to_string(), source };

    if options.negotiation == SslNegotiation::Postgres && !ask(&mut stream).await.map_err(failed)? {
        return if options.mode < SslMode::Require {
            Ok(Negotiated::NotOffered(stream))
        } else {
            Err(ReplicationError::TlsNotOffered { endpoint: host.to_string(), mode: options.mode.as_str() })
        };
    }
    let peer = stream.peer_addr().map(|address| address.ip()).map_err(|error| failed(TlsError::Handshake(error)))?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect(server_name(host, peer), stream)
        .await
        .map_err(|error| failed(TlsError::of_handshake(error, names)))?;
    check(stream, host, options, &client_certificate)
        .map(|stream| Negotiated::Encrypted(Box::new(stream)))
        .map_err(failed)
}

/// Asks for TLS; tells whether the server begins it.
async fn ask(stream: &mut TcpStream) -> Result<bool, TlsError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(TlsError::Handshake)?;
    // One byte more than there may be. If that comes later, the handshake takes it for TLS and fails.
    let mut answer = [0; 2];
    match stream.read(&mut answer).await.map_err(TlsError::Handshake)? {
        0 => Err(TlsError::Handshake(io::ErrorKind::UnexpectedEof.into())),
        1 => match answer[0] {
            b'S' => Ok(true),
            b'N' => Ok(false),
            b'E' => Err(TlsError::ErrorInstead),
            byte => Err(TlsError::UnknownAnswer { byte }),
        },
        _ if answer[0] == b'E' => Err(TlsError::ErrorInstead),
        _ => Err(TlsError::Unprotected),
    }
}

fn configure(
    options: &TlsOptions,
    roots: Roots,
    client_certificate: Arc<ClientCertificate>,
) -> Result<ClientConfig, TlsSettingsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: Vec<_> = [(TlsVersion::Tls12, &rustls::version::TLS12), (TlsVersion::Tls13, &rustls::version::TLS13)]
        .into_iter()
        .filter(|(version, _)| (options.min_version..=options.max_version).contains(version))
        .map(|(_, version)| version)
        .collect();
    let verifier = Verifier::new(roots, &provider)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(TlsSettingsError::Versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(client_certificate);
    config.enable_sni = options.server_name_indication;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// The name that is sent. What cannot be sent as a name is compared all the same, in [`check`].
fn server_name(host: &Host, peer: IpAddr) -> ServerName<'static> {
    let name = match &host.endpoint {
        Endpoint::Name { name, .. } => ServerName::try_from(name.clone()).ok(),
        Endpoint::SocketDirectory(_) => None,
    };
    name.unwrap_or_else(|| ServerName::IpAddress(peer.into()))
}

/// What the handshake itself does not look at.
fn check(
    stream: TlsStream<TcpStream>,
    host: &Host,
    options: &TlsOptions,
    client_certificate: &ClientCertificate,
) -> Result<EncryptedStream, TlsError> {
    let (_, session) = stream.get_ref();
    if options.negotiation == SslNegotiation::Direct && session.alpn_protocol() != Some(PROTOCOL) {
        return Err(TlsError::OtherProtocol);
    }
    if options.certificate_mode == ClientCertificateMode::Require && !client_certificate.was_shown() {
        return Err(TlsError::ClientCertificateNotAsked);
    }
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = ServerCertificate::parse(certificate.ok_or(TlsError::MalformedCertificate)?)?;
    if options.mode == SslMode::VerifyFull
        && let Endpoint::Name { name, .. } = &host.endpoint
    {
        certificate.check_name(name)?;
    }
    Ok(EncryptedStream { end_point: certificate.end_point(), stream })
}
