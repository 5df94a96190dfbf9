//! Whether somebody who is believed vouches for the server's certificate.
//!
//! As in libpq, root certificates are used wherever there are some, in every `sslmode`, and names are compared
//! elsewhere. Two kinds of certificates are common with PostgreSQL and unknown to the Web: a self-signed one that the
//! client has in its root file, and one of X.509 version 1, as plain `openssl x509 -req` makes them. Both are accepted
//! if a root certificate is the very same, or has signed them directly.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::certificate::ServerCertificate;
use super::error::TlsSettingsError;
use super::files::Roots;

#[derive(Debug)]
pub(super) struct Verifier {
    /// Without it nobody is checked.
    chain: Option<Chain>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Chain {
    verifier: Arc<WebPkiServerVerifier>,
    roots: Roots,
}

impl Verifier {
    pub(super) fn new(roots: Roots, provider: &Arc<CryptoProvider>) -> Result<Self, TlsSettingsError> {
        let chain = if roots.certificates.is_empty() {
            None
        } else {
            let store = Arc::new(roots.store());
            let verifier = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider))
                .with_crls(roots.revoked.iter().cloned())
                .enforce_revocation_expiration()
                .build()
                .map_err(TlsSettingsError::Verifier)?;
            Some(Chain { verifier, roots })
        };
        Ok(Self { chain, algorithms: provider.signature_verification_algorithms })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain comes before the name there, and the name is compared as libpq does, after the handshake.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            Err(Error::InvalidCertificate(CertificateError::Other(reason))) if chain.roots.revoked.is_empty() => {
                self.verify_directly(chain, end_entity, now, CertificateError::Other(reason))
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = parse(cert)?;
        if !certificate.is_version_1() {
            return rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms);
        }
        let schemes = self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme);
        if certificate.has_signed(message, dss.signature(), schemes.flat_map(|(_, known)| known.iter().copied())) {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::BadSignature))
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // By the key alone, since certificates of version 1 are not read otherwise.
        let key = SubjectPublicKeyInfoDer::from(parse(cert)?.public_key());
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    /// Accepts what is a root certificate itself, or of version 1 and signed by one.
    fn verify_directly(
        &self,
        chain: &Chain,
        end_entity: &CertificateDer<'_>,
        now: UnixTime,
        reason: CertificateError,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = parse(end_entity)?;
        let is_root = chain.roots.certificates.iter().any(|root| root == end_entity);
        let is_signed = || {
            let mut roots = chain.roots.certificates.iter().filter_map(|root| parse(root).ok());
            certificate.is_version_1() && roots.any(|root| certificate.is_signed_by(&root, self.algorithms.all))
        };
        if !is_root && !is_signed() {
            let unknown = certificate.is_version_1() || certificate.is_self_issued();
            return Err(Error::InvalidCertificate(if unknown { CertificateError::UnknownIssuer } else { reason }));
        }
        match certificate.validity() {
            (from, _) if now.as_secs() < from => Err(Error::InvalidCertificate(CertificateError::NotValidYet)),
            (_, until) if now.as_secs() > until => {
                let not_after = UnixTime::since_unix_epoch(std::time::Duration::from_secs(until));
                Err(Error::InvalidCertificate(CertificateError::ExpiredContext { time: now, not_after }))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }
}

fn parse(der: &CertificateDer<'_>) -> Result<ServerCertificate, Error> {
    ServerCertificate::parse(der).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::pem::PemObject;

    use super::*;

    /// A root of version 3.
    const ROOT: &str = "\
-----BEGIN CERTIFICATE-----
MIIBeDCCAR+gAwIBAgIUT+qEqKWZfTCyfR88n8ep74NBmxswCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGQSByb290MCAXDTI2MTEyMTExMDQzNFoYDzIxMjYxMDI4MTEw
NDM0WjARMQ8wDQYDVQQDDAZBIHJvb3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQJV1jAfnTMqehugmEuqgxfAD4ctSf5ykmfI/+HUtP+jau+H+206b6JYZcxHqez
6DyRV0knvcyhYw3+5xUqf6ECo1MwUTAdBgNVHQ4EFgQU6e/9724AcHd06X53uTKH
cemAHz0wHwYDVR0jBBgwFoAU6e/9724AcHd06X53uTKHcemAHz0wDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNHADBEAiACOtWU4x/Gb1NN5G6v+0WVdPcdYSd2
bGsfslPo8XvBeAIgGetYRO+XVdBv4lcXhCxCXfj0MtksjzNJBIvR/NktnXs=
-----END CERTIFICATE-----
";
    /// A certificate of version 1 for db.example, which that root has signed.
    const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBIzCByQIUbm8liZ6Rx+IrgF1nirEmToW/YGMwCgYIKoZIzj0EAwIwETEPMA0G
A1UEAwwGQSByb290MCAXDTI2MTEyMTExMDQzNFoYDzIxMjYxMDI4MTEwNDM0WjAV
MRMwEQYDVQQDDApkYi5leGFtcGxlMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
ti5SGQhobZznq1qAlI9iNM+oIw5bLnUGjXkEs4hwrmKlF5qJAyLP+dHN6qZPqmbE
sXXoyffN1Ylmd/hnkSu/NTAKBggqhkjOPQQDAgNJADBGAiEA88OaBC6bJqseeArj
MPGIuxqgBU7dPPtK+BVDoZUbkMMCIQC/bm35PKT+T4ymAl76vqznlioyIUoeXSxu
y1z3FvEbkA==
-----END CERTIFICATE-----
";
    const IN_2030: Duration = Duration::from_secs(1_893_456_000);

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn verify(root: &str, certificate: &CertificateDer<'_>, at: Duration) -> Result<(), Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Roots { certificates: vec![der(root)], ..Roots::default() };
        let verifier = Verifier::new(roots, &provider).unwrap();
        let name = ServerName::try_from("db.example").unwrap();
        verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::since_unix_epoch(at)).map(drop)
    }

    #[test]
    fn a_certificate_of_version_1_is_believed_if_a_root_has_signed_it() {
        let certificate = der(VERSION_1);
        verify(ROOT, &certificate, IN_2030).unwrap();
        let expired = verify(ROOT, &certificate, 4 * IN_2030).unwrap_err();
        assert!(matches!(expired, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })), "{expired:?}");
        let mut forged = certificate.to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        let unknown = verify(ROOT, &CertificateDer::from(forged), IN_2030).unwrap_err();
        assert_eq!(unknown, Error::InvalidCertificate(CertificateError::UnknownIssuer));
    }

    #[test]
    fn a_certificate_of_version_1_has_a_common_name_and_an_end_point() {
        let certificate = ServerCertificate::parse(&der(VERSION_1)).unwrap();
        certificate.check_name("DB.example").unwrap();
        let error = certificate.check_name("db2.example").unwrap_err();
        assert_eq!(error.to_string(), "its certificate is for db.example, not for db2.example");
        // As `openssl x509 -outform der | sha256sum` says.
        let expected = "1b091304ae7975e1c9709872f6dd770e637acb73beae8b2b8d280a50f45074ff";
        let hex: String = certificate.end_point().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }
}
