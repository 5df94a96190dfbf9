//! Finds out by trying what a store allows, with one small object that means nothing.
//!
//! The object has the same name each time: where nobody may delete, one is left and found again.

use bytes::Bytes;

use crate::cluster::Repository;
use crate::error::Result;
use crate::keys::{ClusterKeys, ObjectKey};
use crate::store::Creation;

/// What the object holds, and what must not replace it.
const FIRST: &[u8] = b"pgark-agent check creates this object to see what the repository allows.\n";
const SECOND: &[u8] = b"This should never have been stored: a conditional create was not refused.\n";

/// What each step came to; steps behind one that failed are not tried.
#[derive(Debug)]
pub struct Probe {
    /// The object.
    pub key: ObjectKey,
    /// Creating it.
    pub create: Result<Creation>,
    /// Creating it again with other content, which must come to [`Creation::Different`].
    pub create_again: Option<Result<Creation>>,
    /// Whether it reads as it was written.
    pub read: Option<Result<bool>>,
    /// Whether a listing names it.
    pub list: Option<Result<bool>>,
    /// When it was created, in microseconds since 1970 by the store's clock; only for a new one.
    pub created_at: Option<i64>,
    /// Deleting it.
    pub delete: Option<Result<()>>,
}

/// Tries what a repository allows for a cluster.
pub async fn probe(repository: &Repository, cluster: &str) -> Probe {
    let store = repository.store();
    let key = ClusterKeys::probe(cluster);
    let mut create = store.create(&key, Bytes::from_static(FIRST)).await;
    // A store that once ignored the condition has kept the wrong one.
    if matches!(create, Ok(Creation::Different)) && store.delete(&key).await.is_ok() {
        create = store.create(&key, Bytes::from_static(FIRST)).await;
    }
    let mut probe =
        Probe { key: key.clone(), create, create_again: None, read: None, list: None, created_at: None, delete: None };
    let Ok(creation) = &probe.create else { return probe };
    if *creation == Creation::Created {
        probe.created_at = store.created_at(&key).await.ok();
    }
    probe.create_again = Some(store.create(&key, Bytes::from_static(SECOND)).await);
    probe.read = Some(store.read(&key, 4096).await.map(|bytes| bytes == FIRST));
    let folder = key.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
    let listed = store.list_folder(&ObjectKey::new(folder.to_owned())).await;
    probe.list = Some(listed.map(|(objects, _)| objects.iter().any(|object| object.key == key)));
    probe.delete = Some(store.delete(&key).await);
    probe
}
