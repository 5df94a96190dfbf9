//! What a repository allows, found by trying; whether what is stored can be read by somebody; and whether there is a
//! backup.

use jiff::{SignedDuration, Timestamp};
use pgark_command::{RepositoryConfiguration, Scheme, format_duration};
use pgark_repository::{ClusterRepository, Creation, Identities, Probe, Repository, RepositoryError, probe};

use super::finding::Findings;
use super::server::compare_clocks;

/// A cluster that was not backed up for longer has a broken timer.
const OLD_BACKUP: SignedDuration = SignedDuration::from_hours(8 * 24);

pub(super) async fn check(repository: &Repository, cluster: &str, findings: &mut Findings) {
    let name = repository.name();
    let probe = probe(repository, cluster).await;
    match &probe.create {
        Ok(Creation::Created | Creation::Identical) => {}
        Ok(Creation::Different) => {
            return findings.failure(
                "repository",
                format!("`{name}`: {} has other content than pgark-agent check gives it", probe.key),
                format!("delete {} from the repository, and find out who writes there", probe.key),
            );
        }
        Err(error) => return refused(name, "create objects", error, findings),
    }
    check_condition(name, &probe, findings);
    match &probe.read {
        Some(Ok(true)) => findings.ok("repository", format!("`{name}`: what was created reads as it was written")),
        Some(Ok(false)) => findings.failure(
            "repository",
            format!("`{name}`: {} does not read as it was written", probe.key),
            "use another store: this one loses or changes what it is given",
        ),
        Some(Err(RepositoryError::Denied { .. })) => findings.warning(
            "repository",
            format!("`{name}`: may not read"),
            "allow reading: a create whose answer was lost is settled by comparing what is there",
        ),
        Some(Err(error)) => refused(name, "read", error, findings),
        None => {}
    }
    match &probe.list {
        Some(Ok(true)) => {}
        Some(Ok(false)) => findings.failure(
            "repository",
            format!("`{name}`: a listing does not name what was just created"),
            "use a store whose listings are complete",
        ),
        Some(Err(error)) => refused(name, "list", error, findings),
        None => {}
    }
    match &probe.delete {
        Some(Err(_)) => findings.ok(
            "repository",
            format!("`{name}`: may not delete, so {} stays; expire has to run with other rights", probe.key),
        ),
        _ => findings.ok("repository", format!("`{name}`: may create, list and delete")),
    }
    if let Some(created_at) = probe.created_at.and_then(|at| Timestamp::from_microsecond(at).ok()) {
        compare_clocks(&format!("the repository `{name}`"), created_at, Timestamp::now(), findings);
    }
}

fn check_condition(name: &str, probe: &Probe, findings: &mut Findings) {
    match &probe.create_again {
        Some(Ok(Creation::Different)) => {
            findings.ok("conditional_create", format!("`{name}` refuses to replace an object"));
        }
        // It was refused, and what is there could not be looked at.
        Some(Err(RepositoryError::Denied { operation, .. })) if *operation != "create" => {
            findings.ok("conditional_create", format!("`{name}` refuses to replace an object"));
        }
        Some(Ok(_)) => findings.failure(
            "conditional_create",
            format!(
                "`{name}` replaced an object that was there: it ignores If-None-Match, so two writers could overwrite \
                 each other's backups and WAL"
            ),
            "use a store with conditional writes, or a newer version of this one",
        ),
        Some(Err(error)) => refused(name, "create an object a second time", error, findings),
        None => {}
    }
}

fn refused(name: &str, what: &str, error: &RepositoryError, findings: &mut Findings) {
    let mut message = format!("`{name}`: cannot {what}: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    let mend = match error {
        RepositoryError::Io { path, .. } => {
            format!("let the user that runs pgark write there, as in: chown -R postgres {path}")
        }
        RepositoryError::Denied { .. } => {
            "check the credentials, what they allow (put, get, list), and the clock of this machine".to_owned()
        }
        RepositoryError::Configuration { .. } => "create it, mount it, or correct the url".to_owned(),
        _ => "check the url and the endpoint, and whether the store can be reached from here".to_owned(),
    };
    findings.failure("repository", message, mend);
}

/// Public keys, and whether the private key is one of theirs where this host has it.
pub(super) fn check_encryption(configured: &RepositoryConfiguration, findings: &mut Findings) {
    let name = &configured.name;
    let recipients = match configured.recipients() {
        Ok(recipients) => recipients,
        Err(error) => return findings.error("encryption", error),
    };
    if recipients.is_empty() {
        let message = format!("`{name}`: what is stored is not encrypted");
        return match configured.scheme {
            Scheme::File => findings.ok("encryption", message),
            _ => findings.warning("encryption", message, "set recipients = [\"age1…\"] of a key made by age-keygen"),
        };
    }
    let own = configured.identities().ok().filter(|own| !own.is_empty()).map(|own| {
        let keys: Vec<String> = own.iter().map(|key| key.expose().to_owned()).collect();
        Identities::parse(keys.iter().map(String::as_str)).map(|keys| keys.public_keys()).unwrap_or_default()
    });
    match own {
        Some(own) if !own.iter().any(|key| recipients.contains(key)) => findings.failure(
            "encryption",
            format!("`{name}`: the configured identity opens nothing that is stored: it is for {}", own.join(", ")),
            format!("add {} to recipients, or name the right identity_file", own.join(", ")),
        ),
        Some(_) => findings.ok("encryption", format!("`{name}`: the configured identity opens what is stored")),
        None => findings.ok(
            "encryption",
            format!(
                "`{name}`: encrypted to {}; keep the private key where it survives this host",
                recipients.join(", ")
            ),
        ),
    }
}

/// Returns the stored size of the newest backup.
pub(super) async fn check_backups(place: &ClusterRepository, findings: &mut Findings) -> Option<u64> {
    let name = place.name();
    let backups = match place.backups().await {
        Ok(backups) => backups,
        Err(error) => {
            refused(name, "list the backups", &error, findings);
            return None;
        }
    };
    let Some(newest) = backups.finished.iter().max_by_key(|backup| backup.stop_time) else {
        findings.warning("backup", format!("`{name}` has no backup of this cluster"), "pgark-agent backup");
        return None;
    };
    let age = Timestamp::now().duration_since(newest.stop_time);
    let shown = format_duration(age.unsigned_abs());
    match age > OLD_BACKUP {
        true => findings.warning(
            "backup",
            format!("`{name}`: the newest backup, {}, is {shown} old", newest.id),
            "pgark-agent backup; and see why the timer does not: systemctl status pgark-backup.timer",
        ),
        false => findings.ok("backup", format!("`{name}`: the newest backup, {}, is {shown} old", newest.id)),
    }
    Some(newest.totals.stored_size)
}
