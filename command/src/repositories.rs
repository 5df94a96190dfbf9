//! From a repository's configuration to an opened repository: the secrets are read here, and only the keys that the
//! side at work needs.

use std::error::Error;

use pgark_repository::{Credentials, ErrorKind, Repository, RepositoryError, RepositoryOptions};

use crate::configuration::{ConfigurationError, CredentialSource, RepositoryConfiguration, Secret};
use crate::exit_code::ExitCode;
use crate::failure::Verdict;

/// Which keys a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Writes: public keys.
    Writing,
    /// Reads: private keys.
    Reading,
}

/// Opens a configured repository. Nothing is read from it yet.
///
/// # Errors
/// When a file that the configuration names cannot be read, or when the URL or a key cannot be used.
pub fn open_repository(configuration: &RepositoryConfiguration, side: Side) -> anyhow::Result<Repository> {
    Ok(Repository::open(&options(configuration, side)?)?)
}

/// Opens the repositories that a command writes to. One that is chosen alone is required, whatever the configuration
/// says; one that is not and cannot be opened is left out.
///
/// # Errors
/// As [`open_repository`], for one that is required.
pub fn open_for_writing(chosen: &[&RepositoryConfiguration]) -> anyhow::Result<Vec<Repository>> {
    let mut repositories = Vec::with_capacity(chosen.len());
    for configuration in chosen {
        let is_optional = !configuration.required && chosen.len() > 1;
        let opened = options(configuration, Side::Writing)
            .map_err(anyhow::Error::from)
            .and_then(|options| Ok(Repository::open(&RepositoryOptions { is_optional, ..options })?));
        match opened {
            Ok(repository) => repositories.push(repository),
            Err(error) if is_optional => {
                let error: &(dyn Error + 'static) = error.as_ref();
                tracing::warn!(repository = configuration.name, error, "going on without this repository");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(repositories)
}

fn options(configuration: &RepositoryConfiguration, side: Side) -> Result<RepositoryOptions, ConfigurationError> {
    let ca_certificates = match &configuration.ca_file {
        None => None,
        Some(path) => {
            Some(std::fs::read(path).map_err(|source| ConfigurationError::Unreadable { path: path.clone(), source })?)
        }
    };
    let expose = |secrets: Vec<Secret>| secrets.iter().map(|secret| secret.expose().to_owned()).collect();
    let (recipients, identities) = match side {
        Side::Writing => (configuration.recipients()?, Vec::new()),
        Side::Reading => (Vec::new(), expose(configuration.identities()?)),
    };
    Ok(RepositoryOptions {
        name: configuration.name.clone(),
        url: configuration.url.clone(),
        recipients,
        identities,
        region: configuration.region.clone(),
        endpoint: configuration.endpoint.clone(),
        path_style: configuration.path_style,
        allow_http: configuration.allow_http,
        ca_certificates,
        credentials: credentials(&configuration.credentials)?,
        is_optional: false,
    })
}

fn credentials(source: &CredentialSource) -> Result<Credentials, ConfigurationError> {
    Ok(match source {
        CredentialSource::Ambient => Credentials::Ambient,
        CredentialSource::S3 { access_key_id, secret_access_key, session_token } => Credentials::S3 {
            access_key_id: access_key_id.clone(),
            secret_access_key: secret_access_key.read("secret access key")?.expose().to_owned(),
            session_token: match session_token {
                None => None,
                Some(token) => Some(token.read("session token")?.expose().to_owned()),
            },
        },
        CredentialSource::Gcs { service_account } => {
            Credentials::Gcs { service_account: service_account.read("service account")?.expose().to_owned() }
        }
        CredentialSource::Azure { account, key } => Credentials::Azure {
            account: account.clone(),
            key: match key {
                None => None,
                Some(key) => Some(key.read("account key")?.expose().to_owned()),
            },
        },
    })
}

/// What follows from an error of the repository; programs call it from their `judge`.
#[must_use]
pub fn judge_repository(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let error = error.downcast_ref::<RepositoryError>()?;
    if matches!(error, RepositoryError::Denied { .. }) {
        // The same answer comes from keys that are wrong and from ones that have expired, and from a clock that is off:
        // the configuration may well be right.
        let hint = "check the credentials, what they allow, and the clock of this machine";
        return Some(Verdict::new(ExitCode::Failed).with_hint(hint));
    }
    Some(match error.kind() {
        ErrorKind::NotFound => Verdict::new(ExitCode::Unreachable),
        ErrorKind::Unavailable | ErrorKind::Conflict => Verdict::new(ExitCode::Failed),
        ErrorKind::Configuration => Verdict::new(ExitCode::Usage),
        ErrorKind::Damaged => Verdict::new(ExitCode::Damaged),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::configuration::{Configuration, Environment, Overrides};

    const PRIVATE: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";

    fn temporary(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn a_side_reads_only_the_files_that_it_needs() {
        let secret = temporary("hunter2\n");
        let identity = temporary(PRIVATE);
        let text = format!(
            "[[repository]]\nname = \"far\"\nurl = \"s3://bucket/prefix\"\naccess_key_id = \"own\"\n\
             secret_access_key_file = \"{}\"\nidentity_file = \"{}\"\n\
             recipients_file = \"/nonexistent/recipients\"\n",
            secret.path().display(),
            identity.path().display()
        );
        let configuration =
            Configuration::from_toml(&text, Path::new("c.toml"), &Environment::empty(), &Overrides::none()).unwrap();
        let far = &configuration.repositories[0];

        let reading = options(far, Side::Reading).unwrap();
        assert_eq!(reading.identities, [PRIVATE]);
        assert!(reading.recipients.is_empty());
        assert!(matches!(
            &reading.credentials,
            Credentials::S3 { secret_access_key, session_token: None, .. } if secret_access_key == "hunter2"
        ));
        // A host that writes must not store in plain text because its list of recipients is gone.
        assert!(matches!(options(far, Side::Writing), Err(ConfigurationError::Unreadable { .. })));
        std::fs::remove_file(identity.path()).unwrap();
        assert!(matches!(options(far, Side::Reading), Err(ConfigurationError::Unreadable { .. })));
    }
}
