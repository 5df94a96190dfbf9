//! From what is found in a stored object to the repository's own error.

use std::io;

use pgark_repository::{ClusterRepository, ObjectKey, RepositoryError, read_failure};

/// The error for stored content that does not fit together.
pub(crate) fn damaged(repository: &ClusterRepository, key: &ObjectKey, reason: impl Into<String>) -> RepositoryError {
    RepositoryError::Damaged { repository: repository.name().to_owned(), key: key.clone(), reason: reason.into() }
}

/// Tells a failing store from damaged content: see [`read_failure`].
pub(crate) fn reading_failed(repository: &ClusterRepository, key: &ObjectKey, error: io::Error) -> RepositoryError {
    // The system's own words for it say nothing about the object.
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return damaged(repository, key, "it is cut short");
    }
    read_failure(repository.store(), key, error)
}
