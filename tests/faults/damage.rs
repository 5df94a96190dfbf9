//! C13, C16, C18, D10, F12: the damage matrix. Every kind of stored object, plain, encrypted and on S3, is flipped, cut,
//! emptied, extended, deleted and swapped with another of its kind. A restore may then refuse, with the object's name, or
//! succeed with the right bytes; it may never succeed with others, and what a refused one leaves cannot be started.

pub(crate) mod cluster;
pub(crate) mod injury;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{Outcome, PostgresServer};

use self::cluster::{DamagedCluster, REPOSITORIES, Stored};
use self::injury::{Injury, cuts, flips};
use crate::site::assert_one_clear_line;

/// How often which outcome was seen, by repository, object and injury.
#[derive(Default)]
struct Tally(BTreeMap<String, BTreeMap<&'static str, u32>>);

impl Tally {
    fn count(&mut self, repository: &str, object: &str, injury: &Injury, outcome: &'static str) {
        let row = format!("{repository:<7} {object:<24} {}", injury.kind());
        *self.0.entry(row).or_default().entry(outcome).or_default() += 1;
    }

    fn print(&self) {
        for (row, outcomes) in &self.0 {
            let outcomes: Vec<_> = outcomes.iter().map(|(outcome, count)| format!("{outcome}: {count}")).collect();
            println!("{row:<48} {}", outcomes.join(", "));
        }
        println!("{} cases", self.0.values().flat_map(BTreeMap::values).sum::<u32>());
    }
}

#[test]
fn c13_f12_no_damaged_backup_of_a_plain_repository_is_restored() {
    backups("plain", 4, 8);
}

#[test]
fn c13_c16_no_damaged_backup_of_an_encrypted_repository_is_restored() {
    backups("sealed", 4, 8);
}

#[test]
fn c13_no_damaged_backup_of_an_s3_repository_is_restored() {
    backups("s3", 2, 4);
}

#[test]
#[ignore = "long: make soak"]
fn soak_c13_c16_f12_no_damaged_backup_is_restored() {
    for repository in REPOSITORIES {
        backups(repository, 60, 10_000);
    }
}

/// `positions` bytes of every object are flipped; of the commit mark, which is text, `mark_positions`.
fn backups(repository: &str, positions: usize, mark_positions: usize) {
    let cluster = DamagedCluster::start();
    let reference = cluster.reference(repository);
    let mut tally = Tally::default();
    let mut faults = Vec::new();
    let (old, new) = (&cluster.old_backup, &cluster.new_backup);
    let mut objects = vec![("parts/000001.tar", "parts/000002.tar"), ("parts/000002.tar", "parts/000001.tar")];
    objects.extend([("backup_manifest", ""), ("index.jsonl", ""), ("included/000001.tar", ""), ("backup.json", "")]);
    for (object, sibling) in objects {
        let stored = cluster.object_of_backup(repository, old, object);
        let is_mark = object == "backup.json";
        let mut injuries = flips(stored.bytes.len(), if is_mark { mark_positions } else { positions });
        injuries.extend(cuts(stored.bytes.len()));
        injuries.push(Injury::Swap(cluster.object_of_backup(repository, new, object).bytes));
        if !sibling.is_empty() {
            injuries.push(Injury::Swap(cluster.object_of_backup(repository, old, sibling).bytes));
        }
        for injury in injuries {
            let outcome = injury.with(&stored, || cluster.base(repository, old));
            match judge_base(&cluster, &outcome, &stored, &injury, &reference) {
                Ok(verdict) => tally.count(repository, object, &injury, verdict),
                Err(fault) => faults.push(format!("{repository} {object} {injury}: {fault}")),
            }
            cluster.forget_restored();
        }
    }
    // After all of it the backup is as it was.
    assert_eq!(cluster.base(repository, old).code, Some(0));
    cluster.forget_restored();
    tally.print();
    assert!(faults.is_empty(), "{} cases went wrong:\n{}", faults.len(), faults.join("\n"));
}

/// What an attempt to restore came to, or what is wrong with that.
fn judge_base(
    cluster: &DamagedCluster,
    outcome: &Outcome,
    stored: &Stored,
    injury: &Injury,
    reference: &Path,
) -> Result<&'static str, String> {
    let is_mark = stored.shown == "backup.json";
    let restored = cluster.restored();
    if outcome.code == Some(0) {
        // Not every bit counts: zstd's frames say how much memory they need, for one.
        let included = configuration_differences(cluster);
        return match format!("{}{included}", differences(reference, &restored)).as_str() {
            "" => Ok("right bytes"),
            differences => Err(format!("it was restored with exit 0, and differs: {differences}")),
        };
    }
    if restored.join("global/pg_control").exists() {
        return Err("what it left can be started".to_owned());
    }
    let line = assert_one_clear_line(outcome);
    // Without its mark a backup does not exist; then it is named itself.
    if !(line.contains(&stored.shown) || is_mark && line.contains(&cluster.old_backup)) {
        return Err(format!("the message does not name it: {line}"));
    }
    match (outcome.code, injury) {
        (Some(4), _) => Ok("damaged (4)"),
        (Some(3), Injury::Delete) => Ok("missing (3)"),
        // A digit of the format's number has grown.
        (Some(2), _) if is_mark && line.contains("newer pgark") => Ok("newer format (2)"),
        (code, _) => Err(format!("exit {code:?}: {line}")),
    }
}

/// How the included directory differs from the original; the old backup was taken before it was changed.
fn configuration_differences(cluster: &DamagedCluster) -> String {
    let original = cluster.site.dir().join("configuration").join("postgresql.conf");
    let restored = cluster.included().join(original.strip_prefix("/").unwrap());
    match fs::read(restored) {
        Ok(found) if found == b"port = 5432\n".repeat(100) => String::new(),
        other => format!("{other:?}"),
    }
}

fn differences(one: &Path, other: &Path) -> String {
    let output = Command::new("diff").args(["-rq", "--no-dereference"]).args([one, other]).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn c13_c16_b21_no_damaged_wal_is_fetched() {
    wal(8);
}

#[test]
#[ignore = "long: make soak"]
fn soak_c13_c16_b21_no_damaged_wal_is_fetched() {
    wal(400);
}

fn wal(positions: usize) {
    let cluster = DamagedCluster::start();
    let mut tally = Tally::default();
    let mut faults = Vec::new();
    for repository in REPOSITORIES {
        let [first, second] = &cluster.segments;
        for (name, other) in [
            (first.as_str(), second.as_str()),
            ("00000002.history", "00000003.history"),
            ("00000003.history", "00000002.history"),
        ] {
            let stored = cluster.wal_object(repository, name);
            let mut injuries = flips(stored.bytes.len(), positions);
            injuries.extend(cuts(stored.bytes.len()));
            injuries.push(Injury::Swap(cluster.wal_object(repository, other).bytes));
            let right = cluster.fetched(repository, name);
            for injury in injuries {
                let outcome = injury.with(&stored, || cluster.wal(repository, name));
                let destination = cluster.destination();
                let verdict = match outcome.code {
                    Some(0) if fs::read(&destination).is_ok_and(|found| found == right) => Ok("right bytes"),
                    Some(0) => Err("it was fetched with exit 0, and differs".to_owned()),
                    _ if destination.exists() => Err("a file was left".to_owned()),
                    Some(1) if matches!(injury, Injury::Delete) => Ok("absent (1)"),
                    Some(126..) if outcome.stderr.contains(name) => Ok("damaged (above 125)"),
                    code => Err(format!("exit {code:?}: {}", outcome.stderr)),
                };
                match verdict {
                    Ok(verdict) => tally.count(repository, name, &injury, verdict),
                    Err(fault) => faults.push(format!("{repository} {name} {injury}: {fault}")),
                }
                drop(fs::remove_file(destination));
            }
        }
    }
    tally.print();
    assert!(faults.is_empty(), "{} cases went wrong:\n{}", faults.len(), faults.join("\n"));
}

/// The whole way: a server in recovery meets a damaged segment, stops instead of ending recovery early, and goes on to
/// the end once the segment is whole again.
#[test]
fn d08_d10_a_server_in_recovery_stops_at_a_damaged_segment_and_goes_on_later() {
    let cluster = DamagedCluster::start();
    for repository in REPOSITORIES {
        for (what, injuries) in [
            ("flipped", flips(1 << 10, 1)),
            ("emptied", vec![Injury::Cut(0)]),
            ("swapped", vec![Injury::Swap(cluster.wal_object(repository, &cluster.segments[0]).bytes)]),
        ] {
            let stored = cluster.wal_object(repository, &cluster.segments[1]);
            let directory = cluster.restored();
            let base = cluster.site.restore().args([
                "--repository",
                repository,
                "base",
                "--backup",
                &cluster.old_backup,
                "--to",
            ]);
            base.arg(&directory).succeed();
            injuries[0].with(&stored, || {
                let mut server = PostgresServer::start_restored(&directory, 15);
                let status = server.wait_until_ended();
                let log = server.log();
                assert!(!status.success(), "{repository} {what}: the server ended well:\n{log}");
                assert!(
                    !log.contains("archive recovery complete"),
                    "{repository} {what}: recovery ended early:\n{log}"
                );
                assert!(
                    log.contains(&cluster.segments[1]),
                    "{repository} {what}: the log does not name the object:\n{log}"
                );
            });
            let mut server = PostgresServer::start_restored(&directory, 15);
            server.wait_until_promoted();
            assert_eq!(server.psql("SELECT count(*) FROM t"), cluster.rows, "{repository} {what}");
            drop(server);
            cluster.forget_restored();
        }
    }
}
