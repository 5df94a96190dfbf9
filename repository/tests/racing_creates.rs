//! Sixteen writers create one object at once: exactly one wins, the others learn it, and the winner's bytes stay.
//!
//! Not on s3s-fs, which checks first and writes then.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use pgark_repository::Creation;
use tokio::sync::Barrier;

use crate::place::{Place, key};

async fn one_wins(place: Place) {
    const WRITERS: usize = 16;
    for round in 1..=5 {
        let repository = place.open();
        let key = key(&repository, round);
        let barrier = Arc::new(Barrier::new(WRITERS));
        let writers = (0..WRITERS).map(|writer| {
            let (store, key, barrier) = (repository.store().clone(), key.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                store.create(&key, Bytes::from(format!("writer {writer:02}"))).await.unwrap()
            })
        });
        let ended: Vec<_> = join_all(writers).await.into_iter().map(|ended| ended.unwrap()).collect();
        // A winner whose answer was lost on the way asks again, and finds its own bytes.
        let won = |writer: &usize| matches!(ended[*writer], Creation::Created | Creation::Identical);
        let winners: Vec<_> = (0..WRITERS).filter(won).collect();
        assert_eq!(winners.len(), 1, "{ended:?}");
        assert_eq!(ended.iter().filter(|ended| **ended == Creation::Different).count(), WRITERS - 1, "{ended:?}");
        let content = repository.store().read(&key, 100).await.unwrap();
        assert_eq!(content, format!("writer {:02}", winners[0]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn b13_local_one_of_racing_creators_wins() {
    one_wins(Place::local()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn b13_azurite_one_of_racing_creators_wins() {
    one_wins(Place::azurite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn b13_gcs_stub_one_of_racing_creators_wins() {
    one_wins(Place::gcs_stub()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "full suite: starts Ceph"]
async fn b13_rgw_one_of_racing_creators_wins() {
    one_wins(Place::rgw()).await;
}

/// The same bytes from all: nobody loses.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn b15_local_racing_twins_all_succeed() {
    let place = Place::local();
    let repository = place.open();
    let twins = (0..16).map(|_| {
        let (store, key) = (repository.store().clone(), key(&repository, 1));
        tokio::spawn(async move { store.create(&key, Bytes::from_static(b"the same")).await.unwrap() })
    });
    let ended: Vec<_> = join_all(twins).await.into_iter().map(|ended| ended.unwrap()).collect();
    assert_eq!(ended.iter().filter(|ended| **ended == Creation::Created).count(), 1, "{ended:?}");
    assert_eq!(ended.iter().filter(|ended| **ended == Creation::Identical).count(), 15, "{ended:?}");
}
