//! What only a local directory has: paths that need care, modes, a directory that is not there, and foreign files.

use std::os::unix::fs::PermissionsExt;

use harness::TempDir;
use pgark_repository::{Creation, Repository, RepositoryError};

use crate::place::{Place, bytes, file_of, key, local_options, open, open_cluster};

#[tokio::test]
async fn c14_any_directory_name_will_do() {
    let dir = TempDir::new("names");
    for name in
        ["with space", "per%cent", "per%20cent", "hash#7", "ümläut", "plus+and&", "question?", "a.b~c'd", "deep/er"]
    {
        let options = local_options(&dir.join(name));
        let repository = open(&options);
        let (store, key) = (repository.store(), key(&repository, 1));
        assert_eq!(store.size(&key).await.unwrap(), None, "{name}");
        assert_eq!(store.create(&key, bytes("content")).await.unwrap(), Creation::Created, "{name}");
        assert_eq!(store.create(&key, bytes("content")).await.unwrap(), Creation::Identical, "{name}");
        assert_eq!(std::fs::read(dir.join(name).join(key.as_str())).unwrap(), b"content", "{name}");
        assert_eq!(store.read(&key, 10).await.unwrap(), "content", "{name}");
        let listed = store.list(&repository.keys().root()).await.unwrap();
        assert_eq!(
            listed.into_iter().map(|object| object.key).collect::<Vec<_>>(),
            std::slice::from_ref(&key),
            "{name}"
        );
        let (_, folders) = store.list_folder(&repository.keys().root()).await.unwrap();
        assert_eq!(folders, [repository.keys().backups()], "{name}");
        // Moved, it is the same repository.
        let elsewhere = dir.join("elsewhere");
        std::fs::rename(dir.join(name), &elsewhere).unwrap();
        assert_eq!(open(&local_options(&elsewhere)).store().read(&key, 10).await.unwrap(), "content", "{name}");
        std::fs::remove_dir_all(&elsewhere).unwrap();
    }
}

/// An unmounted disk is not an empty repository.
#[tokio::test]
async fn f11_c05_a_directory_that_does_not_exist_is_no_empty_repository() {
    let dir = TempDir::new("missing");
    let repository = open(&local_options(&dir.join("not-mounted")));
    for error in [
        repository.backups().await.map(drop).unwrap_err(),
        repository.wal_inventory().await.map(drop).unwrap_err(),
        Repository::open(&local_options(&dir.join("not-mounted")))
            .unwrap()
            .system_identifiers("main")
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert!(matches!(error, RepositoryError::Configuration { .. }), "{error:?}");
        assert!(error.to_string().contains("does not exist"), "{error}");
    }
    // Writing makes it.
    repository.store().create(&key(&repository, 1), bytes("first")).await.unwrap();
    assert_eq!(repository.wal_inventory().await.unwrap().segments.len(), 0);
}

/// Whoever restores reads as a member of the group; the archive command inherits PostgreSQL's umask.
#[tokio::test]
async fn b28_modes_do_not_depend_on_the_umask() {
    let place = Place::local();
    let repository = place.open();
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let created = repository.store().create(&key(&repository, 1), bytes("x")).await;
    rustix::process::umask(before);
    created.unwrap();
    let path = file_of(&place, key(&repository, 1));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o640);
    for folder in path.ancestors().skip(1).take(5) {
        assert_eq!(mode(folder), 0o750, "{}", folder.display());
    }
}

#[tokio::test]
async fn b04_leftovers_of_killed_writers_are_not_listed() {
    let place = Place::local();
    let repository = place.open();
    let key = key(&repository, 1);
    repository.store().create(&key, bytes("whole")).await.unwrap();
    let path = file_of(&place, &key);
    std::fs::write(path.with_file_name("000002.tar.zst#73014444032"), b"half").unwrap();
    std::fs::write(path.with_file_name("000002.tar.zst#1"), b"half").unwrap();
    let listed = repository.store().list(&repository.keys().root()).await.unwrap();
    assert_eq!(listed.into_iter().map(|object| object.key).collect::<Vec<_>>(), [key]);
}

#[tokio::test]
async fn c09_clusters_with_similar_names_do_not_meet() {
    let place = Place::local();
    let options = place.options();
    for name in ["db", "db1", "db10", "db1.tmp.2"] {
        let repository = open_cluster(&options, name);
        repository.store().create(&key(&repository, 1), bytes(name)).await.unwrap();
    }
    for name in ["db", "db1", "db10", "db1.tmp.2"] {
        let repository = open_cluster(&options, name);
        let listed = repository.store().list(&repository.keys().root()).await.unwrap();
        assert_eq!(listed.into_iter().map(|object| object.key).collect::<Vec<_>>(), [key(&repository, 1)]);
    }
}

#[test]
fn b20_cluster_names_that_lead_elsewhere_are_refused() {
    let place = Place::local();
    let repository = Repository::open(&place.options()).unwrap();
    for name in ["", ".", "..", "a/b", "../x", ".hidden", "ü", "a b", "a\nb", &"x".repeat(101)] {
        assert!(repository.cluster(name, crate::place::SYSTEM).is_err(), "{name:?}");
    }
}
