//! What a server's certificate says of itself: for whom it is, by libpq's rules, and the hash that channel binding uses.
//!
//! libpq's rules: every dNSName is compared, with `*` for the whole first label; an address is compared with every
//! iPAddress; the common name counts only where no alternative name is of the kind that the host is.

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::certificate::{Certificate, Version};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::error::TlsError;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

pub(super) struct ServerCertificate {
    certificate: Certificate,
    der: Vec<u8>,
}

impl ServerCertificate {
    pub(super) fn parse(der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let certificate = Certificate::from_der(der).map_err(|_| TlsError::MalformedCertificate)?;
        Ok(Self { certificate, der: der.to_vec() })
    }

    /// The hash for channel binding `tls-server-end-point` (RFC 5929): that of the certificate's own signature, but
    /// SHA-256 at least. Signatures without a hash of their own, such as Ed25519, have none.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        let der = &self.der;
        match self.certificate.signature_algorithm.oid.to_string().as_str() {
            // MD5, SHA-1 and SHA-256 with RSA, then SHA-1 and SHA-256 with ECDSA.
            "1.2.840.113549.1.1.4"
            | "1.2.840.113549.1.1.5"
            | "1.2.840.113549.1.1.11"
            | "1.2.840.10045.4.1"
            | "1.2.840.10045.4.3.2" => Some(Sha256::digest(der).to_vec()),
            "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Some(Sha224::digest(der).to_vec()),
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(der).to_vec()),
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(der).to_vec()),
            _ => None,
        }
    }

    /// Fails unless the certificate is for this host.
    pub(super) fn check_name(&self, host: &str) -> Result<(), TlsError> {
        let names = self.alternative_names();
        let address = host.parse::<IpAddr>().ok();
        let mut same_kind = false;
        let mut shown = Vec::new();
        for name in &names {
            let matches = match name {
                Name::Dns(pattern) => {
                    same_kind |= address.is_none();
                    shown.push(pattern.clone());
                    matches_host(pattern, host)
                }
                Name::Address(other) => {
                    same_kind |= address.is_some();
                    shown.push(other.to_string());
                    address == Some(*other)
                }
            };
            if matches {
                return Ok(());
            }
        }
        if !same_kind && let Some(name) = self.common_name() {
            if matches_host(&name, host) {
                return Ok(());
            }
            shown.push(name);
        }
        let names = if shown.is_empty() { "nobody".to_owned() } else { shown.join(", ") };
        Err(TlsError::WrongName { host: host.to_owned(), names: names.escape_debug().to_string() })
    }

    fn alternative_names(&self) -> Vec<Name> {
        let found = self.certificate.tbs_certificate.get::<SubjectAltName>().ok().flatten();
        let names = found.map(|(_, names)| names.0).unwrap_or_default();
        names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DnsName(name) => Some(Name::Dns(name.as_str().to_owned())),
                GeneralName::IpAddress(bytes) => address(bytes.as_bytes()).map(Name::Address),
                _ => None,
            })
            .collect()
    }

    fn common_name(&self) -> Option<String> {
        let mut attributes = self.certificate.tbs_certificate.subject.0.iter().flat_map(|name| name.0.iter());
        let name = attributes.find(|attribute| attribute.oid == COMMON_NAME)?;
        String::from_utf8(name.value.value().to_vec()).ok()
    }

    /// From when until when it is valid, in seconds since 1970.
    pub(super) fn validity(&self) -> (u64, u64) {
        let validity = self.certificate.tbs_certificate.validity;
        (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs())
    }

    pub(super) fn is_version_1(&self) -> bool {
        self.certificate.tbs_certificate.version == Version::V1
    }

    /// Tells whether it claims to be from itself.
    pub(super) fn is_self_issued(&self) -> bool {
        self.certificate.tbs_certificate.issuer == self.certificate.tbs_certificate.subject
    }

    /// The SubjectPublicKeyInfo.
    pub(super) fn public_key(&self) -> Vec<u8> {
        self.certificate.tbs_certificate.subject_public_key_info.to_der().unwrap_or_default()
    }

    /// Tells whether the other one's key made the signature of this one.
    pub(super) fn is_signed_by(&self, issuer: &Self, algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
        let own = &self.certificate;
        let parts = (content(own.signature_algorithm.to_der()), own.tbs_certificate.to_der(), own.signature.as_bytes());
        let (Some(algorithm), Ok(message), Some(signature)) = parts else { return false };
        let known = algorithms.iter().copied().filter(|known| *known.signature_alg_id() == algorithm[..]);
        issuer.certificate.tbs_certificate.subject == own.tbs_certificate.issuer
            && issuer.has_signed(&message, signature, known)
    }

    /// Tells whether the key of this one made a signature with one of the algorithms.
    pub(super) fn has_signed<'a>(
        &self,
        message: &[u8],
        signature: &[u8],
        mut algorithms: impl Iterator<Item = &'a dyn SignatureVerificationAlgorithm>,
    ) -> bool {
        let key = &self.certificate.tbs_certificate.subject_public_key_info;
        let (Some(algorithm), Some(key)) = (content(key.algorithm.to_der()), key.subject_public_key.as_bytes()) else {
            return false;
        };
        algorithms.any(|known| {
            *known.public_key_alg_id() == algorithm[..] && known.verify_signature(key, message, signature).is_ok()
        })
    }
}

/// The inside of a short SEQUENCE.
fn content(der: x509_cert::der::Result<Vec<u8>>) -> Option<Vec<u8>> {
    let der = der.ok()?;
    (*der.get(1)? < 0x80).then(|| der[2..].to_vec())
}

enum Name {
    Dns(String),
    Address(IpAddr),
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Compares without regard to case; `*.` at the front stands for exactly one label, and never in an address.
fn matches_host(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(domain), Some((first, rest))) = (pattern.strip_prefix("*."), host.split_once('.')) else {
        return false;
    };
    !first.is_empty() && !domain.is_empty() && host.parse::<IpAddr>().is_err() && domain.eq_ignore_ascii_case(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        for (pattern, host) in [("db.test", "DB.Test"), ("*.test", "db.test"), ("*.b.test", "a.b.test")] {
            assert!(matches_host(pattern, host), "{pattern} {host}");
        }
        for (pattern, host) in [
            ("*.test", "test"),
            ("*.test", ".test"),
            ("*.test", "a.b.test"),
            ("*", "test"),
            ("*.", "test."),
            ("d*.test", "db.test"),
            ("a.*.test", "a.b.test"),
            ("*.0.0.1", "127.0.0.1"),
            ("db.test", "db.test.evil"),
        ] {
            assert!(!matches_host(pattern, host), "{pattern} {host}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_no_certificate_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(certificate) = ServerCertificate::parse(&CertificateDer::from(bytes)) {
                drop(certificate.check_name("db.test"));
                drop(certificate.end_point());
            }
        }

        #[test]
        fn a_name_matches_itself_and_not_another(a in "[a-z]{1,5}(\\.[a-z]{1,5}){0,2}", b in "[a-z]{1,5}(\\.[a-z]{1,5}){0,2}") {
            prop_assert!(matches_host(&a, &a));
            prop_assert_eq!(matches_host(&a, &b), a == b);
        }
    }
}
