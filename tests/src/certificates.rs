//! Certificates of a test: an authority, and what it issues for servers and clients, as files of the test user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

use crate::temp_dir::TempDir;

/// An authority whose files lie in a folder of the test.
#[derive(Debug)]
pub struct CertificateAuthority<'a> {
    dir: &'a TempDir,
    name: String,
    root: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
    serial: u64,
}

impl<'a> CertificateAuthority<'a> {
    pub fn new(dir: &'a TempDir, name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = generate_key();
        let certificate = params.self_signed(&key).unwrap_or_else(|error| panic!("no certificate for {name}: {error}"));
        let root = dir.write(&format!("{name}.crt"), certificate.pem());
        Self { dir, name: name.to_owned(), root, issuer: Issuer::new(params, key) }
    }

    /// The file with its own certificate, for `sslrootcert` and `ssl_ca_file`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// For a server with these names and addresses.
    pub fn server(&self, name: &str, names: &[&str]) -> Certificate {
        self.issue(name, params("a test server", names))
    }

    /// The same, but it was valid until 2001 only.
    pub fn expired_server(&self, name: &str, names: &[&str]) -> Certificate {
        let mut params = params("a test server", names);
        params.not_after = date_time_ymd(2001, 2, 3);
        self.issue(name, params)
    }

    /// With a common name only: for a client, or for a server as in old times.
    pub fn common_name(&self, name: &str, common_name: &str) -> Certificate {
        self.issue(name, params(common_name, &[]))
    }

    /// For a server, by way of an authority in between, whose certificate the server sends along.
    pub fn server_by_intermediate(&self, name: &str, names: &[&str]) -> Certificate {
        let mut between = params("an authority in between", &[]);
        between.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        between.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = generate_key();
        let issued = between.signed_by(&key, &self.issuer).unwrap_or_else(|error| panic!("no authority: {error}"));
        let intermediate = CertificateAuthority {
            issuer: Issuer::new(between, key),
            name: name.to_owned(),
            root: self.root.clone(),
            dir: self.dir,
        };
        let certificate = intermediate.server(name, names);
        let own = fs::read_to_string(&certificate.certificate).unwrap_or_else(|error| panic!("no {name}: {error}"));
        self.dir.write(&format!("{name}.crt"), own + &issued.pem());
        certificate
    }

    /// A list that says that this certificate is no longer valid.
    pub fn revoke(&self, certificate: &Certificate) -> PathBuf {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(certificate.serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).and_then(|list| list.pem());
        let list = list.unwrap_or_else(|error| panic!("no list of {}: {error}", self.name));
        self.dir.write(&format!("{}.crl", self.name), list)
    }

    fn issue(&self, name: &str, mut params: CertificateParams) -> Certificate {
        // Any number that no other certificate of this authority has.
        let serial = name.bytes().fold(7_u64, |sum, byte| (sum * 31 + u64::from(byte)) & 0xff_ffff_ffff);
        params.serial_number = Some(SerialNumber::from(serial));
        let key = generate_key();
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.unwrap_or_else(|error| panic!("no certificate for {name}: {error}"));
        write(self.dir, name, &certificate.pem(), &key, serial)
    }
}

impl Certificate {
    /// One that signs itself, as `openssl req -x509` makes it.
    pub fn self_signed(dir: &TempDir, name: &str, names: &[&str]) -> Self {
        let mut params = params(name, names);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = generate_key();
        let certificate = params.self_signed(&key).unwrap_or_else(|error| panic!("no certificate for {name}: {error}"));
        write(dir, name, &certificate.pem(), &key, 0)
    }
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap_or_else(|error| panic!("no name of a certificate: {error}"));
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn generate_key() -> KeyPair {
    KeyPair::generate().unwrap_or_else(|error| panic!("no key: {error}"))
}

fn write(dir: &TempDir, name: &str, certificate: &str, key: &KeyPair, serial: u64) -> Certificate {
    let key = dir.write(&format!("{name}.key"), key.serialize_pem());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))
        .unwrap_or_else(|error| panic!("cannot protect {}: {error}", key.display()));
    Certificate { certificate: dir.write(&format!("{name}.crt"), certificate), key, serial }
}
