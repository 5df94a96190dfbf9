//! From a repository's URL and credentials to its storage. The only file that names clouds.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::Store;
use super::object_lock::LockReader;
use crate::error::{RepositoryError, Result};

/// Where a repository is and how to get in; every secret already looked up.
#[derive(Clone, Default)]
pub struct RepositoryOptions {
    /// The name in the configuration, for messages.
    pub name: String,
    /// `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: String,
    /// age X25519 public keys; none means no encryption.
    pub recipients: Vec<String>,
    /// age X25519 private keys, for reading.
    pub identities: Vec<String>,
    /// S3: the region.
    pub region: Option<String>,
    /// Another address than the cloud's own.
    pub endpoint: Option<String>,
    /// S3: bucket in the path (the default with an `endpoint`) or in the host name.
    pub path_style: Option<bool>,
    /// Allow plain HTTP.
    pub allow_http: bool,
    /// PEM certificates of the authority that signed the endpoint's certificate.
    pub ca_certificates: Option<Vec<u8>>,
    /// How to prove who we are.
    pub credentials: Credentials,
    /// Nobody waits for it: what it lacks is copied into it later.
    pub is_optional: bool,
}

impl std::fmt::Debug for RepositoryOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Private keys are only counted.
        f.debug_struct("RepositoryOptions")
            .field("name", &self.name)
            .field("url", &self.url)
            .field("recipients", &self.recipients)
            .field("identities", &self.identities.len())
            .field("region", &self.region)
            .field("endpoint", &self.endpoint)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// Credentials of object storage.
#[derive(Clone, Default)]
pub enum Credentials {
    /// The machine's or container's own identity in its cloud.
    #[default]
    Ambient,
    /// An S3 access key.
    S3 {
        /// The public half.
        access_key_id: String,
        /// The secret half.
        secret_access_key: String,
        /// For temporary credentials.
        session_token: Option<String>,
    },
    /// The JSON of a Google service account.
    Gcs {
        /// The file's content.
        service_account: String,
    },
    /// An Azure storage account's key.
    Azure {
        /// The account's name.
        account: String,
        /// The key, base64; without it the ambient identity is used.
        key: Option<String>,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ambient => "Ambient",
            Self::S3 { .. } => "S3 { … }",
            Self::Gcs { .. } => "Gcs { … }",
            Self::Azure { .. } => "Azure { … }",
        })
    }
}

pub(super) fn open(options: &RepositoryOptions) -> Result<Store> {
    let wrong = |reason: String| RepositoryError::Configuration { repository: options.name.clone(), reason };
    let url = parse(options)?;
    if url.scheme() == "file" {
        return local(options, &url);
    }
    let prefix =
        Path::from_url_path(url.path()).map_err(|error| wrong(format!("the url's path cannot be used: {error}")))?;
    Ok(Store {
        name: options.name.as_str().into(),
        objects: connect(options, Duration::from_secs(15))?,
        patient: Arc::default(),
        options: Arc::new(options.clone()),
        prefix,
        is_impatient: false,
        tells_locks: url.scheme() == "s3",
        directory: None,
    })
}

/// A client that waits out longer outages.
pub(super) fn connect_patiently(options: &RepositoryOptions) -> Result<Arc<dyn ObjectStore>> {
    connect(options, Duration::from_secs(180))
}

fn connect(options: &RepositoryOptions, patience: Duration) -> Result<Arc<dyn ObjectStore>> {
    let wrong = |reason: String| RepositoryError::Configuration { repository: options.name.clone(), reason };
    let url = parse(options)?;
    let bucket = url.host_str().unwrap_or_default();
    if bucket.is_empty() {
        return Err(wrong(format!("the url `{}` names no bucket or container", options.url)));
    }
    let retries = retries(patience);
    let connected: object_store::Result<Arc<dyn ObjectStore>> = match url.scheme() {
        "s3" => s3(options, bucket, retries).map(|store| Arc::new(store) as _),
        "gs" => gcs(options, bucket, retries).map(|store| Arc::new(store) as _),
        "az" => azure(options, bucket, retries).map(|store| Arc::new(store) as _),
        other => return Err(wrong(format!("the url begins with `{other}:`; known are file:, s3:, gs: and az:"))),
    };
    connected.map_err(|error| wrong(format!("cannot be used: {error}")))
}

fn parse(options: &RepositoryOptions) -> Result<Url> {
    Url::parse(&options.url).map_err(|error| RepositoryError::Configuration {
        repository: options.name.clone(),
        reason: format!("the url `{}` cannot be read: {error}", options.url),
    })
}

/// `LocalFileSystem` reads and lists; it wants a root that exists, which the repository's directory
/// may not do yet, so it is rooted at `/`.
fn local(options: &RepositoryOptions, url: &Url) -> Result<Store> {
    let wrong = |reason: String| RepositoryError::Configuration { repository: options.name.clone(), reason };
    let directory = url
        .to_file_path()
        .ok()
        .filter(|path| path.is_absolute() && path != FilePath::new("/"))
        .ok_or_else(|| wrong(format!("`{}` is no absolute directory; write file:///var/lib/pgark", options.url)))?;
    let prefix = Path::from_absolute_path(&directory)
        .map_err(|error| wrong(format!("the directory cannot be used: {error}")))?;
    Ok(Store {
        name: options.name.as_str().into(),
        objects: Arc::new(LocalFileSystem::new()),
        patient: Arc::default(),
        options: Arc::new(options.clone()),
        prefix,
        is_impatient: false,
        tells_locks: false,
        directory: Some(Arc::new(directory)),
    })
}

fn s3(
    options: &RepositoryOptions,
    bucket: &str,
    retries: RetryConfig,
) -> object_store::Result<object_store::aws::AmazonS3> {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(options.region.as_deref().unwrap_or("us-east-1"))
        .with_http_connector(LockReader::default())
        .with_retry(retries)
        .with_client_options(client(options)?);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let path_style = options.path_style.unwrap_or(options.endpoint.is_some());
    builder = builder.with_virtual_hosted_style_request(!path_style);
    if let Credentials::S3 { access_key_id, secret_access_key, session_token } = &options.credentials {
        builder = builder.with_access_key_id(access_key_id).with_secret_access_key(secret_access_key);
        if let Some(token) = session_token {
            builder = builder.with_token(token);
        }
    }
    builder.build()
}

fn gcs(
    options: &RepositoryOptions,
    bucket: &str,
    retries: RetryConfig,
) -> object_store::Result<object_store::gcp::GoogleCloudStorage> {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_retry(retries)
        .with_client_options(client(options)?);
    if let Credentials::Gcs { service_account } = &options.credentials {
        builder = builder.with_service_account_key(service_account);
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_config(object_store::gcp::GoogleConfigKey::BaseUrl, endpoint);
    }
    builder.build()
}

fn azure(
    options: &RepositoryOptions,
    container: &str,
    retries: RetryConfig,
) -> object_store::Result<object_store::azure::MicrosoftAzure> {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_container_name(container)
        .with_retry(retries)
        .with_client_options(client(options)?);
    if let Credentials::Azure { account, key } = &options.credentials {
        builder = builder.with_account(account);
        if let Some(key) = key {
            builder = builder.with_access_key(key);
        }
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    builder.build()
}

/// Repetitions of one request inside the client, after a server's error, a refused or a cut connection.
/// `request.rs` limits the whole; an outage must become visible.
fn retries(limit: Duration) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(limit.as_secs() / 10),
            base: 2.0,
        },
        max_retries: 20,
        retry_timeout: limit,
    }
}

fn client(options: &RepositoryOptions) -> object_store::Result<ClientOptions> {
    // reqwest is built without a provider of its own; a second call changes nothing.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut client = ClientOptions::new()
        .with_allow_http(options.allow_http)
        .with_connect_timeout(Duration::from_secs(5))
        // For pieces of an upload, which `request.rs` does not limit: three of them share a slow line.
        .with_timeout(Duration::from_secs(120));
    // To read the system's certificates takes longer than a short request. Others may be asked for a token over TLS.
    let is_plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    if is_plain && matches!(options.credentials, Credentials::S3 { .. }) {
        client = client.with_no_system_certificates(true);
    }
    if let Some(pem) = &options.ca_certificates {
        for certificate in Certificate::from_pem_bundle(pem)? {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}
