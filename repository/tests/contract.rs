//! What every store must do, the same tests for each.

use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::GcsStub;
use pgark_repository::{ClusterRepository, Creation, Credentials, Repository, RepositoryError, RepositoryOptions};

use crate::place::{Place, backup_id, bytes, key, noise, open, open_cluster, read_through_reader, s3_credentials};

macro_rules! contract {
    ($store:ident, $place:expr $(, #[$attribute:meta])?) => {
        mod $store {
            use super::*;

            #[tokio::test]
            $(#[$attribute])?
            async fn b10_creates_once_and_never_replaces() {
                super::creates_once(&$place).await;
            }

            #[tokio::test]
            $(#[$attribute])?
            async fn reads_exactly_what_was_asked_for() {
                super::reads(&$place).await;
            }

            #[tokio::test]
            $(#[$attribute])?
            async fn c04_c09_lists_all_of_a_folder_and_nothing_else() {
                super::lists(&$place).await;
            }

            #[tokio::test]
            $(#[$attribute])?
            async fn c12_streams_large_objects_or_leaves_nothing() {
                super::streams(&$place).await;
            }

            #[tokio::test]
            $(#[$attribute])?
            async fn deletes_and_a_missing_object_is_fine() {
                super::deletes(&$place).await;
            }
        }
    };
}

contract!(local, Place::local());
contract!(s3s, Place::s3s());
contract!(azurite, Place::azurite());
contract!(gcs_stub, Place::gcs_stub());
contract!(rgw, Place::rgw(), #[ignore = "full suite: starts Ceph"]);

async fn creates_once(place: &Place) {
    let repository = place.open();
    let (store, key) = (repository.store(), key(&repository, 1));
    assert_eq!(store.create(&key, bytes("first")).await.unwrap(), Creation::Created);
    assert_eq!(store.create(&key, bytes("first")).await.unwrap(), Creation::Identical);
    for other in ["other", "fir", "first and more", ""] {
        assert_eq!(store.create(&key, bytes(other)).await.unwrap(), Creation::Different, "{other:?}");
        assert_eq!(store.read(&key, 100).await.unwrap(), "first");
    }
    let large = Bytes::from(noise(1, 17 << 20));
    let key = super::place::key(&repository, 2);
    assert_eq!(store.create(&key, large.clone()).await.unwrap(), Creation::Created);
    assert_eq!(store.create(&key, large.clone()).await.unwrap(), Creation::Identical);
    assert_eq!(store.read(&key, 17 << 20).await.unwrap(), large);
    store.settle(&key).await.unwrap();
}

async fn reads(place: &Place) {
    let repository = place.open();
    let store = repository.store();
    let (there, empty, missing) = (key(&repository, 1), key(&repository, 2), key(&repository, 3));
    store.create(&there, bytes("0123456789")).await.unwrap();
    store.create(&empty, bytes("")).await.unwrap();

    assert_eq!(store.read(&there, 10).await.unwrap(), "0123456789");
    assert!(matches!(store.read(&there, 9).await, Err(RepositoryError::Damaged { .. })));
    assert_eq!(store.read_range(&there, 0, 10).await.unwrap(), "0123456789");
    assert_eq!(store.read_range(&there, 3, 4).await.unwrap(), "3456");
    assert_eq!(store.read_range(&there, 3, 0).await.unwrap(), "");
    for (offset, length) in [(0, 11), (9, 2), (10, 1), (1000, 1), (u64::MAX, 1), (5, u64::MAX)] {
        let read = store.read_range(&there, offset, length).await;
        assert!(matches!(read, Err(RepositoryError::Damaged { .. })), "{offset} {length}: {read:?}");
    }
    assert_eq!(store.size(&there).await.unwrap(), Some(10));

    assert_eq!(store.size(&empty).await.unwrap(), Some(0));
    assert_eq!(store.read(&empty, 10).await.unwrap(), "");
    let read = store.read_range(&empty, 0, 1).await;
    assert!(matches!(read, Err(RepositoryError::Damaged { .. })), "{read:?}");
    assert_eq!(read_through_reader(store, &empty).await.unwrap(), b"");

    assert_eq!(store.size(&missing).await.unwrap(), None);
    assert!(matches!(store.read(&missing, 10).await, Err(RepositoryError::NotFound { .. })));
    assert!(matches!(store.read_range(&missing, 0, 1).await, Err(RepositoryError::NotFound { .. })));
    assert!(matches!(store.open_reader(&missing).await, Err(RepositoryError::NotFound { .. })));
}

async fn lists(place: &Place) {
    let options = place.options();
    let (first, second) = (open_cluster(&options, "db1"), open_cluster(&options, "db10"));
    // More than a page of S3 (1,000).
    const COUNT: u32 = 1_100;
    stream::iter(1..=COUNT)
        .map(|number| {
            let (store, key) = (first.store(), key(&first, number));
            async move { store.create(&key, Bytes::from(vec![7; (number % 5) as usize])).await.map(drop) }
        })
        .buffer_unordered(16)
        .try_collect::<()>()
        .await
        .unwrap();
    second.store().create(&key(&second, 1), bytes("other")).await.unwrap();

    let mut listed = first.store().list(&first.keys().root()).await.unwrap();
    listed.sort_by(|a, b| a.key.cmp(&b.key));
    let expected: Vec<_> = (1..=COUNT).map(|number| (key(&first, number), u64::from(number % 5))).collect();
    assert_eq!(listed.into_iter().map(|object| (object.key, object.size)).collect::<Vec<_>>(), expected);

    let keys = first.keys();
    let (objects, folders) = first.store().list_folder(&keys.root()).await.unwrap();
    assert_eq!((objects, folders), (vec![], vec![keys.backups()]));
    let (objects, folders) = first.store().list_folder(&keys.backups()).await.unwrap();
    assert_eq!((objects, folders), (vec![], vec![keys.backup_folder(&backup_id())]));
    assert_eq!(second.store().list(&second.keys().root()).await.unwrap().len(), 1);
    let cluster = Repository::open(&options).unwrap();
    assert_eq!(
        cluster.system_identifiers("db1").await.unwrap().into_iter().collect::<Vec<_>>(),
        [super::place::SYSTEM]
    );

    // `db` is the beginning of both names, and the name of none.
    assert_eq!(cluster.system_identifiers("db").await.unwrap().len(), 0);
    assert_eq!(first.store().list(&open_cluster(&options, "db").keys().root()).await.unwrap(), []);
    assert_eq!(first.wal_inventory().await.unwrap(), pgark_repository::WalInventory::default());
}

async fn streams(place: &Place) {
    let repository = place.open();
    let store = repository.store();
    // Three whole pieces of an upload and a rest.
    let content = noise(2, (30 << 20) + 12_345);
    let large = key(&repository, 1);
    let mut writer = store.begin(&large).await.unwrap();
    for chunk in content.chunks(1_234_567) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        assert_eq!(store.size(&large).await.unwrap(), None);
    }
    let stored = writer.finish().await.unwrap();
    assert_eq!((stored.size, stored.crc32), (content.len() as u64, crc32fast::hash(&content)));
    assert_eq!(store.size(&large).await.unwrap(), Some(stored.size));
    assert!(read_through_reader(store, &large).await.unwrap() == content);
    seeks(&repository, &content).await;

    // Given up, forgotten, and given up before anything was sent.
    for number in 2..5 {
        let key = key(&repository, number);
        let mut writer = store.begin(&key).await.unwrap();
        if number < 4 {
            writer.write(Bytes::copy_from_slice(&content[..20 << 20])).await.unwrap();
        }
        if number == 3 {
            drop(writer)
        } else {
            writer.abort().await
        }
        assert_eq!(store.size(&key).await.unwrap(), None);
    }
    let listed = store.list(&repository.keys().root()).await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    if let Place::GcsStub(stub) = place {
        no_upload_is_left(stub).await;
    }

    // A taken name is refused at once, and a small object is a conditional create.
    assert!(matches!(store.begin(&large).await, Err(RepositoryError::Conflict { .. })));
    let small = key(&repository, 5);
    let (mut winner, mut loser) = (store.begin(&small).await.unwrap(), store.begin(&small).await.unwrap());
    winner.write(bytes("winner")).await.unwrap();
    loser.write(bytes("loser")).await.unwrap();
    assert_eq!(winner.finish().await.unwrap().crc32, crc32fast::hash(b"winner"));
    assert!(matches!(loser.finish().await, Err(RepositoryError::Conflict { .. })));
    assert_eq!(store.read(&small, 10).await.unwrap(), "winner");
    let empty = store.begin(&key(&repository, 6)).await.unwrap().finish().await.unwrap();
    assert_eq!((empty.size, store.size(&key(&repository, 6)).await.unwrap()), (0, Some(0)));
}

/// The dropped writer aborts in the background.
async fn no_upload_is_left(stub: &GcsStub) {
    for _ in 0..100 {
        if stub.open_uploads() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{} uploads are left", stub.open_uploads());
}

async fn seeks(repository: &ClusterRepository, content: &[u8]) {
    let mut reader = repository.store().open_reader(&key(repository, 1)).await.unwrap();
    let content = content.to_vec();
    tokio::task::spawn_blocking(move || {
        let end = content.len() as u64;
        assert_eq!(reader.size(), end);
        for offset in [0, 4 << 20, (4 << 20) - 1, end - 10, 17_000_001, 3, end] {
            assert_eq!(reader.seek(SeekFrom::Start(offset)).unwrap(), offset);
            let mut read = Vec::new();
            (&mut reader).take(100_000).read_to_end(&mut read).unwrap();
            let from = usize::try_from(offset).unwrap();
            assert!(read == content[from..content.len().min(from + 100_000)], "at {offset}");
        }
        assert_eq!(reader.seek(SeekFrom::End(-5)).unwrap(), end - 5);
        assert_eq!(reader.seek(SeekFrom::Current(-5)).unwrap(), end - 10);
        assert!(reader.seek(SeekFrom::End(-1 - end.cast_signed())).is_err());
    })
    .await
    .unwrap();
}

async fn deletes(place: &Place) {
    let repository = place.open();
    let (store, key) = (repository.store(), key(&repository, 1));
    store.delete(&key).await.unwrap();
    store.create(&key, bytes("gone soon")).await.unwrap();
    store.delete(&key).await.unwrap();
    assert_eq!(store.size(&key).await.unwrap(), None);
    assert_eq!(store.list(&repository.keys().root()).await.unwrap(), []);
    store.delete(&key).await.unwrap();
    assert_eq!(store.create(&key, bytes("new")).await.unwrap(), Creation::Created);
}

/// Everything that can be asked of a store, with what it answered.
pub(crate) async fn everything_fails(repository: &ClusterRepository, expected: impl Fn(&RepositoryError) -> bool) {
    let (store, key) = (repository.store(), key(repository, 1));
    let errors = [
        ("create", store.create(&key, bytes("x")).await.unwrap_err()),
        ("size", store.size(&key).await.unwrap_err()),
        ("read", store.read(&key, 10).await.unwrap_err()),
        ("read_range", store.read_range(&key, 0, 1).await.unwrap_err()),
        ("open_reader", store.open_reader(&key).await.unwrap_err()),
        ("begin", store.begin(&key).await.unwrap_err()),
        ("list", store.list(&repository.keys().root()).await.unwrap_err()),
        ("list_folder", store.list_folder(&repository.keys().root()).await.unwrap_err()),
        ("delete", store.delete(&key).await.unwrap_err()),
        ("backups", repository.backups().await.unwrap_err()),
        ("has_wal_file", repository.has_wal_file(&"00000002.history".parse().unwrap()).await.unwrap_err()),
    ];
    for (operation, error) in errors {
        assert!(expected(&error), "{operation}: {error} {error:?}");
    }
}

fn is_denied(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Denied { .. })
}

pub(crate) fn is_configuration(error: &RepositoryError) -> bool {
    matches!(error, RepositoryError::Configuration { .. })
}

fn at(options: &RepositoryOptions, url: &str) -> ClusterRepository {
    open(&RepositoryOptions { url: url.to_owned(), ..options.clone() })
}

#[tokio::test]
async fn c05_s3s_a_wrong_secret_is_denied() {
    let Place::S3s(server) = Place::s3s() else { unreachable!() };
    let keys = server.keys().clone();
    let place = Place::S3s(server);
    let wrong = RepositoryOptions { credentials: s3_credentials(&keys, "wrong"), ..place.options() };
    everything_fails(&open(&wrong), is_denied).await;
}

#[tokio::test]
#[ignore = "full suite: starts Ceph"]
async fn c05_rgw_a_wrong_secret_is_denied_and_a_missing_bucket_is_a_mistake() {
    let Place::Rgw(server, bucket) = Place::rgw() else { unreachable!() };
    let keys = server.keys().clone();
    let place = Place::Rgw(server, bucket);
    let wrong = RepositoryOptions { credentials: s3_credentials(&keys, "wrong"), ..place.options() };
    everything_fails(&open(&wrong), is_denied).await;
    everything_fails(&at(&place.options(), "s3://no-such-bucket-7/pgark"), is_configuration).await;
}

#[tokio::test]
async fn c05_azurite_a_wrong_key_is_denied_and_a_missing_container_is_a_mistake() {
    let place = Place::azurite();
    let wrong = Credentials::Azure { account: "devstoreaccount1".to_owned(), key: Some("d3Jvbmc=".to_owned()) };
    everything_fails(&open(&RepositoryOptions { credentials: wrong, ..place.options() }), is_denied).await;
    everything_fails(&at(&place.options(), "az://no-such-container/pgark"), is_configuration).await;
}

/// The stub checks no signatures, so nothing is said of wrong secrets.
#[tokio::test]
async fn c05_gcs_stub_a_missing_bucket_is_a_mistake() {
    let place = Place::gcs_stub();
    everything_fails(&at(&place.options(), "gs://no-such-bucket/pgark"), is_configuration).await;
}
