//! The restore without pgark that `docs/repository-format.md` promises: its very commands, with `age`, `zstd`, `tar` and
//! PostgreSQL's own tools.

use std::path::{Path, PathBuf};

use harness::{PostgresServer, Program, ProtectedCluster, bash, standard_tool};

/// The commands between the marks of the document, written to a file.
fn script(cluster: &ProtectedCluster) -> PathBuf {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/repository-format.md");
    let document = std::fs::read_to_string(&document).unwrap();
    let marked = document.split("<!-- test:standard-restore -->").nth(1);
    let marked = marked.and_then(|rest| rest.split_once("<!-- /test:standard-restore -->"));
    let block = marked.and_then(|(block, _)| block.trim().strip_prefix("```bash\n")?.strip_suffix("```"));
    cluster.dir().write("standard-restore.sh", block.expect("the document has a marked block of commands"))
}

fn restore(cluster: &ProtectedCluster, id: &str, variables: &[(&str, &str)]) -> PathBuf {
    let target = cluster.dir().join("standard");
    let bin = cluster.server().bin("postgres").parent().unwrap().to_owned();
    let script = script(cluster);
    let run = bash(cluster.dir().path(), &format!("bash '{}'", script.display()))
        .env("REPO", cluster.cluster_dir())
        .env("ID", id)
        .env("TARGET", &target)
        .env("PG_BIN", bin);
    variables.iter().fold(run, |run, (name, value)| run.env(name, value)).succeed();
    target
}

#[test]
fn a_cluster_is_restored_to_a_time_without_pgark() {
    let cluster = ProtectedCluster::builder().settings("[backup]\npart_size = \"16MiB\"\n").start();
    let tablespace = cluster.dir().create_dir("tablespace");
    cluster.server().psql(&format!("CREATE TABLESPACE space LOCATION '{}'", tablespace.display()));
    cluster.server().psql("CREATE TABLE t TABLESPACE space AS SELECT n, md5(n::text) FROM generate_series(1, 1000) n");
    cluster.server().psql("CREATE TABLE filler AS SELECT n, md5(n::text) FROM generate_series(1, 200000) n");
    let id = cluster.backup();
    cluster.server().psql("INSERT INTO t SELECT n, '' FROM generate_series(1001, 1234) n");
    let moment = cluster.server().psql("SELECT clock_timestamp() + '10 ms'");
    std::thread::sleep(std::time::Duration::from_millis(50));
    cluster.server().psql("DROP TABLE t");
    cluster.archive_all();

    let oid = cluster.server().psql("SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
    let place = cluster.dir().join("moved");
    let recovery = format!("recovery_target_time = '{moment}'\nrecovery_target_action = 'promote'");
    let tablespaces = format!("{oid}={}", place.display());
    let target = restore(&cluster, &id, &[("RECOVERY", &recovery), ("TABLESPACES", &tablespaces)]);
    let mut restored = PostgresServer::start_restored(target, 15);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "1234");
    assert_eq!(restored.psql(&format!("SELECT pg_tablespace_location({oid})")), place.display().to_string());
}

#[test]
fn an_encrypted_cluster_is_restored_without_pgark() {
    let builder = ProtectedCluster::builder();
    let identity = builder.dir().join("identity");
    Program::at(&standard_tool("age-keygen")).arg("-o").arg(&identity).as_test_user().succeed();
    let public = Program::at(&standard_tool("age-keygen")).arg("-y").arg(&identity).as_test_user().succeed();
    let section = harness::local_repository(builder.dir(), "local", "repository");
    let section = format!("{section}recipients = [\"{}\"]\n", public.stdout.trim());
    let cluster = builder.repository(&section).start();
    cluster.server().psql("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n");
    let id = cluster.backup();
    cluster.server().psql("INSERT INTO t SELECT n FROM generate_series(1001, 1234) n");
    cluster.archive_all();
    let target = restore(&cluster, &id, &[("IDENTITY", &identity.display().to_string())]);
    let mut restored = PostgresServer::start_restored(target, 15);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "1234");
}
