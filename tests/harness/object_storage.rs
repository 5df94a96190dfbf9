//! Each store keeps the promises that pgark builds on, seen through the client that pgark uses.

use std::sync::Arc;

use futures_util::TryStreamExt;
use harness::{Azurite, GcsStub, RgwServer, S3Keys, S3Server};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

pub(crate) fn s3(endpoint: &str, bucket: &str, keys: &S3Keys) -> Arc<dyn ObjectStore> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let builder = AmazonS3Builder::new().with_endpoint(endpoint).with_allow_http(true).with_region("us-east-1");
    let builder = builder.with_access_key_id(&keys.access_key_id).with_secret_access_key(&keys.secret_access_key);
    Arc::new(builder.with_bucket_name(bucket).build().unwrap())
}

/// Creates only once, reads ranges, joins parts, lists over more than a page, deletes.
async fn keeps_the_promises(store: Arc<dyn ObjectStore>) {
    let path = Path::from("pgark/main/7000/first object.json");
    store.put_opts(&path, PutPayload::from("first"), PutMode::Create.into()).await.unwrap();
    let again = store.put_opts(&path, PutPayload::from("other"), PutMode::Create.into()).await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    assert_eq!(store.get_range(&path, 1..4).await.unwrap(), "irs");
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "first");
    assert_eq!(store.head(&path).await.unwrap().size, 5);

    let joined = Path::from("pgark/main/7000/joined");
    let mut upload = store.put_multipart(&joined).await.unwrap();
    upload.put_part(vec![b'a'; 5 * 1024 * 1024].into()).await.unwrap();
    upload.put_part(vec![b'b'; 1000].into()).await.unwrap();
    upload.complete().await.unwrap();
    let size = 5 * 1024 * 1024 + 1000;
    assert_eq!(store.head(&joined).await.unwrap().size, size);
    assert_eq!(store.get_range(&joined, size - 1001..size - 998).await.unwrap(), "abb");
    let mut upload = store.put_multipart(&Path::from("pgark/main/7000/aborted")).await.unwrap();
    upload.put_part(vec![b'a'; 1000].into()).await.unwrap();
    upload.abort().await.unwrap();

    for number in 0..120 {
        let path = Path::from(format!("pgark/main/wal/{number:03}"));
        store.put(&path, PutPayload::from("segment")).await.unwrap();
    }
    let listed: Vec<_> = store.list(Some(&Path::from("pgark/main/wal"))).try_collect().await.unwrap();
    assert_eq!(listed.len(), 120);
    let folders = store.list_with_delimiter(Some(&Path::from("pgark/main"))).await.unwrap();
    assert_eq!(folders.common_prefixes, [Path::from("pgark/main/7000"), Path::from("pgark/main/wal")]);

    store.delete(&path).await.unwrap();
    let missing = store.get(&path).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
}

#[tokio::test]
async fn s3s_keeps_the_promises_and_checks_signatures() {
    let server = S3Server::start();
    keeps_the_promises(s3(&server.endpoint(), "backups", server.keys())).await;
    assert!(server.bucket_dir("backups").join("pgark/main/wal/000").exists());
    let wrong = S3Keys { secret_access_key: "wrong".to_owned(), ..server.keys().clone() };
    let refused = s3(&server.endpoint(), "backups", &wrong).get(&Path::from("pgark/main/wal/000")).await;
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
}

#[tokio::test]
async fn azurite_keeps_the_promises() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let server = Azurite::start();
    let builder = MicrosoftAzureBuilder::new().with_endpoint(server.endpoint()).with_allow_http(true);
    let builder = builder.with_account(server.account()).with_access_key(server.account_key());
    keeps_the_promises(Arc::new(builder.with_container_name("backups").build().unwrap())).await;
}

#[tokio::test]
async fn the_stub_of_google_cloud_storage_keeps_the_promises() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let stub = GcsStub::start();
    let builder = GoogleCloudStorageBuilder::new().with_bucket_name("backups");
    let builder = builder
        .with_service_account_key(harness::service_account(&stub.endpoint()))
        .with_config(GoogleConfigKey::BaseUrl, stub.endpoint())
        .with_client_options(ClientOptions::new().with_allow_http(true));
    keeps_the_promises(Arc::new(builder.build().unwrap())).await;
    assert_eq!(stub.open_uploads(), 0);
    assert_eq!(stub.objects().len(), 121);
}

#[tokio::test]
#[ignore = "full suite: starts Ceph"]
async fn the_rados_gateway_keeps_the_promises_and_lets_one_racing_create_win() {
    let server = RgwServer::shared();
    let bucket = server.create_bucket("harness");
    let store = s3(&server.endpoint(), &bucket, server.keys());
    keeps_the_promises(Arc::clone(&store)).await;
    let racing = (0..16).map(|number| {
        let store = Arc::clone(&store);
        let payload = PutPayload::from(format!("writer {number}"));
        tokio::spawn(async move { store.put_opts(&Path::from("raced"), payload, PutMode::Create.into()).await.is_ok() })
    });
    let won = futures_util::future::join_all(racing).await;
    assert_eq!(won.into_iter().filter(|won| *won.as_ref().unwrap()).count(), 1);
    let locked = server.create_locked_bucket("harness-locked");
    s3(&server.endpoint(), &locked, server.keys()).put(&Path::from("object"), "bytes".into()).await.unwrap();
}
