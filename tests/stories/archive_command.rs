//! What the archive command takes and what it refuses, with files of a real server.

use std::fs;
use std::path::PathBuf;

use harness::{PostgresServer, ProtectedCluster};

struct Archive {
    cluster: ProtectedCluster,
    /// A segment that is stored, by its name, and its bytes.
    name: String,
    bytes: Vec<u8>,
}

fn archive() -> Archive {
    let cluster = ProtectedCluster::builder().server(|server| server.setting("wal_keep_size", "1GB")).start();
    cluster.server().psql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 10000) n");
    cluster.archive_all();
    let stored = cluster.archived_segments(1)[0].clone();
    let name = stored.file_name().unwrap().to_str().unwrap().trim_end_matches(".zst").to_owned();
    let bytes = fs::read(cluster.server().data_dir().join("pg_wal").join(&name)).unwrap();
    cluster.dir().create_dir("elsewhere");
    Archive { cluster, name, bytes }
}

impl Archive {
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        self.cluster.dir().write(&format!("elsewhere/{name}"), bytes)
    }

    /// The command must fail in one line with these words, by an ordinary exit code, and change nothing.
    fn refuses(&self, path: &PathBuf, words: &str) {
        let before = self.objects();
        let refused = self.cluster.archive_command().arg(path).run();
        assert!(matches!(refused.code, Some(1..=125)), "{path:?}: {:?} {:?}", refused.code, refused.signal);
        assert_eq!(refused.stderr.lines().count(), 1, "{path:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{path:?}: no {words:?} in {}", refused.stderr);
        assert_eq!(self.objects(), before, "{path:?} was refused and changed the repository");
    }

    /// All objects with their content.
    fn objects(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut objects = Vec::new();
        let mut open = vec![self.cluster.repository_dir()];
        while let Some(folder) = open.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() { open.push(path) } else { objects.push((path.clone(), fs::read(path).unwrap())) }
            }
        }
        objects.sort();
        objects
    }
}

#[test]
fn b20_names_that_no_server_gives() {
    let archive = archive();
    let lower = archive.name.to_lowercase().replace('0', "a");
    for name in
        ["garbage", &lower, "00000001000000000000000", "0000000100000000000000011", "00000001.HISTORY", "x.partial"]
    {
        let path = archive.write(name, &archive.bytes);
        archive.refuses(&path, "not one that PostgreSQL archives");
    }
    archive.cluster.archive_command().arg("").fail_with(2);
    archive.cluster.archive_command().fail_with(2);
    archive.refuses(&archive.cluster.dir().join("elsewhere/.."), "");
    archive.refuses(&archive.cluster.dir().join(format!("elsewhere/{}", archive.name)), "cannot read");
    archive.refuses(&archive.cluster.dir().join("elsewhere"), "not one that PostgreSQL archives");
}

/// The magic is the one that development versions of PostgreSQL 19 had.
#[test]
fn b21_a_segment_of_a_newer_postgresql() {
    let archive = archive();
    let mut newer = archive.bytes.clone();
    newer[..2].copy_from_slice(&0xD120u16.to_le_bytes());
    archive
        .refuses(&archive.write(&archive.name, &newer), "newer than PostgreSQL 18, the newest that this pgark knows");
}

#[test]
fn b21_b22_segments_that_are_not_what_their_name_says() {
    let archive = archive();
    let Archive { name, bytes, .. } = &archive;
    let not_the_segment = "not the WAL segment that its name says";
    archive.refuses(&archive.write(name, &[]), not_the_segment);
    archive.refuses(&archive.write(name, &bytes[..bytes.len() / 2]), not_the_segment);
    archive.refuses(&archive.write(name, &[bytes.as_slice(), &[0; 8192]].concat()), not_the_segment);
    let mut zero_page = bytes.clone();
    zero_page[..8192].fill(0);
    archive.refuses(&archive.write(name, &zero_page), not_the_segment);
    // A recycled file holds an older position under its new name.
    let next = name[..23].to_owned() + "9";
    archive.refuses(&archive.write(&next, bytes), not_the_segment);
    let later_timeline = format!("00000000{}", &name[8..]);
    archive.refuses(&archive.write(&later_timeline, bytes), "");
}

#[test]
fn the_same_file_again_is_a_success_and_another_one_is_not() {
    let archive = archive();
    let Archive { cluster, name, bytes } = &archive;
    let before = archive.objects();
    cluster.archive_command().arg(format!("pg_wal/{name}")).succeed();
    cluster.archive_command().arg(archive.write(name, bytes)).succeed();
    assert_eq!(archive.objects(), before);
    let mut other = bytes.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    archive.refuses(&archive.write(name, &other), name);
}

#[test]
fn b19_partial_history_and_backup_files_are_kept_as_they_are() {
    let archive = archive();
    let Archive { cluster, name, bytes } = &archive;
    let data_dir = cluster.server().data_dir();
    let wal = cluster.cluster_dir().join("wal");
    let history = "1\t0/1800000\tno recovery target specified\n";
    let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n";
    let files = [
        (format!("{name}.partial"), bytes.as_slice(), format!("00000001/00000000/{name}.partial")),
        ("00000002.history".to_owned(), history.as_bytes(), "00000002.history".to_owned()),
        (format!("{name}.00000028.backup"), label.as_bytes(), format!("00000001/00000000/{name}.00000028.backup")),
    ];
    for (file, content, _) in &files {
        let path = data_dir.join("pg_wal").join(file);
        fs::write(&path, content).unwrap();
        cluster.archive_command().arg(format!("pg_wal/{file}")).succeed();
        cluster.archive_command().arg(format!("pg_wal/{file}")).succeed();
        let mut other = content.to_vec();
        let last = other.len() - 2;
        other[last] ^= 1;
        fs::write(&path, other).unwrap();
        let before = archive.objects();
        let refused = cluster.archive_command().arg(format!("pg_wal/{file}")).fail_with(1);
        assert!(refused.stderr.contains(file), "{}", refused.stderr);
        assert_eq!(archive.objects(), before);
        fs::remove_file(path).unwrap();
    }
    let stored: Vec<String> = archive.objects().iter().map(|(path, _)| path.display().to_string()).collect();
    for (_, _, place) in &files {
        let place = wal.join(place).display().to_string();
        assert!(stored.iter().any(|path| path.starts_with(&place)), "{place} is not in {stored:#?}");
    }
    // The whole segment beside its partial is still the whole one.
    let fetched = cluster.dir().join("fetched");
    let fetch = cluster.restore().args(["wal", name]).arg(&fetched);
    fetch.args(["--system-identifier", wal.parent().unwrap().file_name().unwrap().to_str().unwrap()]).succeed();
    assert!(fs::read(fetched).unwrap() == *bytes);
}

#[test]
fn two_clusters_with_one_name_do_not_mix() {
    let archive = archive();
    let cluster = &archive.cluster;
    cluster.backup();
    let mut other = PostgresServer::builder().own_identity().create();
    let config = fs::read_to_string(cluster.config()).unwrap();
    let config = config.replace(&cluster.server().connection_string(), &other.connection_string());
    let config = cluster.dir().write("other.toml", config);
    other.start();
    other.psql("CREATE TABLE other AS SELECT 1 AS n");
    other.psql("SELECT pg_switch_wal()");
    // A segment with a name that is there already, from a cluster of the same name in the configuration.
    let send = harness::Program::archive_command().config(&config).as_test_user().current_dir(other.data_dir());
    send.arg(format!("pg_wal/{}", archive.name)).succeed();
    harness::Program::agent().config(&config).args(["--quiet", "backup"]).as_test_user().succeed();
    let systems = fs::read_dir(cluster.cluster_dir().parent().unwrap()).unwrap().count();
    assert_eq!(systems, 2);
    let listed = cluster.restore().arg("list").succeed().stdout;
    assert!(listed.contains("also stored: system"), "{listed}");
    // Whoever knows the number gets the right one.
    let identifier = cluster.cluster_dir().file_name().unwrap().to_str().unwrap().to_owned();
    let arguments = ["--system-identifier", &identifier, "--target-immediate", "--target-action", "promote"];
    let mut restored = cluster.restore_and_start("restored", &arguments);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "10000");
}
