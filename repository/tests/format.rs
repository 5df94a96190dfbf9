//! The format across time and damage. `golden/0.1` is a repository as version 0.1 wrote it: it stays readable for ever.
//!
//! `PGARK_WRITE_GOLDEN=<new folder>` makes `g12_this_version_writes_what_the_golden_repository_holds` leave a new one
//! there; that is for a new format, never for mending an old one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use harness::TempDir;
use pgark_repository::{
    Backup, ClusterRepository, ErrorKind, PreparedWalFile, RepositoryError, RepositoryOptions, Sealing,
};
use sha2::{Digest, Sha256};

use crate::backups::{check, read_index, read_parts};
use crate::place::{Place, backup_id, file_of, local_options, open};
use crate::sample_backup::{OPTIONS, Sample, facts, hex};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/0.1")
}

/// The key of the golden repository protects nothing.
fn key(name: &str) -> String {
    std::fs::read_to_string(golden().join(name)).unwrap().trim().to_owned()
}

fn readable(directory: &Path) -> ClusterRepository {
    let identities = vec![key("identity.txt")];
    open(&RepositoryOptions { identities, ..local_options(directory) })
}

fn sealed(directory: &Path) -> ClusterRepository {
    let recipients = vec![key("recipient.txt")];
    open(&RepositoryOptions { recipients, ..local_options(directory) })
}

/// 1 MiB that compresses to nothing.
fn segment() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(|number| (number >> 12).to_le_bytes()).collect()
}

const SEGMENTS: [&str; 2] = ["000000010000000000000002", "000000010000000000000003"];
const HISTORY: &[u8] = b"1\t0/3000000\tno recovery target specified\n";

/// Writes what the golden repository holds: a plain and an encrypted backup, and WAL of both kinds.
async fn write(directory: &Path) {
    let places = [open(&local_options(directory)), sealed(directory)];
    for (place, segment_name) in places.iter().zip(SEGMENTS) {
        let sample = Sample::small();
        let checked = sample.write(std::slice::from_ref(place), OPTIONS, &sample.manifest().text()).await.unwrap();
        checked.commit(&facts).await.unwrap();
        let file = PreparedWalFile::prepare(segment_name.parse().unwrap(), &segment(), 3, 2).unwrap();
        place.store_wal_file(&file).await.unwrap();
    }
    for (place, name) in places.iter().zip(["00000002.history", "00000003.history"]) {
        let file = PreparedWalFile::prepare(name.parse().unwrap(), HISTORY, 3, 2).unwrap();
        place.store_wal_file(&file).await.unwrap();
    }
}

async fn read(directory: &Path) -> Vec<Backup> {
    let repository = readable(directory);
    let list = repository.backups().await.unwrap();
    assert_eq!((list.finished.len(), list.unfinished.len()), (2, 0), "none is skipped");
    let sealings: Vec<_> = list.finished.iter().map(Backup::sealing).collect();
    assert_eq!(sealings, [Sealing::Plain, Sealing::Age]);
    for backup in &list.finished {
        check(&repository, &Sample::small(), backup).await;
    }
    for name in SEGMENTS {
        let raw = repository.fetch_wal_file(&name.parse().unwrap(), Vec::new()).await.unwrap().unwrap();
        assert!(raw == segment(), "{name}");
    }
    for name in ["00000002.history", "00000003.history"] {
        let raw = repository.fetch_wal_file(&name.parse().unwrap(), Vec::new()).await.unwrap().unwrap();
        assert_eq!(raw, HISTORY, "{name}");
    }
    let inventory = repository.wal_inventory().await.unwrap();
    assert_eq!(inventory.segments.keys().map(ToString::to_string).collect::<Vec<_>>(), SEGMENTS);
    assert_eq!(inventory.histories.len(), 2);
    list.finished
}

#[tokio::test]
async fn g12_the_golden_repository_of_version_0_1_is_read_wholly() {
    read(&golden()).await;
}

/// And by names that stay: whatever else changes, a rewrite of the same content has the same layout.
#[tokio::test]
async fn g12_this_version_writes_what_the_golden_repository_holds() {
    let dir = TempDir::new("golden");
    let target = std::env::var_os("PGARK_WRITE_GOLDEN").map_or_else(|| dir.join("repository"), PathBuf::from);
    write(&target).await;
    let (new, old) = (read(&target).await, read(&golden()).await);
    let (new_place, old_place) = (readable(&target), readable(&golden()));
    for (new, old) in new.iter().zip(&old) {
        assert_eq!(read_index(&new_place, new).await.0, read_index(&old_place, old).await.0);
        assert_eq!(read_parts(&new_place, new).await, read_parts(&old_place, old).await);
        assert_eq!(fields(&serde_json::to_value(new).unwrap()), fields(&serde_json::to_value(old).unwrap()));
    }
    assert_eq!(names(&target, &new), names(&golden(), &old));
}

/// The names of all objects, with a place for the ids of backups.
fn names(directory: &Path, backups: &[Backup]) -> Vec<String> {
    fn walk(folder: &Path, names: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, names) } else { names.push(path.display().to_string()) }
        }
    }
    let mut names = Vec::new();
    walk(&directory.join("main"), &mut names);
    for name in &mut names {
        *name = name.replace(&directory.display().to_string(), "");
        for (place, backup) in backups.iter().enumerate() {
            *name = name.replace(backup.id.as_str(), &format!("backup-{place}"));
        }
    }
    names.sort();
    names
}

/// The names of all fields, with the kind of their values.
fn fields(value: &serde_json::Value) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                for (below, kind) in self::fields(value) {
                    fields.insert(format!("{name}.{below}"), kind);
                }
            }
        }
        serde_json::Value::Array(values) => {
            fields.extend(values.iter().flat_map(self::fields).map(|(name, kind)| (format!("[].{name}"), kind)));
        }
        serde_json::Value::Null => drop(fields.insert(String::new(), "null".to_owned())),
        serde_json::Value::Bool(_) => drop(fields.insert(String::new(), "boolean".to_owned())),
        serde_json::Value::Number(_) => drop(fields.insert(String::new(), "number".to_owned())),
        serde_json::Value::String(_) => drop(fields.insert(String::new(), "text".to_owned())),
    }
    fields
}

/// A repository with one backup, and its mark.
async fn with_a_backup() -> (Place, ClusterRepository, Backup, PathBuf) {
    let place = Place::local();
    let repository = place.open();
    let backup = Sample::small().commit(std::slice::from_ref(&repository)).await;
    let mark = file_of(&place, repository.keys().backup(&backup.id));
    (place, repository, backup, mark)
}

/// What reading the backup and listing the backups say, which must be the same.
async fn refusal(repository: &ClusterRepository, backup: &Backup) -> RepositoryError {
    let listed = repository.backups().await.unwrap_err();
    let read = repository.backup(&backup.id).await.unwrap_err();
    assert_eq!(listed.to_string(), read.to_string());
    read
}

/// A mark with other fields, and the checksum that belongs to them.
fn sign(json: &str) -> String {
    let at = json.rfind("\"checksum\": \"").unwrap() + 13;
    let blank = format!("{}{}{}", &json[..at], "0".repeat(64), &json[at + 64..]);
    blank.replace(&"0".repeat(64), &hex(&Sha256::digest(&blank)))
}

#[tokio::test]
async fn f11_a_newer_format_is_refused_with_its_number() {
    let (_place, repository, backup, mark) = with_a_backup().await;
    let json = std::fs::read_to_string(&mark).unwrap();
    for format in ["2", "3000000000000"] {
        // A newer one may have other fields, and another checksum or none.
        for newer in [
            json.replace("\"format\": 1", &format!("\"format\": {format}")),
            sign(&json.replace("\"format\": 1", &format!("\"format\": {format}"))),
            format!("{{\"format\": {format}, \"everything\": [\"is\", \"new\"]}}"),
        ] {
            std::fs::write(&mark, newer).unwrap();
            let error = refusal(&repository, &backup).await;
            assert!(matches!(error, RepositoryError::NewerFormat { known: 1, .. }), "{error:?}");
            assert!(error.to_string().contains(&format!("has format {format}")), "{error}");
            assert_eq!(error.kind(), ErrorKind::Configuration);
        }
    }
}

#[tokio::test]
async fn f11_a_broken_mark_is_damage_and_never_a_missing_backup() {
    let (_place, repository, backup, mark) = with_a_backup().await;
    let json = std::fs::read(&mark).unwrap();
    let mut cases: Vec<Vec<u8>> = (0..json.len()).step_by(53).map(|length| json[..length].to_vec()).collect();
    cases.push(json[..json.len() - 2].to_vec());
    cases.extend([
        b"null".to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        b"{\"format\": 1}".to_vec(),
        b"{\"format\": -1}".to_vec(),
        b"{\"format\": \"1\"}".to_vec(),
        vec![0; 4096],
        b"<html><body>Please log in.</body></html>".to_vec(),
        b"[".repeat(100_000),
        [&json[..], &json].concat(),
        [&json[..], b"x"].concat(),
    ]);
    for broken in cases {
        std::fs::write(&mark, &broken).unwrap();
        let error = refusal(&repository, &backup).await;
        assert!(matches!(error, RepositoryError::Damaged { .. }), "{error:?}: {}", String::from_utf8_lossy(&broken));
        assert!(error.to_string().contains("backup.json"), "{error}");
    }
}

/// The mark names the objects and their checksums, so it has one of its own.
#[tokio::test]
async fn c13_f11_a_flipped_bit_in_the_mark_is_noticed_wherever_it_is() {
    let (_place, repository, backup, mark) = with_a_backup().await;
    let json = std::fs::read(&mark).unwrap();
    for at in 0..json.len() {
        let mut flipped = json.clone();
        flipped[at] ^= 1 << (at % 7);
        std::fs::write(&mark, &flipped).unwrap();
        match repository.backup(&backup.id).await {
            // The digit of the format itself.
            Err(RepositoryError::Damaged { .. } | RepositoryError::NewerFormat { .. }) => {}
            other => panic!("byte {at} of\n{}\n{other:?}", String::from_utf8_lossy(&flipped)),
        }
    }
}

#[tokio::test]
async fn f11_fields_that_are_not_known_are_passed_over() {
    let (_place, repository, backup, mark) = with_a_backup().await;
    let json = std::fs::read_to_string(&mark).unwrap();
    let more = json.replacen("\"kind\":", "\"news\": {\"of\": [1, 2]}, \"kind\":", 1);
    std::fs::write(&mark, sign(&more)).unwrap();
    assert_eq!(repository.backup(&backup.id).await.unwrap().parts, backup.parts);
}

#[tokio::test]
async fn f11_c16_a_mark_of_another_backup_or_cluster_is_refused() {
    let (place, repository, backup, mark) = with_a_backup().await;
    let json = std::fs::read_to_string(&mark).unwrap();
    let copied = file_of(&place, repository.keys().backup(&backup_id()));
    std::fs::create_dir_all(copied.parent().unwrap()).unwrap();
    std::fs::write(&copied, &json).unwrap();
    let error = repository.backup(&backup_id()).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("not the backup it is stored as"), "{error}");
    assert!(repository.backups().await.is_err());
    std::fs::remove_file(copied).unwrap();

    std::fs::write(&mark, sign(&json.replace("7710467865093598212", "7710467865093598213"))).unwrap();
    let error = repository.backup(&backup.id).await.unwrap_err();
    assert!(error.to_string().contains("not the backup it is stored as"), "{error}");
}

#[tokio::test]
async fn a34_a_folder_without_a_mark_is_an_unfinished_backup() {
    let (place, repository, backup, mark) = with_a_backup().await;
    std::fs::remove_file(&mark).unwrap();
    let started = file_of(&place, repository.keys().started(&backup.id));
    let claim = std::fs::read(&started).unwrap();
    for (content, readable) in [(Some(claim), true), (Some(b"{\"format".to_vec()), false), (None, false)] {
        match content {
            Some(content) => std::fs::write(&started, content).unwrap(),
            None => std::fs::remove_file(&started).unwrap(),
        }
        let list = repository.backups().await.unwrap();
        assert_eq!((list.finished.len(), list.unfinished.len()), (0, 1));
        assert_eq!((&list.unfinished[0].id, list.unfinished[0].started.is_some()), (&backup.id, readable));
    }
    // Folders whose names are no ids are nobody's backups.
    for name in ["20261120T020003Z-full.tmp", "lost+found", "20261120T020003Z"] {
        std::fs::create_dir_all(started.parent().unwrap().with_file_name(name)).unwrap();
    }
    assert_eq!(repository.backups().await.unwrap().unfinished.len(), 1);
}
