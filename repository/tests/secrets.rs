//! Secrets never print, whatever is printed for debugging.

use pgark_repository::{Credentials, Repository, RepositoryOptions};

use crate::place::{Keys, Place, backup_id, key, noise, open};

const SECRET: &str = "c2VjcmV0c2VjcmV0c2VjcmV0";

fn assert_silent(shown: &str, secrets: &[&str]) {
    for secret in secrets {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(!shown.contains("AGE-SECRET-KEY"), "{shown}");
}

#[test]
fn b35_options_and_repositories_show_no_secret() {
    let keys = Keys::new();
    let account = format!(
        r#"{{"gcs_base_url": "http://127.0.0.1:9", "disable_oauth": true, "client_email": "", "private_key": "{SECRET}", "private_key_id": ""}}"#
    );
    let all = [
        ("file:///srv/repository", Credentials::Ambient),
        (
            "s3://bucket/prefix",
            Credentials::S3 {
                access_key_id: "public".to_owned(),
                secret_access_key: SECRET.to_owned(),
                session_token: Some(format!("token-{SECRET}")),
            },
        ),
        ("gs://bucket/prefix", Credentials::Gcs { service_account: account }),
        ("az://container/prefix", Credentials::Azure { account: "account".to_owned(), key: Some(SECRET.to_owned()) }),
    ];
    for (url, credentials) in all {
        let options = RepositoryOptions {
            name: "test".to_owned(),
            url: url.to_owned(),
            recipients: vec![keys.public.clone()],
            identities: vec![keys.private.clone()],
            allow_http: true,
            credentials,
            ..RepositoryOptions::default()
        };
        let shown = format!("{options:?}");
        assert!(shown.contains(url) && shown.contains(&keys.public), "{shown}");
        assert_silent(&shown, &[SECRET, &keys.private]);
        let repository = Repository::open(&options).unwrap();
        let cluster = repository.cluster("main", crate::place::SYSTEM).unwrap();
        assert_silent(&format!("{repository:?} {cluster:#?} {:?}", repository.store()), &[SECRET, &keys.private]);
    }
}

#[tokio::test]
async fn b35_writers_show_no_secret() {
    for place in [Place::s3s(), Place::azurite()] {
        let secret = match &place {
            Place::S3s(server) => server.keys().secret_access_key.clone(),
            Place::Azurite(server) => server.account_key().to_owned(),
            _ => unreachable!(),
        };
        let repository = place.open();
        let mut writer = repository.store().begin(&key(&repository, 1)).await.unwrap();
        writer.write(noise(1, 9 << 20).into()).await.unwrap();
        assert_silent(&format!("{writer:?}"), &[&secret]);
        writer.abort().await;
        repository.store().create(&key(&repository, 2), "x".into()).await.unwrap();
        let reader = repository.store().open_reader(&key(&repository, 2)).await.unwrap();
        assert_silent(&format!("{reader:?}"), &[&secret]);
    }
}

#[test]
fn b35_a_key_that_cannot_be_read_is_not_repeated() {
    let place = Place::local();
    let keys = Keys::new();
    let broken = keys.private.replace("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-2");
    let options = RepositoryOptions { identities: vec![keys.private, broken.clone()], ..place.options() };
    let error = Repository::open(&options).unwrap_err();
    assert_silent(&format!("{error} {error:?}"), &[&broken]);
    assert!(error.to_string().contains("private key 2"), "{error}");
}

#[tokio::test]
async fn b35_errors_of_stores_show_no_secret() {
    let place = Place::s3s();
    let Place::S3s(server) = &place else { unreachable!() };
    let wrong = crate::place::s3_credentials(server.keys(), SECRET);
    let options = RepositoryOptions { credentials: wrong, ..place.options() };
    let error = open(&options).backup(&backup_id()).await.unwrap_err();
    assert_silent(&format!("{error} {error:?}"), &[SECRET]);
}
