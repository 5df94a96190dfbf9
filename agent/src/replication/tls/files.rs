//! Root certificates and lists of revoked ones, from where the connection string says.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::error::TlsSettingsError;
use crate::replication::options::{FilePath, RootCertificates, SslMode, TlsOptions};

const ROOT_CERTIFICATES: &str = "root certificate file";
const REVOCATION_LIST: &str = "file of revoked certificates";

/// Whom to believe. Without certificates nobody is checked.
#[derive(Debug, Default)]
pub(super) struct Roots {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) revoked: Vec<CertificateRevocationListDer<'static>>,
    pub(super) path: Option<PathBuf>,
}

impl Roots {
    /// Where they come from.
    pub(super) fn description(&self) -> String {
        self.path.as_ref().map_or_else(|| "the machine's own list".to_owned(), |path| path.display().to_string())
    }

    /// The same for the verifier, which knows other forms of them.
    pub(super) fn store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.certificates.iter().cloned());
        store
    }
}

pub(super) fn read_roots(options: &TlsOptions) -> Result<Roots, TlsSettingsError> {
    let (certificates, path) = match &options.roots {
        RootCertificates::System => (system_roots()?, None),
        RootCertificates::File(file) => match read_if_there(ROOT_CERTIFICATES, file.as_ref())? {
            Some((path, content)) => (parse_pem(ROOT_CERTIFICATES, &path, &content)?, Some(path)),
            None => return without_roots(options, file.as_ref()),
        },
    };
    let revoked = match read_if_there(REVOCATION_LIST, options.revocation_list.as_ref())? {
        Some((path, content)) => parse_pem(REVOCATION_LIST, &path, &content)?,
        None => Vec::new(),
    };
    Ok(Roots { certificates, revoked, path })
}

/// Nobody is checked, if that is what is wanted.
fn without_roots(options: &TlsOptions, file: Option<&FilePath>) -> Result<Roots, TlsSettingsError> {
    let wish = if options.mode >= SslMode::VerifyCa {
        format!("sslmode={}", options.mode.as_str())
    } else if options.revocation_list.as_ref().is_some_and(|list| list.named) {
        "sslcrl".to_owned()
    } else {
        return Ok(Roots::default());
    };
    let path = file.map_or_else(|| PathBuf::from("~/.postgresql/root.crt"), |file| file.path.clone());
    Err(TlsSettingsError::NoRoots { wish, path })
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsSettingsError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(error = error as &dyn std::error::Error, "some root certificates of the machine are left out");
    }
    if found.certs.is_empty() { Err(TlsSettingsError::NoSystemRoots) } else { Ok(found.certs) }
}

/// The content of a file, and where that is. One that nobody named may be missing.
pub(super) fn read_if_there(
    what: &'static str,
    file: Option<&FilePath>,
) -> Result<Option<(PathBuf, Vec<u8>)>, TlsSettingsError> {
    let Some(FilePath { path, named }) = file else { return Ok(None) };
    match fs::read(path) {
        Ok(content) => Ok(Some((path.clone(), content))),
        Err(error) if !named && is_missing(&error) => Ok(None),
        Err(source) => Err(TlsSettingsError::Read { what, path: path.clone(), source }),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// All objects of a kind in a PEM file; there must be one.
pub(super) fn parse_pem<T: PemObject>(
    what: &'static str,
    path: &Path,
    content: &[u8],
) -> Result<Vec<T>, TlsSettingsError> {
    match T::pem_slice_iter(content).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsSettingsError::Content { what, path: path.to_owned() }),
    }
}
