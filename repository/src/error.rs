//! Errors of the repository: named after the situation, with a kind that answers "what now?".

use crate::keys::ObjectKey;

/// What a caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The object is not there, and the store itself said so.
    NotFound,
    /// The store cannot be reached or answers with errors: trying again later may help.
    Unavailable,
    /// The store, the credentials or the keys are configured wrongly.
    Configuration,
    /// What is stored is damaged.
    Damaged,
    /// Another writer put other bytes under the name.
    Conflict,
}

/// An error of the repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The object does not exist; said by a store that answered properly.
    #[error("{key} is not in the repository `{repository}`")]
    NotFound {
        /// Name of the repository.
        repository: String,
        /// The missing object.
        key: ObjectKey,
    },
    /// The store refused the credentials or the operation.
    #[error("the repository `{repository}` refuses to {operation} {key}")]
    Denied {
        /// Name of the repository.
        repository: String,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object.
        key: ObjectKey,
        /// The store's own words.
        source: Box<object_store::Error>,
    },
    /// The store did not answer, or answered with an error, also after retries.
    #[error("cannot {operation} {key} in the repository `{repository}`")]
    Unavailable {
        /// Name of the repository.
        repository: String,
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object.
        key: ObjectKey,
        /// The store's own words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A local file system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The repository is configured wrongly.
    #[error("repository `{repository}`: {reason}")]
    Configuration {
        /// Name of the repository.
        repository: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The object exists with other content, and was left as it is.
    #[error("{key} is already in the repository `{repository}` with other content; it was not changed")]
    Conflict {
        /// Name of the repository.
        repository: String,
        /// The object.
        key: ObjectKey,
    },
    /// Stored bytes are not what was written.
    #[error("{key} in the repository `{repository}` is damaged: {reason}")]
    Damaged {
        /// Name of the repository.
        repository: String,
        /// The object.
        key: ObjectKey,
        /// What does not fit.
        reason: String,
    },
    /// The object is encrypted and no configured key opens it.
    #[error("{key} in the repository `{repository}` cannot be decrypted: {reason}")]
    NoKey {
        /// Name of the repository.
        repository: String,
        /// The object.
        key: ObjectKey,
        /// Missing or not matching.
        reason: String,
    },
    /// Written by a newer pgark.
    #[error("{key} has format {found}, this program reads up to {known}; use a newer pgark")]
    NewerFormat {
        /// The object.
        key: ObjectKey,
        /// The number found.
        found: u64,
        /// The newest known number.
        known: u64,
    },
    /// What the source sent cannot be stored.
    #[error("{0}")]
    Input(String),
}

impl RepositoryError {
    /// Tells what a caller should do about the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Unavailable { .. } | Self::Io { .. } => ErrorKind::Unavailable,
            Self::Denied { .. } | Self::Configuration { .. } | Self::NoKey { .. } | Self::NewerFormat { .. } => {
                ErrorKind::Configuration
            }
            Self::Damaged { .. } | Self::Input(_) => ErrorKind::Damaged,
            Self::Conflict { .. } => ErrorKind::Conflict,
        }
    }
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, RepositoryError>;

/// An error with all its sources, for what its own text leaves out.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
