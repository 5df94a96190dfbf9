//! Objects that a store does not let go yet: object lock, retention policies, legal holds.
//!
//! A bucket of S3 with object lock has versions: a deletion of a locked object is answered with success, hides it, and
//! frees nothing. So S3 is asked first: its answer to a read carries the lock in two headers, which the client does not
//! hand out. A [`LockReader`] between the client and the network picks them up. Other stores refuse the deletion and say
//! why.

use std::future::Future;
use std::pin::Pin;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

use crate::error::{RepositoryError, in_full};

const RETAIN_UNTIL: &str = "x-amz-object-lock-retain-until-date";
const LEGAL_HOLD: &str = "x-amz-object-lock-legal-hold";

/// Words of stores that refuse to delete what is still protected: Google's and Azure's, and those of S3-like stores that
/// refuse instead of hiding.
const PROTECTED: [&str; 6] = ["retention", "immutable", "Immutable", "WORM", "ObjectLocked", "legal hold"];

/// How a deletion ended, when it did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// The object is gone.
    Done,
    /// It is still there, because the store protects it: `until 2026-12-01 00:00:00+00`, or what else is known.
    Locked(String),
}

/// The lock of an object, as the headers of an answer tell it.
#[derive(Debug, Clone)]
pub(super) struct Lock {
    until: Option<String>,
    has_legal_hold: bool,
}

impl Lock {
    /// What to say of it at this moment; nothing once it is over.
    pub(super) fn words(&self, now: Timestamp) -> Option<String> {
        if self.has_legal_hold {
            return Some("by a legal hold".to_owned());
        }
        let until = self.until.as_ref()?;
        match until.parse::<Timestamp>() {
            Ok(end) if end <= now => None,
            Ok(end) => Some(format!("until {}", TimeZone::UTC.to_datetime(end).strftime("%Y-%m-%d %H:%M:%S+00"))),
            Err(_) => Some(format!("until {}", until.escape_debug())),
        }
    }
}

/// Tells a refusal because of a lock from other refusals.
pub(super) fn refused_by_a_lock(error: &RepositoryError) -> Option<String> {
    let said = in_full(error);
    if !PROTECTED.iter().any(|word| said.contains(word)) {
        return None;
    }
    // Google says until when.
    let until = said.split("until ").nth(1).and_then(|rest| rest.split(['"', '<', '\'', ' ']).next());
    let until = until.map(|text| text.trim_end_matches(|last: char| !last.is_ascii_alphanumeric()));
    let until = until.and_then(|text| text.parse::<Timestamp>().ok());
    Some(until.map_or("by the store's retention policy".to_owned(), |end| {
        format!("until {}", TimeZone::UTC.to_datetime(end).strftime("%Y-%m-%d %H:%M:%S+00"))
    }))
}

/// Connects as usual, and notes locks in the extensions of answers.
#[derive(Debug, Default)]
pub(super) struct LockReader(ReqwestConnector);

impl HttpConnector for LockReader {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(LockService(self.0.connect(options)?)))
    }
}

#[derive(Debug)]
struct LockService(HttpClient);

impl HttpService for LockService {
    fn call<'s, 'c>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'c>>
    where
        's: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let mut response = self.0.execute(request).await?;
            let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
            let until = header(RETAIN_UNTIL);
            let has_legal_hold = header(LEGAL_HOLD).is_some_and(|hold| hold.eq_ignore_ascii_case("on"));
            if until.is_some() || has_legal_hold {
                response.extensions_mut().insert(Lock { until, has_legal_hold });
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::keys::ObjectKey;

    #[test]
    fn a_lock_says_until_when_it_holds_and_nothing_once_it_is_over() {
        let lock = Lock { until: Some("2026-12-01T10:00:00.000Z".to_owned()), has_legal_hold: false };
        let at = |text: &str| lock.words(text.parse().unwrap());
        assert_eq!(at("2026-11-20T00:00:00Z").as_deref(), Some("until 2026-12-01 10:00:00+00"));
        assert_eq!(at("2026-12-01T10:00:00Z"), None);
        let held = Lock { has_legal_hold: true, ..lock };
        assert_eq!(held.words("2027-01-01T00:00:00Z".parse().unwrap()).as_deref(), Some("by a legal hold"));
    }

    #[test]
    fn c08_a_refusal_that_speaks_of_retention_is_told_from_missing_rights() {
        let refusal = |words: &str| RepositoryError::Denied {
            repository: "far".to_owned(),
            operation: "delete",
            key: ObjectKey::new("a/b".to_owned()),
            source: Box::new(object_store::Error::Generic { store: "GCS", source: words.into() }),
        };
        let google = "Object 'b/o' is subject to bucket's retention policy or object retention and cannot be deleted or \
                      overwritten until 2026-12-01T10:00:00.5Z";
        assert_eq!(refused_by_a_lock(&refusal(google)).as_deref(), Some("until 2026-12-01 10:00:00+00"));
        let azure =
            "BlobImmutableDueToPolicy: This operation is not permitted as the blob is immutable due to a policy.";
        assert_eq!(refused_by_a_lock(&refusal(azure)).as_deref(), Some("by the store's retention policy"));
        assert_eq!(
            refused_by_a_lock(&refusal("AccessDenied: User is not authorized to perform s3:DeleteObject")),
            None
        );
    }
}
