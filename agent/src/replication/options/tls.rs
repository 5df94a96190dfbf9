//! What the connection string says about TLS: the `ssl…` keywords, with libpq's meaning and defaults.

use std::path::PathBuf;

use super::values::{Values, invalid};
use crate::replication::connection_string::ConnectionStringError;

/// How much TLS is wanted, with libpq's names; the order is from none to strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server insists.
    Allow,
    /// If the server can.
    Prefer,
    /// Always, without checking who answers unless there are root certificates.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate for this very host.
    VerifyFull,
}

const MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

impl SslMode {
    /// The name in connection strings.
    pub fn as_str(self) -> &'static str {
        MODES.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }
}

/// A file that libpq looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath {
    /// Where.
    pub path: PathBuf,
    /// Somebody named it, so it must be there; else it is the default, and counts only if it exists. (libpq goes on
    /// without a file that was named and is missing: a slip of the pen would then switch checks off.)
    pub named: bool,
}

/// Which certificate authorities vouch for a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// Those of the machine: `sslrootcert=system`.
    System,
    /// Those of a file. Where there is none nobody is checked, unless the mode says that somebody must be.
    File(Option<FilePath>),
}

/// Whether the client shows a certificate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificateMode {
    /// Never.
    Disable,
    /// If there is one and the server asks.
    Allow,
    /// A server that does not ask is refused.
    Require,
}

/// How TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslNegotiation {
    /// The client asks and the server answers.
    Postgres,
    /// At once, from PostgreSQL 17 on.
    Direct,
}

/// A version of TLS that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Everything about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Whether, and how strictly.
    pub mode: SslMode,
    /// How it begins.
    pub negotiation: SslNegotiation,
    /// Whom to believe.
    pub roots: RootCertificates,
    /// Lists of revoked certificates.
    pub revocation_list: Option<FilePath>,
    /// Whether the client shows its own certificate.
    pub certificate_mode: ClientCertificateMode,
    /// The client's own certificate.
    pub certificate: Option<FilePath>,
    /// Its private key.
    pub key: Option<FilePath>,
    /// Whether the host name is sent in clear at the start.
    pub server_name_indication: bool,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// The newest.
    pub max_version: TlsVersion,
}

impl TlsOptions {
    pub(super) fn parse(
        values: &Values,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConnectionStringError> {
        let home = variable("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".postgresql"));
        let file = |keyword: &str, name: &str| match values.get_filled(keyword) {
            Some(path) => Some(FilePath { path: PathBuf::from(path), named: true }),
            None => home.as_ref().map(|home| FilePath { path: home.join(name), named: false }),
        };
        refuse_what_is_not_there(values)?;
        let roots = match values.get_filled("sslrootcert") {
            Some("system") => RootCertificates::System,
            _ => RootCertificates::File(file("sslrootcert", "root.crt")),
        };
        let mode = parse_mode(values, &roots)?;
        let negotiation = values.choice(
            "sslnegotiation",
            &[("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)],
            SslNegotiation::Postgres,
            "postgres or direct",
        )?;
        if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
            return Err(invalid("sslmode", "require or stricter, which sslnegotiation=direct needs"));
        }
        let certificate_mode = values.choice(
            "sslcertmode",
            &[
                ("disable", ClientCertificateMode::Disable),
                ("allow", ClientCertificateMode::Allow),
                ("require", ClientCertificateMode::Require),
            ],
            ClientCertificateMode::Allow,
            "one of disable, allow and require",
        )?;
        let (min_version, max_version) = parse_versions(values)?;
        Ok(Self {
            mode,
            negotiation,
            roots,
            revocation_list: file("sslcrl", "root.crl"),
            certificate_mode,
            certificate: file("sslcert", "postgresql.crt"),
            key: file("sslkey", "postgresql.key"),
            server_name_indication: values.number("sslsni")? != Some(0),
            min_version,
            max_version,
        })
    }
}

/// What libpq has and pgark does not, and would be missed in silence.
fn refuse_what_is_not_there(values: &Values) -> Result<(), ConnectionStringError> {
    let refused = [
        ("sslcrldir", "put the lists into one file and name it with sslcrl"),
        ("sslpassword", "keep the key unencrypted in a file of mode 0600"),
    ];
    for (keyword, reason) in refused {
        if values.get_filled(keyword).is_some() {
            return Err(ConnectionStringError::Unsupported { keyword, reason });
        }
    }
    match values.get_filled("gssencmode") {
        Some("require") => Err(ConnectionStringError::Unsupported {
            keyword: "gssencmode=require",
            reason: "GSSAPI encryption is not there; use sslmode",
        }),
        _ => Ok(()),
    }
}

fn parse_mode(values: &Values, roots: &RootCertificates) -> Result<SslMode, ConnectionStringError> {
    let system = *roots == RootCertificates::System;
    let default = if system { SslMode::VerifyFull } else { SslMode::Prefer };
    let expected = "one of disable, allow, prefer, require, verify-ca and verify-full";
    let mode = values.choice("sslmode", &MODES, default, expected)?;
    // Anybody gets a certificate of a public authority: only the name tells the right server from another.
    if system && mode < SslMode::VerifyFull {
        return Err(invalid("sslmode", "verify-full, which sslrootcert=system needs"));
    }
    Ok(mode)
}

fn parse_versions(values: &Values) -> Result<(TlsVersion, TlsVersion), ConnectionStringError> {
    const VERSIONS: [(&str, Option<TlsVersion>); 4] = [
        ("TLSv1", None),
        ("TLSv1.1", None),
        ("TLSv1.2", Some(TlsVersion::Tls12)),
        ("TLSv1.3", Some(TlsVersion::Tls13)),
    ];
    let expected = "one of TLSv1, TLSv1.1, TLSv1.2 and TLSv1.3";
    let min = values.choice("ssl_min_protocol_version", &VERSIONS, Some(TlsVersion::Tls12), expected)?;
    let max = values.choice("ssl_max_protocol_version", &VERSIONS, Some(TlsVersion::Tls13), expected)?;
    // Versions before 1.2 are not spoken, so a lower bound there is always kept and an upper one never.
    let min = min.unwrap_or(TlsVersion::Tls12);
    let max = max.ok_or(ConnectionStringError::Unsupported {
        keyword: "ssl_max_protocol_version",
        reason: "TLS before 1.2 is not spoken",
    })?;
    if min > max {
        return Err(invalid("ssl_max_protocol_version", "at least ssl_min_protocol_version"));
    }
    Ok((min, max))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::replication::ConnectionOptions;

    fn parse(text: &str) -> Result<TlsOptions, ConnectionStringError> {
        let variable = |name: &str| (name == "HOME").then(|| "/h".to_owned());
        ConnectionOptions::parse(text, &variable, Some("u")).map(|options| options.tls)
    }

    #[test]
    fn defaults_are_those_of_libpq() {
        let tls = parse("").unwrap();
        assert_eq!((tls.mode, tls.negotiation), (SslMode::Prefer, SslNegotiation::Postgres));
        let default = |name| Some(FilePath { path: Path::new("/h/.postgresql").join(name), named: false });
        assert_eq!(tls.roots, RootCertificates::File(default("root.crt")));
        assert_eq!((tls.certificate, tls.key), (default("postgresql.crt"), default("postgresql.key")));
        assert_eq!((tls.certificate_mode, tls.revocation_list), (ClientCertificateMode::Allow, default("root.crl")));
        assert_eq!((tls.min_version, tls.max_version), (TlsVersion::Tls12, TlsVersion::Tls13));
        assert!(tls.server_name_indication);
        let named = parse("sslrootcert=/x").unwrap().roots;
        assert_eq!(named, RootCertificates::File(Some(FilePath { path: "/x".into(), named: true })));
    }

    #[test]
    fn the_roots_of_the_machine_want_the_name_checked() {
        assert_eq!(parse("sslrootcert=system").unwrap().mode, SslMode::VerifyFull);
        for weak in ["allow", "prefer", "require", "verify-ca"] {
            let error = parse(&format!("sslrootcert=system sslmode={weak}")).unwrap_err();
            assert_eq!(
                error.to_string(),
                "connection string: sslmode is not verify-full, which sslrootcert=system needs"
            );
        }
    }

    #[test]
    fn combinations_that_cannot_hold_are_refused() {
        for bad in [
            "sslnegotiation=direct",
            "sslnegotiation=direct sslmode=prefer",
            "sslnegotiation=soon",
            "sslmode=maybe",
            "sslcertmode=perhaps",
            "sslcrldir=/x",
            "sslpassword=x",
            "gssencmode=require",
            "ssl_max_protocol_version=TLSv1.1",
            "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "ssl_min_protocol_version=SSLv3",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        parse("sslnegotiation=direct sslmode=require ssl_min_protocol_version=TLSv1").unwrap();
    }
}
