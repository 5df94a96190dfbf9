//! What can go wrong with TLS: with the files that are needed for it, and with the server.

use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

/// The files or settings for TLS cannot be used; no server has been asked yet.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsSettingsError {
    /// Nobody says which authorities vouch for the server.
    #[error("{wish} needs root certificates, and there is no {}", path.display())]
    NoRoots {
        /// What they are needed for.
        wish: String,
        /// Where they are looked for.
        path: PathBuf,
    },
    /// The machine has no certificates of its own.
    #[error("sslrootcert=system needs root certificates, and this machine has none")]
    NoSystemRoots,
    /// A file cannot be read.
    #[error("cannot read the {what} {}", path.display())]
    Read {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there, and holds something else.
    #[error("the {what} {} holds none in PEM form that can be read", path.display())]
    Content {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// A certificate without its key.
    #[error("there is the client certificate {}, but no key for it{}", path.display(), shown(key.as_ref()))]
    NoKey {
        /// The certificate.
        path: PathBuf,
        /// Where the key is looked for.
        key: Option<PathBuf>,
    },
    /// Others may read the key.
    #[error("the client's private key {} may be read by others", path.display())]
    KeyPermissions {
        /// Where it is.
        path: PathBuf,
    },
    /// The key is protected by a password.
    #[error("the client's private key {} is encrypted, which pgark does not read", path.display())]
    KeyEncrypted {
        /// Where it is.
        path: PathBuf,
    },
    /// Key and certificate do not match, or the key is of a kind that is not known.
    #[error("the client's private key {} cannot be used with its certificate", path.display())]
    Key {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The list of revoked certificates makes no sense to the verifier.
    #[error("the root certificates and the list of revoked certificates cannot be used together")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// No version of TLS is left.
    #[error("no version of TLS is left to speak")]
    Versions(#[source] rustls::Error),
}

fn shown(path: Option<&PathBuf>) -> String {
    path.map(|path| format!(" in {}", path.display())).unwrap_or_default()
}

impl TlsSettingsError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoRoots { .. } => {
                "name the file with the certificate of the server's authority: sslrootcert=…, or sslrootcert=system for a \
                 public one"
            }
            Self::NoSystemRoots => "install ca-certificates, or name a file with sslrootcert",
            Self::NoKey { .. } => "name the key with sslkey, or set sslcertmode=disable",
            Self::KeyPermissions { path } => {
                return Some(format!("chmod 0600 {} (0640 if root owns it)", path.display()));
            }
            Self::KeyEncrypted { path } => {
                return Some(format!("openssl pkey -in {} -out FILE, and name that file with sslkey", path.display()));
            }
            Self::Key { .. } => "name the key that belongs to sslcert with sslkey",
            Self::Read { .. } | Self::Content { .. } | Self::Verifier(_) | Self::Versions(_) => return None,
        };
        Some(hint.to_owned())
    }
}

/// TLS with a server did not come about. Each message speaks of the server that is named before it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Nobody who is believed vouches for the server.
    #[error("its certificate is not from an authority in {roots}")]
    UnknownAuthority {
        /// Whom to believe.
        roots: String,
    },
    /// The certificate belongs to somebody else.
    #[error("its certificate is for {names}, not for {host}")]
    WrongName {
        /// The name of the connection string.
        host: String,
        /// The names in the certificate.
        names: String,
    },
    /// It was valid once.
    #[error("its certificate has expired{}", since(*.at))]
    Expired {
        /// Seconds since 1970, if known.
        at: Option<u64>,
    },
    /// It will be valid some day.
    #[error("its certificate is not valid yet")]
    NotValidYet,
    /// Its authority has taken it back.
    #[error("its certificate is revoked")]
    Revoked,
    /// There is a list of revoked certificates, but none that is of use.
    #[error("no current list of revoked certificates tells about its certificate")]
    UnknownRevocation,
    /// Something else is wrong with it.
    #[error("its certificate cannot be verified: {0}")]
    Certificate(CertificateError),
    /// It is no certificate that could be read.
    #[error("its certificate is malformed")]
    MalformedCertificate,
    /// The server ended it.
    #[error("it refused TLS with the alert {alert:?}")]
    Refused {
        /// What it said.
        alert: AlertDescription,
    },
    /// Something spoke before TLS had begun.
    #[error("unencrypted data arrived where TLS begins; somebody may be in between")]
    Unprotected,
    /// The server had no room for the question.
    #[error("it reported an error instead of beginning TLS")]
    ErrorInstead,
    /// That is no PostgreSQL.
    #[error("it answered the question for TLS with byte {byte:#04x}, which is not PostgreSQL's protocol")]
    UnknownAnswer {
        /// What came.
        byte: u8,
    },
    /// A server of something else.
    #[error("it does not speak PostgreSQL's protocol below TLS")]
    OtherProtocol,
    /// `sslcertmode=require` was not satisfied.
    #[error("it did not take a client certificate, which sslcertmode=require demands")]
    ClientCertificateNotAsked,
    /// The connection broke, or the two have nothing in common.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
}

fn since(at: Option<u64>) -> String {
    let at = at.and_then(|seconds| jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok());
    at.map(|at| format!(" at {at}")).unwrap_or_default()
}

impl TlsError {
    pub(super) fn of_handshake(error: io::Error, roots: String) -> Self {
        match rustls_error(&error) {
            Some(rustls::Error::InvalidCertificate(certificate)) => Self::of_certificate(certificate.clone(), roots),
            Some(rustls::Error::AlertReceived(alert)) => Self::Refused { alert: *alert },
            _ => Self::Handshake(error),
        }
    }

    fn of_certificate(error: CertificateError, roots: String) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::UnknownAuthority { roots },
            CertificateError::Expired => Self::Expired { at: None },
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired { at: Some(not_after.as_secs()) },
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotValidYet,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => Self::UnknownRevocation,
            other => Self::Certificate(other),
        }
    }

    /// The server refuses what it saw of us (TLS 1.3 tells only after the handshake): found in a broken connection.
    pub(crate) fn of_broken_connection(error: &io::Error) -> Option<Self> {
        match rustls_error(error)? {
            rustls::Error::AlertReceived(alert) => Some(Self::Refused { alert: *alert }),
            _ => None,
        }
    }

    /// Tells whether trying again may help.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Self::ErrorInstead) || matches!(self, Self::Handshake(error) if rustls_error(error).is_none())
    }

    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::UnknownAuthority { .. } => {
                "name a file with the certificate of the server's authority with sslrootcert; if the server is not the right \
                 one, somebody is in between"
            }
            Self::WrongName { host, .. } => {
                return Some(format!(
                    "connect by a name of the certificate (host=NAME hostaddr=ADDRESS), or issue a certificate for {host}"
                ));
            }
            Self::Expired { .. } => {
                "renew the certificate that ssl_cert_file of the server names, then SELECT pg_reload_conf();"
            }
            Self::NotValidYet => "check the clock of this machine",
            Self::Revoked => "give the server a new certificate, or check that it is the right server",
            Self::UnknownRevocation => "renew the file that sslcrl names",
            Self::Certificate(_) => {
                "issue the server's certificate as X.509 version 3, for a server, with a key of RSA (2048 bits), P-256, P-384 \
                 or Ed25519 and SHA-256 or better"
            }
            Self::Refused {
                alert:
                    AlertDescription::UnknownCA
                    | AlertDescription::BadCertificate
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateRevoked
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::DecryptError
                    | AlertDescription::UnsupportedCertificate,
            } => "the server does not accept the client certificate: check sslcert, and ssl_ca_file of the server",
            Self::Refused { .. } => "check ssl_min_protocol_version and ssl_ciphers of the server",
            Self::ErrorInstead => "look for the reason in the server's log, then try again",
            Self::UnknownAnswer { .. } | Self::OtherProtocol | Self::MalformedCertificate | Self::Unprotected => {
                "check that host and port of the connection string lead to the right server"
            }
            Self::ClientCertificateNotAsked => "name the certificate with sslcert, and set ssl_ca_file on the server",
            Self::Handshake(_) => {
                "look for the reason in the server's log; servers before 17 do not know sslnegotiation=direct"
            }
        };
        Some(hint.to_owned())
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
