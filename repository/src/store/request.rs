//! One request to a store: how long it may take, how often it is tried, and what its errors mean.
//!
//! The client below repeats a request that was answered with a server's error or cut off. What it cannot
//! see is a connection that stands still: so every request has a limit here that grows with its bytes, and
//! reads are tried once more after it. A dead network becomes an error in less than a minute.

use std::time::Duration;

use object_store::Error as StoreError;

use super::Store;
use crate::error::{RepositoryError, Result, in_full};
use crate::keys::ObjectKey;

/// Time for an answer, the client's own repetitions (see `location::retries`) included.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);
/// Content may take this much longer: a line with half a megabit per second and stream.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 << 10;
/// No create begins again after this time.
pub(super) const CREATE_LIMIT: Duration = Duration::from_secs(30);

/// Words of a store that knows the bucket and says that the object is missing. A status of 404 alone may
/// come from a proxy, or from a path that is no store's.
const ABSENT: [&str; 3] = ["<Code>NoSuchKey</Code>", "<Code>BlobNotFound</Code>", "The specified blob does not exist"];
/// Words of a store that misses the bucket or container.
const NO_BUCKET: [&str; 3] =
    ["<Code>NoSuchBucket</Code>", "<Code>ContainerNotFound</Code>", "The specified container does not exist"];
/// How refusals look in answers that the client does not sort itself (listings, deletions of several).
const REFUSED: [&str; 3] = ["status code: 401", "status code: 403", "code: AccessDenied"];

impl Store {
    /// Waits for a request, but not longer than its bytes justify. `None` means that no answer came.
    pub(super) async fn limited<T>(
        &self,
        bytes: u64,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Option<object_store::Result<T>> {
        // A disk that hangs cannot be asked in another way.
        if self.directory.is_some() {
            return Some(request.await);
        }
        tokio::time::timeout(time_for(bytes), request).await.ok()
    }

    /// Makes one request.
    pub(super) async fn once<T>(
        &self,
        operation: &'static str,
        key: &ObjectKey,
        bytes: u64,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        match self.limited(bytes, request).await {
            Some(answer) => answer.map_err(|error| self.failure(operation, key, error)),
            None => Err(self.no_answer(operation, key, bytes)),
        }
    }

    /// Makes a request that changes nothing, and makes it again where it got no answer.
    pub(super) async fn repeated<T, F>(
        &self,
        operation: &'static str,
        key: &ObjectKey,
        bytes: u64,
        request: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        match self.limited(bytes, request()).await {
            Some(answer) => answer.map_err(|error| self.failure(operation, key, error)),
            None => self.once(operation, key, bytes, request()).await,
        }
    }

    pub(super) fn no_answer(&self, operation: &'static str, key: &ObjectKey, bytes: u64) -> RepositoryError {
        let reason = format!("no answer within {} s", time_for(bytes).as_secs());
        self.unavailable(operation, key, reason)
    }

    pub(super) fn unavailable(
        &self,
        operation: &'static str,
        key: &ObjectKey,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> RepositoryError {
        RepositoryError::Unavailable {
            repository: self.name().to_owned(),
            operation,
            key: key.clone(),
            source: source.into(),
        }
    }

    /// Sorts a store's error: only an object that a proper answer calls missing is `NotFound`.
    pub(super) fn failure(&self, operation: &'static str, key: &ObjectKey, error: StoreError) -> RepositoryError {
        let repository = self.name().to_owned();
        let said = in_full(&error);
        let says = |words: &[&str]| words.iter().any(|words| said.contains(words));
        match error {
            // The file system itself speaks.
            StoreError::NotFound { .. } if self.directory.is_some() => {
                RepositoryError::NotFound { repository, key: key.clone() }
            }
            // A mistake in the configuration, not an absent object.
            _ if self.directory.is_none() && says(&NO_BUCKET) => {
                let reason = "its bucket or container does not exist; create it or correct the url";
                RepositoryError::Configuration { repository, reason: reason.to_owned() }
            }
            StoreError::NotFound { .. } if says(&ABSENT) => RepositoryError::NotFound { repository, key: key.clone() },
            source @ (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. }) => {
                RepositoryError::Denied { repository, operation, key: key.clone(), source: Box::new(source) }
            }
            source if self.directory.is_none() && says(&REFUSED) => {
                RepositoryError::Denied { repository, operation, key: key.clone(), source: Box::new(source) }
            }
            source => self.unavailable(operation, key, source),
        }
    }
}

fn time_for(bytes: u64) -> Duration {
    ANSWER_LIMIT + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND)
}

/// Whether a store (or the client, after its answer) said that the range that was asked for is not in the object.
pub(super) fn is_about_range(error: &RepositoryError) -> bool {
    let said = in_full(error);
    // The last one is Azurite's answer for an empty object, `bytes 0--1/0`.
    ["status code: 416", "range was invalid", "object was only", "Out of range", "value for CONTENT_RANGE"]
        .iter()
        .any(|words| said.contains(words))
}
