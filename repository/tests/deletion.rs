//! Deletion: holds, locks, and a backup whose claim was deleted under its writer.

use std::slice;

use harness::RgwServer;
use pgark_repository::{BackupId, Deletion, Hold, RepositoryError};

use crate::place::{Place, bytes, key};
use crate::sample_backup::{OPTIONS, Sample, facts};

fn hold(id: &BackupId, reason: &str) -> Hold {
    Hold::new(id.clone(), reason.to_owned(), "host".to_owned(), "test".to_owned())
}

#[tokio::test]
async fn a_hold_is_created_once_and_needs_a_finished_backup() {
    let place = Place::local();
    let cluster = place.open();
    let missing: BackupId = "20200101T000000Z-full".parse().unwrap();
    assert!(matches!(cluster.hold(&hold(&missing, "x")).await, Err(RepositoryError::NotFound { .. })));
    assert!(matches!(cluster.release(&missing).await, Err(RepositoryError::NotFound { .. })));
    let id = Sample::small().commit(slice::from_ref(&cluster)).await.id;
    assert_eq!(cluster.hold(&hold(&id, "first")).await.unwrap(), None);
    let there = cluster.hold(&hold(&id, "second")).await.unwrap().unwrap();
    assert_eq!((there.reason.as_str(), there.host.as_str()), ("first", "host"));
    assert_eq!(cluster.holds([missing.clone(), id.clone()]).await.unwrap(), [there]);
    assert!(cluster.release(&id).await.unwrap());
    assert!(!cluster.release(&id).await.unwrap());
    // One that cannot be read holds all the same.
    cluster.store().create(&cluster.keys().hold(&id), bytes("{")).await.unwrap();
    assert_eq!(cluster.hold_of(&id).await.unwrap().unwrap().reason, "its hold.json cannot be read");
}

#[tokio::test]
async fn g07_a_backup_whose_claim_was_deleted_cannot_be_committed() {
    let place = Place::local();
    let cluster = place.open();
    let sample = Sample::small();
    let checked = sample.write(slice::from_ref(&cluster), OPTIONS, &sample.manifest().text()).await.unwrap();
    cluster.store().delete(&cluster.keys().started(checked.id())).await.unwrap();
    let refused = checked.commit(&facts).await.unwrap_err();
    assert!(refused.to_string().contains("was deleted from the repository `test` as an interrupted one"), "{refused}");
    assert!(cluster.backups().await.unwrap().finished.is_empty());
}

#[tokio::test]
#[ignore = "full suite: starts Ceph"]
async fn c08_what_object_lock_protects_is_not_deleted_and_says_until_when() {
    let server = RgwServer::shared();
    let bucket = server.create_locked_bucket("lock");
    let place = Place::Rgw(server, bucket.clone());
    let repository = place.open();
    let store = repository.store();
    let (free, locked) = (key(&repository, 1), key(&repository, 2));
    store.create(&free, bytes("before")).await.unwrap();
    RgwServer::shared().lock_for_a_day(&bucket);
    store.create(&locked, bytes("after")).await.unwrap();
    assert_eq!(store.lock_of(&free).await.unwrap(), None);
    let words = store.lock_of(&locked).await.unwrap().unwrap();
    assert!(words.starts_with("until 20") && words.ends_with("+00"), "{words}");
    assert_eq!(store.delete_unless_locked(&locked).await.unwrap(), Deletion::Locked(words));
    assert_eq!(store.read(&locked, 100).await.unwrap(), "after");
    assert_eq!(store.delete_unless_locked(&free).await.unwrap(), Deletion::Done);
    assert_eq!(store.size(&free).await.unwrap(), None);
}
