//! The objects of a backup: which there have to be, and whether the store lists each of them with its size. One listing
//! a backup, so this is done for all of them, however little is read.

use std::collections::BTreeMap;

use pgark_repository::{Backup, ClusterRepository, ListedObject, ObjectKey, RepositoryError};
use serde_json::Value;

use super::{Fault, Findings};

/// More than any claim or hold has.
const SMALL_LIMIT: u64 = 1 << 20;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Part(u32),
    Included(u32),
    Manifest,
    Index,
}

/// An object and what `backup.json` says of it.
#[derive(Clone, Debug)]
pub(super) struct StoredObject {
    pub(super) kind: Kind,
    pub(super) key: ObjectKey,
    /// In the backup's folder.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) crc32: String,
}

/// All that `backup.json` lists, in the order of names.
pub(super) fn objects_of(repository: &ClusterRepository, backup: &Backup) -> Vec<StoredObject> {
    let folder = repository.keys().backup_folder(&backup.id).to_string();
    let object = |kind, key: ObjectKey, size, crc32: &String| StoredObject {
        kind,
        name: name_in(&folder, &key),
        key,
        size,
        crc32: crc32.clone(),
    };
    let mut objects: Vec<StoredObject> = Vec::with_capacity(backup.parts.len() + 2);
    for part in &backup.parts {
        let key = repository.part_key(backup, part.number);
        objects.push(object(Kind::Part(part.number), key, part.stored_size, &part.crc32));
    }
    for (number, included) in (1..).zip(&backup.included) {
        let (key, file) = (repository.included_key(backup, number), &included.object);
        objects.push(object(Kind::Included(number), key, file.stored_size, &file.crc32));
    }
    let (manifest, index) = (&backup.manifest, &backup.index);
    objects.push(object(Kind::Manifest, repository.manifest_key(backup), manifest.stored_size, &manifest.crc32));
    objects.push(object(Kind::Index, repository.index_key(backup), index.stored_size, &index.crc32));
    objects.sort_by(|one, other| one.name.cmp(&other.name));
    objects
}

fn name_in(folder: &str, key: &ObjectKey) -> String {
    key.as_str().strip_prefix(folder).unwrap_or(key.as_str()).trim_start_matches('/').to_owned()
}

/// Compares what there has to be with what the store lists, and looks at the claim and the hold.
pub(super) async fn compare(
    repository: &ClusterRepository,
    backup: &Backup,
    objects: &[StoredObject],
    findings: &mut Findings,
) {
    let folder = repository.keys().backup_folder(&backup.id);
    let listed = match repository.store().list(&folder).await {
        Ok(listed) => listed,
        Err(error) => return findings.add(Fault::of_backup(backup, &folder, &error)),
    };
    let mut there: BTreeMap<String, ListedObject> =
        listed.into_iter().map(|listed| (name_in(folder.as_str(), &listed.key), listed)).collect();
    for object in objects {
        let reason = match there.remove(&object.name) {
            Some(listed) if listed.size == object.size => continue,
            Some(listed) => format!("its size is {}, backup.json says {}", listed.size, object.size),
            None => "it is missing".to_owned(),
        };
        findings.add(Fault::damage(backup, &object.key, reason));
    }
    let claim = repository.keys().started(&backup.id);
    let has_claim = there.contains_key(&name_in(folder.as_str(), &claim));
    small_object(repository, backup, &claim, has_claim, "no restore needs it", findings).await;
    // Deleting it ends the hold, so that only one that is there can be damaged.
    if let Some(hold) = there.get("hold.json") {
        let consequence = "no restore needs it; the backup stays held until it is released";
        small_object(repository, backup, &hold.key, true, consequence, findings).await;
    }
}

/// An object of a few lines of JSON that names its backup. Nothing is lost with it, but a store that has damaged it may
/// damage others.
async fn small_object(
    repository: &ClusterRepository,
    backup: &Backup,
    key: &ObjectKey,
    is_there: bool,
    consequence: &str,
    findings: &mut Findings,
) {
    let fault = |reason: String, damaged| Fault {
        backup: Some(backup.id.clone()),
        object: key.to_string(),
        reason,
        consequence: consequence.to_owned(),
        damaged,
    };
    if !is_there {
        return findings.add(fault("it is missing".to_owned(), true));
    }
    match repository.store().read(key, SMALL_LIMIT).await {
        Ok(bytes) => {
            let id =
                serde_json::from_slice::<Value>(&bytes).ok().and_then(|json| Some(json["id"].as_str()?.to_owned()));
            match id {
                Some(id) if id == backup.id.to_string() => {}
                Some(id) => findings.add(fault(format!("it names {id}, not the backup it is stored with"), true)),
                None => findings.add(fault("it is no JSON object that names its backup".to_owned(), true)),
            }
        }
        // It was deleted since it was listed, as a hold may be at any time.
        Err(RepositoryError::NotFound { .. }) => {}
        Err(error) => findings.add(fault(super::reason(&error), super::tells_of_damage(&error))),
    }
}
