//! A relation of more than 1 GiB, which lies in two files, is cut in the second one and back into the first one.
//!
//! Most of it is pages that were never filled: its first file is lengthened while the server is stopped, as a crash
//! leaves it that comes right after the lengthening. So the test writes megabytes instead of gigabytes.

use std::fs::File;

use harness::{PostgresServer, ProtectedCluster};

use crate::chains::{backup, chain_equals_combined, chain_equals_full, start};

const SEGMENT_BYTES: u64 = 1 << 30;

/// Changes that end at the next backup.
const STEPS: [fn(&mut ProtectedCluster); 5] = [
    // Within the second file.
    |cluster| cut(cluster.server(), 131_172),
    |cluster| drop(cluster.server().psql("UPDATE t SET v = 'changed' WHERE id % 10 = 1")),
    // Into the first file; the second one stays, with nothing in it.
    |cluster| cut(cluster.server(), 300),
    // The same and back, which only the limit blocks tell.
    |cluster| {
        lengthen(cluster);
        insert(cluster.server(), 200);
        cut(cluster.server(), 100);
        lengthen(cluster);
        insert(cluster.server(), 2000);
    },
    |cluster| cut(cluster.server(), 20),
];

fn insert(server: &PostgresServer, pages: u32) {
    server.psql(&format!(
        "INSERT INTO t SELECT g, repeat('x', 1900) FROM generate_series((SELECT count(*) FROM t) + 1, \
         (SELECT count(*) FROM t) + {pages} * 4) g"
    ));
}

/// Deletes all rows from a block on, and gives the pages back.
fn cut(server: &PostgresServer, block: u32) {
    server.psql(&format!("DELETE FROM t WHERE ctid >= '({block},0)'"));
    server.psql("VACUUM t");
    assert_eq!(server.psql("SELECT pg_relation_size('t') / 8192"), block.to_string());
}

/// Fills the first file with pages that hold nothing. The next rows come behind them.
fn lengthen(cluster: &mut ProtectedCluster) {
    let path = cluster.server().psql("SELECT pg_relation_filepath('t')");
    let path = cluster.server().data_dir().join(path);
    cluster.server_mut().stop_fast();
    File::options().write(true).open(path).unwrap().set_len(SEGMENT_BYTES).unwrap();
    cluster.server_mut().start();
}

fn rows(server: &PostgresServer) -> String {
    server.psql("SELECT count(*), sum(id), count(*) FILTER (WHERE v = 'changed') FROM t")
}

fn relations_of_several_segments(major: u32, steps: usize) {
    let mut cluster = start(major);
    cluster.server().psql("CREATE TABLE t (id int, v text)");
    cluster.server().psql("ALTER TABLE t ALTER COLUMN v SET STORAGE PLAIN");
    insert(cluster.server(), 400);
    lengthen(&mut cluster);
    insert(cluster.server(), 2000);
    assert_eq!(cluster.server().psql("SELECT pg_relation_size('t') / 8192 > 133000"), "t");
    let mut last = backup(&cluster, "--full");
    for step in STEPS.iter().take(steps) {
        step(&mut cluster);
        last = backup(&cluster, "--incremental");
    }
    let expected = rows(cluster.server());
    let restored = match major {
        17.. => chain_equals_combined(&cluster, &last),
        _ => chain_equals_full(&cluster),
    };
    let mut server = PostgresServer::start_restored(restored, major);
    server.wait_until_paused();
    assert_eq!(rows(&server), expected);
}

#[test]
fn heavy_e02_relations_of_several_segments_of_18() {
    relations_of_several_segments(18, 4);
}

#[test]
#[ignore = "long: make soak"]
fn soak_e02_relations_of_several_segments() {
    for major in 13..=18 {
        for steps in 1..=STEPS.len() {
            relations_of_several_segments(major, steps);
        }
    }
}
