//! Whether the store lists each object of a backup with its size. One listing a backup, so this is done for all of them, however little is read.

use std::collections::BTreeMap;

use pgark_repository::{Backup, BackupObject, ClusterRepository, ListedObject, ObjectKey, RepositoryError};
use serde_json::Value;

use super::{Fault, Findings};

/// More than any claim or hold has.
const SMALL_LIMIT: u64 = 1 << 20;

/// Compares what there has to be with what the store lists, and looks at the claim and the hold.
pub(super) async fn compare(
    repository: &ClusterRepository,
    backup: &Backup,
    objects: &[BackupObject],
    findings: &mut Findings,
) {
    let folder = repository.keys().backup_folder(&backup.id);
    let listed = match repository.store().list(&folder).await {
        Ok(listed) => listed,
        Err(error) => return findings.add(Fault::of_backup(backup, &folder, &error)),
    };
    let mut there: BTreeMap<String, ListedObject> =
        listed.into_iter().map(|listed| (listed.key.name_in(&folder).to_owned(), listed)).collect();
    for object in objects {
        let reason = match there.remove(&object.name) {
            Some(listed) if listed.size == object.size => continue,
            Some(listed) => format!("its size is {}, backup.json says {}", listed.size, object.size),
            None => "it is missing".to_owned(),
        };
        findings.add(Fault::damage(backup, &object.key, reason));
    }
    let claim = repository.keys().started(&backup.id);
    let has_claim = there.contains_key(claim.name_in(&folder));
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
