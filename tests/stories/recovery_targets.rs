//! Where recovery ends.

use harness::ProtectedCluster;

#[test]
fn a_dropped_table_comes_back() {
    let cluster = ProtectedCluster::start();
    cluster.server().psql("CREATE TABLE t AS SELECT 1 AS x");
    cluster.backup();
    cluster.server().psql("INSERT INTO t SELECT generate_series(1, 1000)");
    let before = cluster.server().psql("SELECT clock_timestamp()");
    std::thread::sleep(std::time::Duration::from_millis(20));
    cluster.server().psql("DROP TABLE t");
    cluster.archive_all();
    let mut restored = cluster.restore_and_start("r", &["--target-time", &before, "--target-action", "promote"]);
    restored.wait_until_promoted();
    assert_eq!(restored.psql("SELECT count(*) FROM t"), "1001");
    assert!(cluster.archived_segments(1).len() >= 3);
}
