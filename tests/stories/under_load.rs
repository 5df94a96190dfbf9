//! A backup while the server works, looked at with PostgreSQL's own tools.

use std::fs;
use std::path::Path;

use harness::{PostgresServer, ProtectedCluster, bash, newest_major};

/// Runs pgbench through a whole backup, restores to the end of the archive and to the end of the backup.
fn balances_hold(major: u32) {
    let cluster = ProtectedCluster::builder()
        .server(|server| server.major(major).setting("max_wal_size", "64MB"))
        .settings("[backup]\npart_size = \"16MiB\"\n")
        .start();
    let server = cluster.server();
    server.psql("CREATE EXTENSION amcheck");
    server.init_pgbench(4);
    let load = server.start_pgbench(2);
    let before: u64 = server.psql("SELECT count(*) FROM pgbench_history").parse().unwrap();
    cluster.backup();
    let after: u64 = server.psql("SELECT count(*) FROM pgbench_history").parse().unwrap();
    load.stop();
    let total = server.check_pgbench_balances();
    cluster.archive_all();

    let to = cluster.restore_to("at-the-end", &[] as &[&str]);
    verify(server, &to);
    let mut restored = PostgresServer::start_restored(&to, major);
    restored.wait_until_promoted();
    assert_eq!(restored.check_pgbench_balances(), total);
    check_relations(&restored);
    drop(restored);

    let arguments = ["--target-immediate", "--target-action", "promote"];
    let mut restored = cluster.restore_and_start("immediate", &arguments);
    restored.wait_until_promoted();
    let immediate = restored.check_pgbench_balances();
    assert!((before..=after).contains(&immediate), "{before} ≤ {immediate} ≤ {after}");
    check_relations(&restored);
    drop(restored);

    read_archived_segments(&cluster);
}

/// What was restored is what the server had put into its manifest.
fn verify(server: &PostgresServer, data_dir: &Path) {
    let said = server.run("pg_verifybackup", &["--no-parse-wal", &data_dir.display().to_string()]);
    assert!(said.contains("backup successfully verified"), "{said}");
}

fn check_relations(server: &PostgresServer) {
    let said = server.run("pg_amcheck", &["--database", "postgres", "--heapallindexed", "--no-dependent-toast"]);
    assert_eq!(said, "", "pg_amcheck complains");
}

/// Every archived segment is a file that the server's own tool reads, after `zstd -d` and nothing else.
fn read_archived_segments(cluster: &ProtectedCluster) {
    let folder = cluster.dir().create_dir("segments");
    let stored = cluster.archived_segments(1);
    assert!(stored.len() >= 3, "{stored:?}");
    let names: Vec<String> = stored.iter().map(|path| decompress(path, &folder)).collect();
    for name in &names {
        let mut dump = cluster.server().command("pg_waldump");
        let output = dump.args(["--quiet", "--path"]).arg(&folder).arg(name).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let all = ["--stats", "--path", &folder.display().to_string(), &names[0], &names[names.len() - 1]];
    let statistics = cluster.server().run("pg_waldump", &all);
    assert!(statistics.contains("Transaction"), "{statistics}");
}

fn decompress(stored: &Path, folder: &Path) -> String {
    let name = stored.file_name().unwrap().to_str().unwrap().strip_suffix(".zst").unwrap().to_owned();
    bash(folder, &format!("zstd -d --quiet '{}' -o '{name}'", stored.display())).succeed();
    assert_eq!(fs::metadata(folder.join(&name)).unwrap().len(), 16 << 20);
    name
}

#[test]
fn heavy_pgbench_runs_throughout_the_backup() {
    balances_hold(15);
}

#[test]
fn heavy_pgbench_runs_throughout_the_backup_of_the_newest_postgresql() {
    balances_hold(newest_major());
}
