//! What the object stores of the tests have in common: a bucket, and the lines of pgark's configuration that name it.
//!
//! The lines always carry credentials, so that no client goes looking for a cloud's metadata address.

use std::path::{Path, PathBuf};

use crate::temp_dir::TempDir;

/// Where the programs of the servers are: `PGARK_TEST_PREFIX`, or what the install scripts use without it.
pub(crate) fn test_prefix() -> PathBuf {
    std::env::var_os("PGARK_TEST_PREFIX").map_or_else(|| PathBuf::from("/opt/pgark-test"), PathBuf::from)
}

/// A file that an install script puts there; panics with the script to run when it is missing.
pub(crate) fn installed(path: &str, script: &str) -> PathBuf {
    let path = test_prefix().join(path);
    assert!(path.exists(), "{} is missing: run tests/servers/{script} as root", path.display());
    path
}

/// A script or program in `tests/servers`.
pub(crate) fn server_script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("servers").join(name)
}

/// Keys of an S3 server, as the tests give them to it.
#[derive(Debug, Clone)]
pub struct S3Keys {
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl S3Keys {
    pub(crate) fn of_the_tests() -> Self {
        Self { access_key_id: "AKIATESTTESTTEST".to_owned(), secret_access_key: "secretsecretsecret".to_owned() }
    }
}

/// A `[[repository]]` section for a bucket of an S3 server. The secret goes into a file in `dir`, as pgark wants it.
/// `endpoint` is given apart from the server, so that a proxy can stand in front of it.
pub fn s3_repository(dir: &TempDir, name: &str, endpoint: &str, bucket: &str, prefix: &str, keys: &S3Keys) -> String {
    let secret = dir.write(&format!("{name}.secret"), &keys.secret_access_key);
    format!(
        "[[repository]]\nname = \"{name}\"\nurl = \"s3://{bucket}/{prefix}\"\nendpoint = \"{endpoint}\"\nallow_http = true\n\
         region = \"us-east-1\"\naccess_key_id = \"{}\"\nsecret_access_key_file = \"{}\"\n",
        keys.access_key_id,
        secret.display()
    )
}

/// The same for a container of Azurite.
pub fn azure_repository(dir: &TempDir, name: &str, endpoint: &str, container: &str, prefix: &str) -> String {
    let key = dir.write(&format!("{name}.key"), crate::azurite::ACCOUNT_KEY);
    format!(
        "[[repository]]\nname = \"{name}\"\nurl = \"az://{container}/{prefix}\"\nendpoint = \"{endpoint}\"\nallow_http = true\n\
         account = \"{}\"\naccount_key_file = \"{}\"\n",
        crate::azurite::ACCOUNT,
        key.display()
    )
}

/// The same for the stub of Google Cloud Storage: a service account that asks nobody for a token.
pub fn gcs_repository(dir: &TempDir, name: &str, endpoint: &str, bucket: &str, prefix: &str) -> String {
    let account = dir.write(&format!("{name}.json"), crate::gcs_stub::service_account(endpoint));
    format!(
        "[[repository]]\nname = \"{name}\"\nurl = \"gs://{bucket}/{prefix}\"\nendpoint = \"{endpoint}\"\nallow_http = true\n\
         service_account_file = \"{}\"\n",
        account.display()
    )
}
