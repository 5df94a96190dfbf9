//! The whole loop in small, on every kind of repository, version and layout: rows are saved, brought back and counted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use harness::{Azurite, GcsStub, PostgresServer, ProtectedCluster, S3Server, local_repository, newest_major};

/// A table that is filled before and after a backup, dropped, and brought back as it was before the drop. `restore` are
/// options for the restore. Returns the restored server.
fn brings_a_table_back(cluster: &ProtectedCluster, restore: &[&str]) -> PostgresServer {
    let server = cluster.server();
    server.psql("CREATE TABLE loop AS SELECT n, md5(n::text) AS filler FROM generate_series(1, 1000) n");
    cluster.backup();
    server.psql("INSERT INTO loop SELECT n, md5(n::text) FROM generate_series(1001, 1234) n");
    let moment = server.psql("SELECT clock_timestamp() + '10 ms'");
    std::thread::sleep(std::time::Duration::from_millis(50));
    server.psql("DROP TABLE loop");
    cluster.archive_all();
    let mut arguments = vec!["--target-time", &moment, "--target-action", "promote"];
    arguments.extend(restore);
    let to = cluster.restore_to("brought-back", &arguments);
    server.run("pg_verifybackup", &["--no-parse-wal", &to.display().to_string()]);
    let mut restored = PostgresServer::start_restored(&to, server.major());
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*), sum(n) FROM loop"), "1234|761995");
    restored
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn on_s3() {
    let s3 = S3Server::start();
    let builder = ProtectedCluster::builder();
    let section = s3.repository(builder.dir(), "s3");
    brings_a_table_back(&builder.repository(&section).start(), &[]);
}

#[test]
fn on_azure() {
    let azurite = Azurite::start();
    let builder = ProtectedCluster::builder();
    let section = azurite.repository(builder.dir(), "azure");
    brings_a_table_back(&builder.repository(&section).start(), &[]);
}

#[test]
fn on_the_stub_of_google_cloud_storage() {
    let stub = GcsStub::start();
    let builder = ProtectedCluster::builder();
    let section = stub.repository(builder.dir(), "gcs");
    brings_a_table_back(&builder.repository(&section).start(), &[]);
    assert_eq!(stub.open_uploads(), 0);
}

#[test]
fn on_the_newest_postgresql() {
    let cluster = ProtectedCluster::builder().server(|server| server.major(newest_major())).start();
    brings_a_table_back(&cluster, &[]);
}

#[test]
fn with_segments_of_1_mb() {
    let cluster = ProtectedCluster::builder().server(|server| server.wal_segment_megabytes(1)).start();
    let restored = brings_a_table_back(&cluster, &[]);
    assert_eq!(restored.psql("SHOW wal_segment_size"), "1MB");
}

#[test]
fn with_segments_of_64_mb() {
    let cluster = ProtectedCluster::builder().server(|server| server.wal_segment_megabytes(64)).start();
    let restored = brings_a_table_back(&cluster, &[]);
    assert_eq!(restored.psql("SHOW wal_segment_size"), "64MB");
}

#[test]
#[ignore = "long: make soak"]
fn soak_a51_with_segments_of_1_gb() {
    let cluster = ProtectedCluster::builder().server(|server| server.wal_segment_megabytes(1024)).start();
    let restored = brings_a_table_back(&cluster, &[]);
    assert_eq!(restored.psql("SHOW wal_segment_size"), "1GB");
}

#[test]
fn without_checksums_of_pages_and_with_segments_of_1_mb_on_the_newest_postgresql() {
    let newest = newest_major();
    let server = ProtectedCluster::builder();
    let cluster = server.server(|server| server.major(newest).data_checksums(false).wal_segment_megabytes(1)).start();
    let restored = brings_a_table_back(&cluster, &[]);
    assert_eq!(restored.psql("SHOW data_checksums"), "off");
    assert_eq!(restored.psql("SHOW wal_segment_size"), "1MB");
}

#[test]
fn with_a_data_directory_that_the_group_may_read() {
    let mut cluster = ProtectedCluster::builder().create();
    let data_dir = cluster.server().data_dir().to_owned();
    let status = Command::new("chmod").args(["-R", "g+rX"]).arg(&data_dir).status().unwrap();
    assert!(status.success());
    cluster.server_mut().start();
    assert_eq!(cluster.server().psql("SHOW data_directory_mode"), "0750");
    let restored = brings_a_table_back(&cluster, &[]);
    assert_eq!(restored.psql("SHOW data_directory_mode"), "0750");
    let at = |name: &str| mode(&restored.data_dir().join(name));
    assert_eq!((at(""), at("base"), at("PG_VERSION"), at("global/pg_control")), (0o750, 0o750, 0o640, 0o640));
}

#[test]
fn with_a_data_directory_of_the_owner_alone() {
    let cluster = ProtectedCluster::start();
    let restored = brings_a_table_back(&cluster, &[]);
    let at = |name: &str| mode(&restored.data_dir().join(name));
    assert_eq!((at(""), at("base"), at("PG_VERSION"), at("global/pg_control")), (0o700, 0o700, 0o600, 0o600));
    assert_eq!(at("postgresql.auto.conf"), 0o600);
}

#[test]
fn in_two_repositories_at_once() {
    let builder = ProtectedCluster::builder();
    let near = local_repository(builder.dir(), "near", "near");
    let far = local_repository(builder.dir(), "far", "far");
    let cluster = builder.repository(&near).repository(&far).start();
    let nothing = cluster.restore().args(["list"]).fail_with(3);
    assert!(nothing.stderr.contains("nothing is stored for the cluster"), "{}", nothing.stderr);
    let mut restored = brings_a_table_back(&cluster, &["--repository", "near"]);
    assert!(restored.psql("SHOW restore_command").contains("--repository near"));
    restored.stop_fast();
    // Either of them is enough.
    fs::remove_dir_all(cluster.dir().join("near")).unwrap();
    let mut restored = cluster.restore_and_start("far-away", &["--repository", "far", "--target-immediate"]);
    restored.wait_until_paused();
    assert_eq!(restored.psql("SELECT count(*) FROM loop"), "1000");
}

#[test]
fn without_any_archiving() {
    the_agent_fetches_the_wal(15);
}

#[test]
fn without_any_archiving_on_postgresql_13() {
    the_agent_fetches_the_wal(13);
}

fn the_agent_fetches_the_wal(major: u32) {
    let cluster = ProtectedCluster::builder().server(|server| server.major(major)).without_archiving().start();
    assert_eq!(cluster.server().psql("SHOW archive_mode"), "off");
    cluster.server().psql("CREATE TABLE loop AS SELECT n FROM generate_series(1, 1000) n");
    cluster.backup();
    assert!(!cluster.archived_segments(1).is_empty(), "the agent fetches the backup's WAL itself");
    // Once more: the WAL of the second backup follows that of the first, and nothing is in the way.
    cluster.server().psql("INSERT INTO loop SELECT n FROM generate_series(1001, 1234) n");
    cluster.backup();
    let mut restored = cluster.restore_and_start("restored", &[] as &[&str]);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*) FROM loop"), "1234");
}
