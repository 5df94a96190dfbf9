//! Where the credentials of object storage come from.
//!
//! A set of credentials is taken whole from one place: first from pgark's own settings (a variable of the repository,
//! or a file that the configuration names), else from the variables that the cloud's other tools use, else from the
//! identity that the cloud gives to the machine. Half a set from here and half from there would be a key that exists
//! nowhere.

use super::environment::Environment;
use super::secret::{Secret, SecretSource};
use super::section::Section;

/// How to prove to object storage who we are; the secrets themselves may still be in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// The identity that the cloud gives to the machine. A local directory has it too, and needs none.
    Ambient,
    /// An S3 access key, and a token where the key is a temporary one.
    S3 { access_key_id: String, secret_access_key: SecretSource, session_token: Option<SecretSource> },
    /// The JSON key of a Google service account.
    Gcs { service_account: SecretSource },
    /// An Azure storage account; without a key, the machine's own identity is used in it.
    Azure { account: String, key: Option<SecretSource> },
}

/// The keys of all schemes, as they were found. They are asked for together, because a key of another scheme must be
/// known before it can be refused with a better message than "unknown".
pub(super) struct CredentialKeys {
    access_key_id: Option<String>,
    secret_access_key: Option<SecretSource>,
    session_token: Option<SecretSource>,
    service_account: Option<SecretSource>,
    account: Option<String>,
    account_key: Option<SecretSource>,
}

impl CredentialKeys {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            access_key_id: section.text("access_key_id"),
            secret_access_key: section.secret("secret_access_key", "secret_access_key_file"),
            session_token: section.secret("session_token", "session_token_file"),
            service_account: section.secret("service_account", "service_account_file"),
            account: section.text("account"),
            account_key: section.secret("account_key", "account_key_file"),
        }
    }

    /// The keys that are set, with the scheme that each belongs to.
    pub(super) fn set(&self) -> Vec<(&'static str, &'static str)> {
        let all = [
            ("access_key_id", "s3", self.access_key_id.is_some()),
            ("secret_access_key_file", "s3", self.secret_access_key.is_some()),
            ("session_token_file", "s3", self.session_token.is_some()),
            ("service_account_file", "gs", self.service_account.is_some()),
            ("account", "az", self.account.is_some()),
            ("account_key_file", "az", self.account_key.is_some()),
        ];
        all.into_iter().filter(|(_, _, set)| *set).map(|(key, scheme, _)| (key, scheme)).collect()
    }

    pub(super) fn s3(self, section: &mut Section<'_>, environment: &Environment) -> CredentialSource {
        match (self.access_key_id, self.secret_access_key) {
            (Some(access_key_id), Some(secret_access_key)) => {
                return CredentialSource::S3 { access_key_id, secret_access_key, session_token: self.session_token };
            }
            (Some(_), None) => {
                let variable = section.variable("secret_access_key");
                section.fault(format!(
                    "`access_key_id` is set without its secret: set `secret_access_key_file` or {variable}"
                ));
            }
            (None, Some(_)) => {
                let variable = section.variable("access_key_id");
                section.fault(format!("a secret access key is set without `access_key_id`: set it or {variable}"));
            }
            (None, None) if self.session_token.is_some() => {
                section.fault("a session token is set without `access_key_id` and its secret".to_owned());
            }
            (None, None) => {}
        }
        let usual_id = environment.get("AWS_ACCESS_KEY_ID");
        let usual_secret = secret(environment, "AWS_SECRET_ACCESS_KEY");
        match (usual_id, usual_secret) {
            (Some(access_key_id), Some(secret_access_key)) => {
                let session_token = secret(environment, "AWS_SESSION_TOKEN");
                CredentialSource::S3 { access_key_id, secret_access_key, session_token }
            }
            _ => CredentialSource::Ambient,
        }
    }

    pub(super) fn gcs(self, environment: &Environment) -> CredentialSource {
        let usual = || environment.get("GOOGLE_APPLICATION_CREDENTIALS").map(|path| SecretSource::File(path.into()));
        match self.service_account.or_else(usual) {
            Some(service_account) => CredentialSource::Gcs { service_account },
            None => CredentialSource::Ambient,
        }
    }

    pub(super) fn azure(self, section: &mut Section<'_>, environment: &Environment) -> CredentialSource {
        // An account of the configuration does not go with a key of the environment that belongs to another one.
        let (account, key) = match (self.account, self.account_key) {
            (Some(account), Some(key)) => (Some(account), Some(key)),
            (account, key) => {
                let usual = environment.get("AZURE_STORAGE_ACCOUNT");
                let usual_key = match (&account, &usual) {
                    (Some(account), Some(usual)) if account != usual => None,
                    _ => secret(environment, "AZURE_STORAGE_KEY"),
                };
                (account.or(usual), key.or(usual_key))
            }
        };
        match account {
            Some(account) => CredentialSource::Azure { account, key },
            None => {
                let variable = section.variable("account");
                section.fault(format!(
                    "an az:// repository needs `account`, the storage account's name: set it, {variable} or \
                     AZURE_STORAGE_ACCOUNT"
                ));
                CredentialSource::Ambient
            }
        }
    }
}

fn secret(environment: &Environment, variable: &str) -> Option<SecretSource> {
    environment.get(variable).map(|value| SecretSource::Value(Secret::new(value)))
}
