//! `verify`: says ok of what is whole, and finds and names whatever was done to a stored object.

use serde_json::Value;

use crate::damage::cluster::{DamagedCluster, Stored};
use crate::damage::injury::Injury;

fn verify(cluster: &DamagedCluster, repository: &str, arguments: &[&str]) -> (i32, Value, String) {
    let program = cluster.site.restore().args(["--repository", repository, "verify", "--json"]).args(arguments);
    let outcome = program.run();
    let code = outcome.code.unwrap_or_else(|| panic!("died: {}", outcome.stderr));
    (code, serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null), outcome.stderr)
}

fn injuries(stored: &Stored, other: Vec<u8>) -> Vec<Injury> {
    let middle = stored.bytes.len() / 2;
    vec![Injury::Flip(middle), Injury::Cut(middle), Injury::Delete, Injury::Extend, Injury::Swap(other)]
}

/// The names of the objects with faults.
fn named(report: &Value) -> Vec<String> {
    let faults = report["faults"].as_array().cloned().unwrap_or_default();
    faults.iter().map(|fault| fault["object"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn c13_every_injury_of_a_plain_backup_is_found_and_named() {
    injured_backups("plain");
}

#[test]
fn c13_c16_every_injury_of_an_encrypted_backup_is_found_and_named() {
    injured_backups("sealed");
}

fn injured_backups(repository: &str) {
    let cluster = DamagedCluster::start();
    let (old, new) = (cluster.old_backup.clone(), cluster.new_backup.clone());
    for arguments in [&[][..], &["--quick"]] {
        let (code, report, said) = verify(&cluster, repository, arguments);
        assert_eq!((code, named(&report).len()), (0, 0), "{report} {said}");
        assert_eq!(report["backups"].as_array().unwrap().len(), 2);
        assert_eq!(report["files"].as_u64() > Some(1000), arguments.is_empty(), "{report}");
        assert_eq!(report["segments"].as_u64() > Some(3), arguments.is_empty(), "{report}");
    }
    for object in ["parts/000001.tar", "parts/000002.tar", "backup_manifest", "index.jsonl"] {
        let stored = cluster.object_of_backup(repository, &old, object);
        for injury in injuries(&stored, cluster.object_of_backup(repository, &new, object).bytes) {
            for arguments in [&[][..], &["--quick"]] {
                let (code, report, said) = injury.with(&stored, || verify(&cluster, repository, arguments));
                let what = format!("{repository} {object} {injury} {arguments:?}: {report} {said}");
                assert_eq!(code, 4, "{what}");
                assert!(named(&report).iter().any(|name| name.ends_with(&stored.shown)), "{what}");
                assert!(report["faults"].as_array().unwrap().iter().all(|fault| fault["backup"] == *old), "{what}");
            }
        }
    }
    // Two at once: both are named.
    let parts = ["parts/000001.tar", "parts/000002.tar"].map(|part| cluster.object_of_backup(repository, &old, part));
    let (code, report, _) =
        Injury::Flip(9).with(&parts[0], || Injury::Delete.with(&parts[1], || verify(&cluster, repository, &[&old])));
    assert_eq!((code, named(&report).len()), (4, 2), "{report}");
    // A damaged mark stops everything, since nobody knows which backup it was.
    let mark = cluster.object_of_backup(repository, &old, "backup.json");
    let (code, _, said) = Injury::Flip(50).with(&mark, || verify(&cluster, repository, &[]));
    assert!(code == 4 && said.contains(&old), "{code} {said}");
}

#[test]
fn c13_b21_every_injury_of_the_wal_is_found_and_named() {
    let cluster = DamagedCluster::start();
    for repository in ["plain", "sealed"] {
        let [first, second] = cluster.segments.clone();
        for (segment, other) in [(&first, &second), (&second, &first)] {
            let stored = cluster.wal_object(repository, segment);
            for injury in injuries(&stored, cluster.wal_object(repository, other).bytes) {
                if matches!(injury, Injury::Delete) {
                    // The next timeline has a copy of it, and on its own it was the last one: nobody misses it.
                    continue;
                }
                let (code, report, said) = injury.with(&stored, || verify(&cluster, repository, &[]));
                let what = format!("{repository} {segment} {injury}: {report} {said}");
                assert_eq!(code, 4, "{what}");
                assert!(named(&report).contains(segment), "{what}");
                let (code, _, _) = injury.with(&stored, || verify(&cluster, repository, &["--quick"]));
                assert_eq!(code, 0, "quick reads no WAL");
            }
        }
    }
}

#[test]
fn without_a_key_only_what_is_stored_is_verified_and_an_unknown_id_is_refused() {
    let cluster = DamagedCluster::start();
    let config = std::fs::read_to_string(cluster.site.config()).unwrap();
    let without_key: String =
        config.lines().filter(|line| !line.contains("identity_file")).map(|l| format!("{l}\n")).collect();
    let config = cluster.site.dir().write("without-key.toml", without_key);
    let program = || harness::Program::restore().config(&config).args(["--repository", "sealed", "verify"]);
    program().arg("--quick").succeed();
    let refused = program().fail_with(2);
    assert!(refused.stderr.contains("set identity_file"), "{}", refused.stderr);
    let listed = harness::Program::restore().config(&config).args(["--repository", "sealed", "list"]).succeed();
    assert!(listed.stdout.contains(&cluster.new_backup), "{}", listed.stdout);
    let refused = program().args(["--quick", "20200101T000000Z-full"]).fail_with(3);
    assert!(refused.stderr.contains("there is no finished backup"), "{}", refused.stderr);
    let shown = cluster.site.restore().args(["--repository", "plain", "verify"]).succeed().stdout;
    assert_eq!(shown.matches("  ok\n").count(), 2, "{shown}");
}
