//! The client's own certificate, shown to a server that asks for one.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

use super::error::TlsSettingsError;
use super::files::{parse_pem, read_if_there};
use crate::replication::options::{ClientCertificateMode, FilePath, TlsOptions};

const CERTIFICATE: &str = "client certificate";
const KEY: &str = "client's private key";

/// The certificate, if there is one, and whether a server has seen it.
#[derive(Debug)]
pub(super) struct ClientCertificate {
    key: Option<Arc<CertifiedKey>>,
    shown: AtomicBool,
}

impl ClientCertificate {
    pub(super) fn read(options: &TlsOptions) -> Result<Self, TlsSettingsError> {
        let key = match options.certificate_mode {
            ClientCertificateMode::Disable => None,
            ClientCertificateMode::Allow | ClientCertificateMode::Require => read_pair(options)?,
        };
        Ok(Self { key: key.map(Arc::new), shown: AtomicBool::new(false) })
    }

    pub(super) fn was_shown(&self) -> bool {
        self.shown.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for ClientCertificate {
    /// Whatever the server says about issuers: it knows best what to do with a certificate.
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.shown.store(self.key.is_some(), Ordering::Relaxed);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}

fn read_pair(options: &TlsOptions) -> Result<Option<CertifiedKey>, TlsSettingsError> {
    let Some((path, content)) = read_if_there(CERTIFICATE, options.certificate.as_ref())? else { return Ok(None) };
    let chain = parse_pem(CERTIFICATE, &path, &content)?;
    let key_file = options.key.as_ref().filter(|key| key.named || key.path.exists());
    let Some(FilePath { path, .. }) = key_file else {
        return Err(TlsSettingsError::NoKey { path, key: options.key.as_ref().map(|key| key.path.clone()) });
    };
    let content = read_key(path)?;
    let key = PrivateKeyDer::from_pem_slice(&content).map_err(|_| {
        if content.windows(9).any(|word| word == b"ENCRYPTED") {
            TlsSettingsError::KeyEncrypted { path: path.clone() }
        } else {
            TlsSettingsError::Content { what: KEY, path: path.clone() }
        }
    })?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map(Some)
        .map_err(|source| TlsSettingsError::Key { path: path.clone(), source })
}

/// Reads the key if nobody else can: as in libpq, a key of root's may be read by a group.
fn read_key(path: &Path) -> Result<Vec<u8>, TlsSettingsError> {
    let failed = |source| TlsSettingsError::Read { what: KEY, path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let of_others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & of_others != 0 {
        return Err(TlsSettingsError::KeyPermissions { path: path.to_owned() });
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}
