//! The search for targets in the WAL of a real server, over many small segments.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use harness::PostgresServer;
use pgark_command::TargetTime;
use pgark_postgres::{Lsn, SystemIdentifier, TimelineHistory, TimelineId, WalFileName};
use pgark_repository::{Backup, BackupList, ClusterRepository, PreparedWalFile, Repository, RepositoryOptions};
use pgark_restore::{
    Archive, Catalogue, ReachError, RecoveryTarget, Request, RestorePlan, Target, TargetAction, TargetTimeline, plan,
    prove,
};

/// A transaction of the test: its number, its time in microseconds since 1970, and a position before its commit and one
/// after it.
struct Done {
    xid: u32,
    time: i64,
    before: Lsn,
    after: Lsn,
}

struct World {
    _folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    place: ClusterRepository,
    catalogue: Catalogue,
    done: Vec<Done>,
    restore_point: Lsn,
}

/// A server that works for 20 segments, with transactions in every third only; its WAL in a repository.
fn world() -> World {
    let server = PostgresServer::builder()
        .wal_segment_megabytes(1)
        .setting("track_commit_timestamp", "on")
        .setting("autovacuum", "off")
        .setting("wal_keep_size", "1GB")
        .start();
    let text = |sql: &str| server.psql(sql);
    let lsn = |sql: &str| text(sql).parse::<Lsn>().unwrap();
    text("CREATE TABLE t (i int); SELECT pg_switch_wal()");
    let start = lsn("SELECT pg_current_wal_insert_lsn()");
    text("CHECKPOINT; SELECT pg_switch_wal()");
    let stop = lsn("SELECT pg_current_wal_insert_lsn()");
    let mut done = Vec::new();
    let mut restore_point = Lsn::ZERO;
    for round in 0..20 {
        if round % 3 == 1 {
            for _ in 0..2 {
                let before = lsn("SELECT pg_current_wal_insert_lsn()");
                let xid: u32 = text("INSERT INTO t VALUES (1) RETURNING pg_current_xact_id()")
                    .lines()
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap();
                let time = text(&format!(
                    "SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}'::xid)) * 1000000)::bigint"
                ));
                let after = lsn("SELECT pg_current_wal_insert_lsn()");
                done.push(Done { xid, time: time.parse().unwrap(), before, after });
            }
        } else {
            // A message that is in no transaction leaves WAL without a time.
            text("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000))");
        }
        if round == 11 {
            restore_point = lsn("SELECT pg_create_restore_point('half way')");
        }
        text("SELECT pg_switch_wal()");
    }
    // On a boundary the server would name the segment before it.
    text("SELECT pg_logical_emit_message(false, 'x', 'x')");
    let current = text("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let system: SystemIdentifier = text("SELECT system_identifier FROM pg_control_system()").parse().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().join("repository").display());
    let options = RepositoryOptions { name: "local".to_owned(), url, ..RepositoryOptions::default() };
    let repository = Repository::open(&options).unwrap();
    let place = repository.cluster("main", system).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for entry in std::fs::read_dir(server.data_dir().join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // The names behind the current one are recycled files.
        if let Ok(name @ WalFileName::Segment(_)) = name.parse::<WalFileName>()
            && name.to_string() < current
        {
            let file = PreparedWalFile::prepare(name, &std::fs::read(entry.path()).unwrap(), 1, 1).unwrap();
            runtime.block_on(place.store_wal_file(&file)).unwrap();
        }
    }
    let catalogue = Catalogue {
        unreadable_histories: Vec::new(),
        repository: "local".to_owned(),
        cluster: "main".to_owned(),
        system_identifier: system,
        backups: BackupList { finished: vec![backup(system, start, stop, &server)], ..BackupList::default() },
        wal: runtime.block_on(place.wal_inventory()).unwrap(),
        histories: BTreeMap::from([(TimelineId::FIRST, TimelineHistory::first())]),
        others: Vec::new(),
        unread: Vec::new(),
    };
    World { _folder: folder, runtime, place, catalogue, done, restore_point }
}

fn backup(system: SystemIdentifier, start: Lsn, stop: Lsn, server: &PostgresServer) -> Backup {
    let segment = server.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let stored = serde_json::json!({"name": "x", "stored_size": 1, "crc32": "00000000", "sha256": ""});
    serde_json::from_value(serde_json::json!({
        "format": 1,
        "id": "20200101T000000Z-full",
        "kind": "full",
        "parent": null,
        "cluster": "main",
        "server": {
            "system_identifier": system,
            "version_num": server.major() * 10_000 + 1,
            "wal_segment_size": 1 << 20,
            "data_directory_mode": "0700",
            "data_directory": null,
            "data_checksums": false,
            "standby": false
        },
        "timeline": 1,
        "start_lsn": start,
        "stop_timeline": 1,
        "stop_lsn": stop,
        "start_time": "2020-01-01T00:00:00Z",
        "stop_time": "2020-01-01T00:00:01Z",
        "wal": {"first": segment, "last": segment},
        "tablespaces": [],
        "parts": [],
        "manifest": stored,
        "index": stored,
        "totals": {"files": 0, "directories": 0, "raw_size": 0, "stored_size": 0},
        "recipients": [],
        "written_by": "test", "checksum": ""
    }))
    .unwrap()
}

impl World {
    fn prove(&self, stop: RecoveryTarget, inclusive: bool) -> Result<RestorePlan, ReachError> {
        let target = Target { stop, inclusive, timeline: TargetTimeline::Latest, action: TargetAction::Pause };
        let mut planned = plan(&self.catalogue, &Request { target, backup: None }).unwrap();
        self.runtime.block_on(prove(&Archive::of(self.place.clone()), &mut planned)).map(|()| planned)
    }

    fn time(&self, time: i64, inclusive: bool) -> Result<RestorePlan, ReachError> {
        self.prove(RecoveryTarget::Time(TargetTime::from_unix_microseconds(time).unwrap()), inclusive)
    }
}

fn stops_in(plan: &RestorePlan, done: &Done) {
    let stop = plan.stop.as_ref().unwrap();
    assert!((done.before..done.after).contains(&stop.lsn), "{stop:?} is not in {} … {}", done.before, done.after);
    assert_eq!(stop.time, Some(done.time));
    assert_eq!(plan.needed_segments().last().unwrap().name, stop.segment);
}

#[test]
fn d19_d24_targets_are_found_where_the_server_will_stop() {
    let world = world();
    assert_eq!(world.done.len(), 14);
    for done in &world.done {
        // Just before it, at it and exclusive of it: always this transaction.
        stops_in(&world.time(done.time - 1, true).unwrap(), done);
        stops_in(&world.time(done.time, false).unwrap(), done);
        stops_in(&world.prove(RecoveryTarget::Xid(done.xid), true).unwrap(), done);
        let at = world.prove(RecoveryTarget::Lsn(done.before), true).unwrap();
        assert!(at.needed_segments().last().unwrap().name <= at.segments.last().unwrap().name);
    }
    for pair in world.done.windows(2) {
        stops_in(&world.time(pair[0].time, true).unwrap(), &pair[1]);
    }
    stops_in(&world.time(1_600_000_000_000_000, true).unwrap(), &world.done[0]);

    let last = world.done.last().unwrap();
    for refused in [world.time(last.time, true), world.time(last.time + 1, false)] {
        let Err(ReachError::AfterLastTransaction { last: Some(found), .. }) = &refused else { panic!("{refused:?}") };
        assert_eq!(found.time, Some(last.time));
    }
    let end = world.prove(RecoveryTarget::EndOfArchive, true).unwrap();
    assert_eq!(end.last_transaction.unwrap().time, Some(last.time));

    let named = world.prove(RecoveryTarget::Name("half way".to_owned()), true).unwrap();
    let stop = named.stop.unwrap();
    assert!(stop.lsn < world.restore_point && world.restore_point.bytes_since(stop.lsn).unwrap() < 256, "{stop:?}");
    let unknown = world.prove(RecoveryTarget::Name("half".to_owned()), true);
    assert!(matches!(unknown, Err(ReachError::NameNotFound { .. })), "{unknown:?}");
    let unknown = world.prove(RecoveryTarget::Xid(last.xid + 100), true);
    assert!(matches!(unknown, Err(ReachError::XidNotFound { .. })), "{unknown:?}");
}

#[test]
fn d37_a_damaged_segment_in_the_way_is_told() {
    let world = world();
    let wal = world.place.keys().wal();
    // A whole, valid object of zstd whose content is not WAL: only a walk notices.
    let victim = world.catalogue.wal.segments.keys().nth(world.catalogue.wal.segments.len() / 2).copied().unwrap();
    let objects = world.runtime.block_on(world.place.store().list(&wal)).unwrap();
    let key = objects.into_iter().find(|object| object.key.as_str().contains(&victim.to_string())).unwrap().key;
    world.runtime.block_on(world.place.store().delete(&key)).unwrap();
    let file = PreparedWalFile::prepare(WalFileName::Segment(victim), &vec![7; 1 << 20], 1, 1).unwrap();
    world.runtime.block_on(world.place.store_wal_file(&file)).unwrap();
    let refused = world.prove(RecoveryTarget::Xid(world.done.last().unwrap().xid), true);
    assert!(matches!(refused, Err(ReachError::Damaged { .. })), "{refused:?}");
}
