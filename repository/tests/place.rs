//! Places where a repository can be: each store that is supported, on this machine.

use std::fmt::Display;
use std::path::PathBuf;

use bytes::Bytes;
use harness::{Azurite, FaultProxy, GcsStub, RgwServer, S3Keys, S3Server, TempDir, service_account};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{
    BackupId, BackupKind, ClusterRepository, Credentials, ObjectKey, Repository, RepositoryOptions, Sealing, Store,
    generate_key_pair,
};

pub(crate) const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_710_467_865_093_598_212);

/// A running store. It goes away with this value.
pub(crate) enum Place {
    Local(TempDir),
    S3s(S3Server),
    Azurite(Azurite),
    /// Not Google's service: a stub that answers what `object_store` asks.
    GcsStub(GcsStub),
    Rgw(RgwServer, String),
}

impl Place {
    pub(crate) fn local() -> Self {
        Self::Local(TempDir::new("repository"))
    }

    pub(crate) fn s3s() -> Self {
        Self::S3s(S3Server::start())
    }

    pub(crate) fn azurite() -> Self {
        Self::Azurite(Azurite::start())
    }

    pub(crate) fn gcs_stub() -> Self {
        Self::GcsStub(GcsStub::start())
    }

    pub(crate) fn rgw() -> Self {
        let server = RgwServer::shared();
        let bucket = server.create_bucket("repository");
        Self::Rgw(server, bucket)
    }

    /// Options without encryption.
    pub(crate) fn options(&self) -> RepositoryOptions {
        let cloud = |url: &str, endpoint: String, credentials| RepositoryOptions {
            name: "test".to_owned(),
            url: url.to_owned(),
            endpoint: Some(endpoint),
            region: Some("us-east-1".to_owned()),
            allow_http: true,
            credentials,
            ..RepositoryOptions::default()
        };
        match self {
            Self::Local(dir) => local_options(&dir.join("repository")),
            Self::S3s(server) => {
                cloud("s3://backups/pgark/deep", server.endpoint(), s3_credentials(server.keys(), "secretsecretsecret"))
            }
            Self::Azurite(server) => {
                let key = Some(server.account_key().to_owned());
                let credentials = Credentials::Azure { account: server.account().to_owned(), key };
                cloud("az://backups/pgark/deep", server.endpoint(), credentials)
            }
            Self::GcsStub(server) => {
                let credentials = Credentials::Gcs { service_account: service_account(&server.endpoint()) };
                cloud("gs://backups/pgark/deep", server.endpoint(), credentials)
            }
            Self::Rgw(server, bucket) => {
                let keys = server.keys();
                cloud(&format!("s3://{bucket}"), server.endpoint(), s3_credentials(keys, &keys.secret_access_key))
            }
        }
    }

    pub(crate) fn open(&self) -> ClusterRepository {
        open(&self.options())
    }
}

pub(crate) fn local_options(directory: &std::path::Path) -> RepositoryOptions {
    RepositoryOptions { name: "test".to_owned(), url: url_of(directory), ..RepositoryOptions::default() }
}

/// As a user writes it, with what a URL cannot hold escaped.
pub(crate) fn url_of(directory: &std::path::Path) -> String {
    let escaped: String = directory
        .to_str()
        .unwrap()
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    format!("file://{escaped}")
}

pub(crate) fn s3_credentials(keys: &S3Keys, secret: &str) -> Credentials {
    Credentials::S3 {
        access_key_id: keys.access_key_id.clone(),
        secret_access_key: secret.to_owned(),
        session_token: None,
    }
}

/// The same S3 server, reached through a proxy.
pub(crate) fn through(proxy: &FaultProxy, server: &S3Server) -> RepositoryOptions {
    RepositoryOptions {
        name: "test".to_owned(),
        url: "s3://backups/pgark".to_owned(),
        endpoint: Some(proxy.endpoint()),
        allow_http: true,
        credentials: s3_credentials(server.keys(), &server.keys().secret_access_key),
        ..RepositoryOptions::default()
    }
}

pub(crate) fn open(options: &RepositoryOptions) -> ClusterRepository {
    open_cluster(options, "main")
}

pub(crate) fn open_cluster(options: &RepositoryOptions, cluster: &str) -> ClusterRepository {
    Repository::open(options).unwrap().cluster(cluster, SYSTEM).unwrap()
}

/// A key pair: private, public.
pub(crate) struct Keys {
    pub(crate) private: String,
    pub(crate) public: String,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let (private, public) = generate_key_pair();
        Self { private, public }
    }
}

/// What a host that writes has: public keys only.
#[allow(dead_code, reason = "tests of encrypted places use it")]
pub(crate) fn encrypted(options: &RepositoryOptions, keys: &Keys) -> RepositoryOptions {
    RepositoryOptions { recipients: vec![keys.public.clone()], ..options.clone() }
}

/// What a host that restores has.
#[allow(dead_code, reason = "tests of encrypted places use it")]
pub(crate) fn decrypting(options: &RepositoryOptions, keys: &Keys) -> RepositoryOptions {
    RepositoryOptions { identities: vec![keys.private.clone()], ..options.clone() }
}

pub(crate) fn backup_id() -> BackupId {
    BackupId::new("2026-11-20T02:00:03Z".parse().unwrap(), BackupKind::Full)
}

/// Any key: numbers make different ones.
pub(crate) fn key(repository: &ClusterRepository, number: u32) -> ObjectKey {
    repository.keys().part(&backup_id(), number, Sealing::Plain)
}

/// The file of an object in a local repository or in a bucket of s3s-fs.
pub(crate) fn file_of(place: &Place, key: impl Display) -> PathBuf {
    match place {
        Place::Local(dir) => dir.join("repository").join(key.to_string()),
        Place::S3s(server) => server.bucket_dir("backups").join("pgark/deep").join(key.to_string()),
        _ => panic!("its objects are not files"),
    }
}

/// Bytes that do not compress, the same for the same seed (xorshift64*).
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Reads an object through the reader for blocking code, as restore does.
pub(crate) async fn read_through_reader(store: &Store, key: &ObjectKey) -> std::io::Result<Vec<u8>> {
    let mut reader = store.open_reader(key).await.map_err(std::io::Error::other)?;
    tokio::task::spawn_blocking(move || {
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut content).map(|_| content)
    })
    .await
    .unwrap()
}

pub(crate) fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}
