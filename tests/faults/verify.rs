//! `verify`: says ok of what is whole, and finds and names whatever was done to a stored object.

use std::fs;
use std::time::{Duration, SystemTime};

use harness::TestUser;
use pgark_repository::{PreparedPiece, Repository, RepositoryOptions, WalCompressor, WalPiece};
use serde_json::Value;

use crate::damage::cluster::{DamagedCluster, Stored};
use crate::damage::injury::Injury;
use crate::site::{PUBLIC_KEY, Site};

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
    for object in ["parts/000001.tar", "parts/000002.tar", "backup_manifest", "index.jsonl", "included/000001.tar"] {
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
    // A claim and a hold are not needed by any restore, and named all the same.
    for object in ["started.json", "hold.json"] {
        let stored = cluster.object_of_backup(repository, &old, object);
        let id = String::from_utf8_lossy(&stored.bytes).find(&old).unwrap();
        let mut all = injuries(&stored, cluster.object_of_backup(repository, &new, object).bytes);
        all[0] = Injury::Flip(id + 3);
        // A hold that is gone has been released.
        all.retain(|injury| object != "hold.json" || !matches!(injury, Injury::Delete));
        for injury in all {
            let (code, report, said) = injury.with(&stored, || verify(&cluster, repository, &["--quick"]));
            assert_eq!((code, named(&report).len()), (4, 1), "{object} {injury}: {report} {said}");
            assert!(named(&report)[0].ends_with(object), "{report}");
            assert!(
                report["faults"][0]["consequence"].as_str().unwrap().starts_with("no restore needs it"),
                "{report}"
            );
        }
    }
    marks(&cluster, repository);
}

/// A commit mark that is damaged, another backup's or of a newer format takes its own backup away and nothing else.
fn marks(cluster: &DamagedCluster, repository: &str) {
    let (old, new) = (&cluster.old_backup, &cluster.new_backup);
    let mark = cluster.object_of_backup(repository, old, "backup.json");
    let newer = String::from_utf8(mark.bytes.clone()).unwrap().replacen("\"format\": 1", "\"format\": 2", 1);
    let mut all = injuries(&mark, cluster.object_of_backup(repository, new, "backup.json").bytes);
    // Without its mark a backup does not exist: it is shown as not finished.
    all.retain(|injury| !matches!(injury, Injury::Delete));
    all.push(Injury::Swap(newer.into_bytes()));
    for injury in all {
        injury.with(&mark, || {
            let (code, report, said) = verify(cluster, repository, &["--quick"]);
            let what = format!("{repository} backup.json {injury}: {report} {said}");
            assert_eq!(code, 4, "{what}");
            assert_eq!(named(&report).len(), 1, "{what}");
            assert!(named(&report)[0].ends_with(&format!("{old}/backup.json")), "{what}");
            assert_eq!(report["backups"], serde_json::json!([new]), "{what}");
            let listed = cluster.site.restore().args(["--repository", repository, "list"]).succeed().stdout;
            assert!(listed.contains(&format!("{old}  CANNOT BE USED: ")) && listed.contains(new), "{listed}");
            assert!(matches!(cluster.base(repository, old).code, Some(2 | 4)), "{what}");
            cluster.forget_restored();
        });
    }
}

#[test]
fn c13_every_injury_of_a_history_and_of_a_piece_is_found_and_named() {
    let cluster = DamagedCluster::start();
    for repository in ["plain", "sealed"] {
        let segment = store_pieces(&cluster, repository);
        assert_eq!(verify(&cluster, repository, &[]).0, 0);
        let history = |number| cluster.wal_object(repository, &format!("0000000{number}.history"));
        let piece = |range: &str| cluster.wal_object(repository, &format!("{segment}.partial/{range}"));
        for (stored, other) in [
            (history(2), history(3)),
            (history(3), history(2)),
            (piece("00000000-"), piece("00010000-")),
            (piece("00010000-"), piece("00000000-")),
        ] {
            let is_last_piece = stored.shown.starts_with("00010000-");
            for injury in injuries(&stored, other.bytes) {
                if is_last_piece && matches!(injury, Injury::Delete) {
                    // Nothing tells that there was more.
                    continue;
                }
                let (code, report, said) = injury.with(&stored, || verify(&cluster, repository, &[]));
                let what = format!("{repository} {} {injury}: {report} {said}", stored.shown);
                assert_eq!(code, 4, "{what}");
                // What is not there has no name of its own; pieces that do not go on are a fault of their segment.
                let name = if stored.shown.ends_with(".history") || stored.shown.ends_with(".history.age") {
                    stored.shown.trim_end_matches(".age")
                } else {
                    segment.as_str()
                };
                assert!(named(&report).iter().any(|named| named.contains(name)), "{what}");
            }
        }
    }
}

#[test]
fn a37_the_lost_end_of_a_timeline_that_was_left_is_named() {
    let cluster = DamagedCluster::start();
    let [_, last] = &cluster.segments;
    let stored = cluster.wal_object("plain", last);
    let listed = Injury::Delete.with(&stored, || {
        let (code, report, said) = verify(&cluster, "plain", &["--quick"]);
        assert_eq!(code, 4, "{report} {said}");
        let faults = report["faults"].as_array().unwrap();
        assert!(faults.iter().all(|fault| fault["object"] == **last), "{report}");
        // Nothing else is archived of this timeline: that there was more, its successor's history knows.
        let known_from_history = |reason: &str| reason.contains("only at");
        assert!(faults.iter().any(|fault| known_from_history(fault["reason"].as_str().unwrap())), "{report}");
        cluster.site.restore().args(["--repository", "plain", "list"]).succeed().stdout
    });
    assert!(listed.contains(&format!("{last} is missing")), "{listed}");
}

/// Behind a backup that is kept for itself WAL is missing since nobody wants it; `verify` must not take a loss for that.
#[test]
fn d11_a_segment_that_is_lost_behind_a_backups_own_wal_is_told_from_expired_ones() {
    let site = Site::start();
    site.backup();
    site.archive_segment();
    let second = site.backup();
    let lost = site.archive_segment();
    site.archive_segment();
    site.backup();
    // Behind what was stored in the last minute, what is missing may still come.
    for name in site.files().with(&["/wal/"]) {
        let file = fs::File::open(site.files().path(&name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(120)).unwrap();
    }
    let verify = || site.restore().args(["verify", "--quick"]);
    verify().succeed();

    let file = site.files().path(&site.files().one(&["/wal/", &lost]));
    let aside = site.dir().join("aside");
    fs::rename(&file, &aside).unwrap();
    for verify in [verify(), verify().arg(&second)] {
        let found = verify.fail_with(4).stdout;
        assert!(found.contains(&lost) && found.contains("it is missing"), "{found}");
    }
    fs::rename(&aside, &file).unwrap();

    site.agent().args(["hold", &second, "--reason", "audit"]).succeed();
    site.agent().env("PGARK_RETENTION_FULL", "1").arg("expire").succeed();
    assert!(!file.exists() && site.files().committed().contains(&second));
    verify().succeed();
}

/// Stores the beginning of the segment that the server is writing as two pieces; returns its name.
fn store_pieces(cluster: &DamagedCluster, repository: &str) -> String {
    let server = cluster.site.server();
    server.psql("CREATE TABLE IF NOT EXISTS pieces (i int); INSERT INTO pieces SELECT generate_series(1, 5000)");
    let name = server.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let raw = fs::read(server.data_dir().join("pg_wal").join(&name)).unwrap();
    let recipients = if repository == "sealed" { vec![PUBLIC_KEY.to_owned()] } else { Vec::new() };
    let url = format!("file://{}", cluster.site.dir().join(repository).display());
    let options = RepositoryOptions { name: repository.to_owned(), url, recipients, ..RepositoryOptions::default() };
    let place = Repository::open(&options).unwrap();
    let identifier = server.psql("SELECT system_identifier FROM pg_control_system()");
    let place = place.cluster("main", identifier.parse().unwrap()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for start in [0_u32, 1 << 16] {
        let range = WalPiece { start, end: start + (1 << 16) };
        let piece =
            PreparedPiece::read(&WalCompressor::new(1, 1), name.parse().unwrap(), range, &raw[start as usize..]);
        runtime.block_on(place.store_wal_piece(&piece.unwrap())).unwrap();
    }
    TestUser::get().own_all(&cluster.site.dir().join(repository));
    name
}

#[test]
fn b24_damaged_pages_of_the_source_are_found_and_named() {
    let mut site = Site::start_server(|server| server.data_checksums(true));
    site.server().psql("CREATE TABLE t AS SELECT i FROM generate_series(1, 5000) i");
    let path = site.server().psql("SELECT pg_relation_filepath('t')");
    let file = site.server().data_dir().join(&path);
    site.server_mut().stop_fast();
    let mut bytes = fs::read(&file).unwrap();
    // One bit in a row of the third page.
    bytes[3 * 8192 - 20] ^= 4;
    fs::write(&file, bytes).unwrap();
    site.server_mut().start();
    site.start_backup().fail_with(5);
    let outcome = site.restore().args(["verify", "--json"]).fail_with(4);
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let [fault] = report["faults"].as_array().unwrap().as_slice() else { panic!("{report}") };
    let reason = fault["reason"].as_str().unwrap();
    assert!(reason.starts_with(&format!("`{path}` has 1 pages with a wrong checksum, block 2 first")), "{reason}");
    site.restore().args(["verify", "--quick"]).succeed();
    // A sound backup of a busy server is found sound, with all its pages.
    site.server().psql("DROP TABLE t");
    site.server().init_pgbench(2);
    let bench = site.server().start_pgbench(2);
    let id = site.backup();
    bench.stop_anyhow();
    site.archive_all();
    site.restore().args(["verify", &id]).succeed();
}

#[test]
fn night_after_night_a_sample_reads_everything() {
    let site = Site::start();
    for number in 0..6 {
        site.fill(&format!("t{number}"), 10);
    }
    site.backup();
    site.archive_segment();
    let run = |arguments: &[&str]| {
        let outcome = site.restore().args(["verify", "--json"]).args(arguments).succeed();
        serde_json::from_str::<Value>(&outcome.stdout).unwrap()
    };
    let stored = run(&["--sample", "0"])["sample"]["of_stored_bytes"].as_u64().unwrap();
    let mut read = 0;
    let mut nights = 0;
    let mut oldest = run(&["--sample", "0"])["sample"]["oldest_read"].clone();
    let first = oldest.clone();
    while oldest == first {
        let report = run(&["--sample", "30"]);
        let bytes = report["stored_bytes"].as_u64().unwrap();
        assert!(bytes < stored, "{report}");
        read += bytes;
        nights += 1;
        oldest = report["sample"]["oldest_read"].clone();
        assert!(nights < 10, "{report}");
    }
    // Everything was read once, and nothing much more often.
    assert!(read >= stored && read < 2 * stored, "{read} of {stored} in {nights} nights");
    let shown = site.restore().args(["verify", "--sample", "1", "--quick"]).succeed().stdout;
    assert!(shown.contains("everything was read or stored at"), "{shown}");
    let listed = site.restore().arg("list").succeed().stdout;
    assert!(listed.contains(" quick"), "{listed}");
    site.restore().args(["verify", "--sample", "101"]).fail_with(2);
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
    let config = fs::read_to_string(cluster.site.config()).unwrap();
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
