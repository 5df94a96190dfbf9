//! The replication client against real servers: base backups that end well and badly, and WAL compared byte for byte
//! with the server's own files.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use harness::{PostgresServer, TempDir};
use pgark_agent::replication::{
    ArchiveName, BackupEnd, BackupMessage, BaseBackupOptions, BaseBackupStream, ConnectionOptions,
    ReplicationConnection, ReplicationError, SlotKind, TimelineEnd, WalMessage, WalStream,
};
use pgark_postgres::{Lsn, SegmentName, SegmentSize, TablespaceMap, TimelineHistory, TimelineId};
use sha2::{Digest, Sha256};

fn options(text: &str) -> ConnectionOptions {
    ConnectionOptions::parse(text, &|_| None, None).unwrap()
}

async fn connect(server: &PostgresServer) -> ReplicationConnection {
    ReplicationConnection::connect(&options(&server.connection_string())).await.unwrap()
}

fn fast() -> BaseBackupOptions {
    BaseBackupOptions { fast_checkpoint: true, ..BaseBackupOptions::default() }
}

/// Slow enough to be in the middle when something happens to it.
fn slow() -> BaseBackupOptions {
    BaseBackupOptions { max_rate_kib: Some(1024), ..fast() }
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

#[tokio::test]
async fn short_commands_agree_with_sql() {
    let server = PostgresServer::start_default();
    let mut connection = connect(&server).await;
    let system = connection.identify_system().await.unwrap();
    let identifier = server.psql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(system.system_identifier.to_string(), identifier);
    assert_eq!(system.timeline, timeline(1));
    assert!(system.position <= lsn(&server.psql("SELECT pg_current_wal_lsn()")));

    let version = server.psql("SHOW server_version_num");
    assert_eq!(connection.server_version_num().await.unwrap().to_string(), version);
    assert_eq!(connection.show("wal_segment_size").await.unwrap(), "16MB");
    assert_eq!(connection.show("idle_session_timeout").await.unwrap(), "0");
    assert_eq!(connection.show("application_name").await.unwrap(), "pgark");
    let data_dir = connection.show_bytes("data_directory").await.unwrap();
    assert_eq!(data_dir, server.data_dir().as_os_str().as_encoded_bytes());
    assert_eq!(connection.parameter("server_encoding"), Some(&b"SQL_ASCII"[..]));

    // An error leaves the connection usable.
    let error = connection.show("no_such_setting").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42704"));
    let error = connection.timeline_history(timeline(10)).await.unwrap_err();
    assert!(error.is_missing_file(), "{error:?}");
    connection.identify_system().await.unwrap();
    let pid = connection.process_id();
    let active = server.psql(&format!("SELECT backend_type FROM pg_stat_activity WHERE pid = {pid}"));
    assert_eq!(active, "walsender");
}

#[tokio::test]
async fn slots_are_made_and_dropped() {
    let server = PostgresServer::start_default();
    let mut connection = connect(&server).await;
    let slots = "SELECT slot_name, temporary, restart_lsn IS NOT NULL FROM pg_replication_slots ORDER BY 1";
    connection.create_physical_slot("kept", SlotKind::Permanent, true).await.unwrap();
    connection.create_physical_slot("gone", SlotKind::Temporary, false).await.unwrap();
    assert_eq!(server.psql(slots), "gone|t|f\nkept|f|t");
    let error = connection.create_physical_slot("kept", SlotKind::Permanent, true).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42710"));
    connection.close().await;
    harness::wait_until("the end of the temporary slot", Duration::from_secs(30), || {
        (server.psql(slots) == "kept|f|t").then_some(())
    });
    let mut connection = connect(&server).await;
    connection.drop_slot("kept").await.unwrap();
    assert!(connection.drop_slot("kept").await.unwrap_err().is_missing_object());
    assert_eq!(server.psql(slots), "");
}

/// A whole backup in memory.
struct Received {
    archives: Vec<(ArchiveName, Vec<u8>)>,
    manifest: Vec<u8>,
    progress: Vec<u64>,
    end: BackupEnd,
}

async fn receive(mut stream: BaseBackupStream<'_>) -> Result<Received, ReplicationError> {
    let (mut archives, mut manifest, mut progress) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(message) = stream.next().await? {
        match message {
            BackupMessage::Archive { name, .. } => archives.push((name, Vec::new())),
            BackupMessage::Data(bytes) => archives.last_mut().unwrap().1.extend_from_slice(&bytes),
            BackupMessage::ManifestStart => assert!(manifest.is_empty()),
            BackupMessage::ManifestData(bytes) => manifest.extend_from_slice(&bytes),
            BackupMessage::Progress(bytes) => progress.push(bytes),
        }
    }
    let end = stream.finish().await?;
    Ok(Received { archives, manifest, progress, end })
}

impl Received {
    /// Files by their path in the manifest.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for (name, bytes) in &self.archives {
            let prefix = match name {
                ArchiveName::Base => String::new(),
                ArchiveName::Tablespace(oid) => format!("pg_tblspc/{oid}/"),
            };
            for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
                let mut entry = entry.unwrap();
                if entry.header().entry_type().is_file() {
                    let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).unwrap();
                    files.insert(format!("{prefix}{path}"), content);
                }
            }
        }
        files
    }
}

#[tokio::test]
async fn a12_a13_a_whole_backup_agrees_with_its_manifest() {
    for major in [15, harness::newest_major()] {
        check_whole_backup(major).await;
    }
}

#[tokio::test]
async fn a09_a_whole_backup_of_an_old_server_agrees_with_its_manifest() {
    for major in [13, 14] {
        check_whole_backup(major).await;
    }
}

async fn check_whole_backup(major: u32) {
    let server = PostgresServer::builder().major(major).setting("allow_in_place_tablespaces", "on").start();
    let space = TempDir::for_test_user("space");
    let outside = space.create_dir(r"out\side");
    server.psql(&format!(
        "CREATE TABLESPACE outside LOCATION '{}';
         CREATE TABLESPACE inside LOCATION '';
         CREATE TABLE t1 (a int) TABLESPACE outside; INSERT INTO t1 SELECT generate_series(1, 200000);
         CREATE TABLE t2 (a int) TABLESPACE inside; INSERT INTO t2 SELECT 1;",
        outside.display()
    ));
    let mut connection = connect(&server).await;
    let stream = connection.base_backup(&fast()).await.unwrap();
    let start = stream.start();
    let estimate = stream.estimated_size_kib().unwrap() * 1024;
    let locations: Vec<_> =
        stream.tablespaces().iter().map(|t| (t.oid, String::from_utf8(t.location.to_vec()).unwrap())).collect();
    // Up to 15 the server leaves out, without a word, a tablespace that lies inside the data directory.
    let sends_inside = major >= 16;
    let listed = server.psql(&format!(
        "SELECT oid, CASE spcname WHEN 'inside' THEN 'pg_tblspc/' || oid ELSE pg_tablespace_location(oid) END
         FROM pg_tablespace WHERE spcname = 'outside' OR (spcname = 'inside' AND {sends_inside}) ORDER BY oid"
    ));
    let expected: Vec<_> = locations.iter().map(|(o, l)| format!("{o}|{l}")).collect();
    assert_eq!(expected.join("\n"), listed);

    let received = receive(stream).await.unwrap();
    assert!(start.lsn < received.end.lsn);
    assert_eq!((start.timeline, received.end.timeline), (timeline(1), timeline(1)));
    assert!(received.progress.is_sorted());
    let (last, done) = (received.progress.last().unwrap(), estimate.max(1));
    assert!(last.abs_diff(done) < done / 5, "{last} of {done}");
    assert_eq!(received.archives.len(), if sends_inside { 3 } else { 2 });
    assert_eq!(received.archives.last().unwrap().0, ArchiveName::Base);

    let files = received.files();
    let map = TablespaceMap::parse(&files["tablespace_map"], major).unwrap();
    assert_eq!(map.entries().len(), 1);
    assert_eq!(map.entries()[0].1, outside.as_os_str().as_encoded_bytes());
    let inside = server.psql("SELECT 'pg_tblspc/' || oid || '/' FROM pg_tablespace WHERE spcname = 'inside'");
    assert_eq!(files.keys().any(|path| path.starts_with(&inside)), sends_inside);
    let manifest: serde_json::Value = serde_json::from_slice(&received.manifest).unwrap();
    let listed = manifest["Files"].as_array().unwrap();
    assert_eq!(listed.len(), files.len());
    for file in listed {
        let content = &files[file["Path"].as_str().unwrap()];
        assert_eq!(file["Size"], content.len());
        let checksum: String = crc32c::crc32c(content).to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(file["Checksum"], checksum, "{file}");
    }
    let text = str::from_utf8(&received.manifest).unwrap().trim_end();
    let covered = text.rfind('\n').unwrap() + 1;
    let digest: String = Sha256::digest(&text.as_bytes()[..covered]).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(manifest["Manifest-Checksum"], digest);
    let range = &manifest["WAL-Ranges"][0];
    assert_eq!(range["Start-LSN"], start.lsn.to_string());
    assert_eq!(range["End-LSN"], received.end.lsn.to_string());

    // The connection is free again.
    connection.identify_system().await.unwrap();
}

#[tokio::test]
async fn a06_a_tablespace_path_of_any_bytes_does_not_end_the_backup() {
    use std::os::unix::ffi::OsStrExt;

    let server = PostgresServer::start_default();
    let space = TempDir::for_test_user("space");
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
    space.create_dir("even");
    fs::rename(space.join("even"), space.join(odd)).unwrap();
    server.psql("CREATE DATABASE raw ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    server.psql_in(
        "raw",
        &format!(
            "SET client_encoding = 'SQL_ASCII'; CREATE TABLESPACE odd LOCATION E'{}/odd\\xff'",
            space.path().display()
        ),
    );
    let mut connection = connect(&server).await;
    let stream = connection.base_backup(&fast()).await.unwrap();
    assert!(stream.tablespaces()[0].location.ends_with(b"/odd\xff"));
    let received = receive(stream).await.unwrap();
    let map = &received.files()["tablespace_map"];
    assert!(map.ends_with(b"/odd\xff\n"), "{}", map.escape_ascii());
}

#[tokio::test]
async fn a08_labels_with_quotes_and_emoji_arrive_as_they_are() {
    let server = PostgresServer::start_default();
    let mut connection = connect(&server).await;
    for label in ["it's \\ \"quoted\" 🐘", &"x".repeat(1023)] {
        let options = BaseBackupOptions { label: label.to_owned(), ..fast() };
        let stream = connection.base_backup(&options).await.unwrap();
        let files = receive(stream).await.unwrap().files();
        let text = String::from_utf8(files["backup_label"].clone()).unwrap();
        assert!(text.contains(&format!("\nLABEL: {label}\nSTART TIMELINE: 1\n")), "{text}");
    }
    let bad = BaseBackupOptions { label: "a\nb".to_owned(), ..fast() };
    let error = connection.base_backup(&bad).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Literal(_)));
    connection.identify_system().await.unwrap();
}

/// Reads until the archive's data comes, so that the backup is in the middle.
async fn reach_the_middle(stream: &mut BaseBackupStream<'_>) {
    let mut pieces = 0;
    while pieces < 3 {
        match stream.next().await.unwrap() {
            Some(BackupMessage::Data(_)) => pieces += 1,
            Some(_) => {}
            None => panic!("the backup was too short"),
        }
    }
}

async fn read_to_the_error(stream: &mut BaseBackupStream<'_>) -> ReplicationError {
    loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the backup ended well"),
            Err(error) => return error,
        }
    }
}

#[tokio::test]
async fn a02_a_terminated_backup_is_a_failure() {
    let server = PostgresServer::start_default();
    let mut connection = connect(&server).await;
    let pid = connection.process_id();
    let mut stream = connection.base_backup(&slow()).await.unwrap();
    reach_the_middle(&mut stream).await;
    server.psql(&format!("SELECT pg_terminate_backend({pid})"));
    let error = read_to_the_error(&mut stream).await;
    assert!(error.is_retryable(), "{error:?}");
    assert!(
        matches!(error, ReplicationError::ConnectionClosed { .. } | ReplicationError::ConnectionLost { .. })
            || error.sqlstate() == Some("57P01"),
        "{error:?}"
    );
    assert!(connection.identify_system().await.is_err());
}

#[tokio::test]
async fn a03_a_canceled_backup_leaves_the_connection_usable() {
    for major in [13, 15] {
        check_canceled_backup(major).await;
    }
}

async fn check_canceled_backup(major: u32) {
    let server = PostgresServer::builder().major(major).start();
    let mut connection = connect(&server).await;
    let pid = connection.process_id();
    let mut stream = connection.base_backup(&slow()).await.unwrap();
    reach_the_middle(&mut stream).await;
    server.psql(&format!("SELECT pg_cancel_backend({pid})"));
    let error = read_to_the_error(&mut stream).await;
    assert!(error.is_canceled(), "{error:?}");
    connection.identify_system().await.unwrap();
    let stream = connection.base_backup(&fast()).await.unwrap();
    receive(stream).await.unwrap();
}

#[tokio::test]
async fn a01_a_killed_server_is_a_failure() {
    let mut server = PostgresServer::start_default();
    let mut connection = connect(&server).await;
    let mut stream = connection.base_backup(&slow()).await.unwrap();
    reach_the_middle(&mut stream).await;
    server.kill9();
    let error = read_to_the_error(&mut stream).await;
    assert!(
        matches!(error, ReplicationError::ConnectionClosed { .. } | ReplicationError::ConnectionLost { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a04_damaged_pages_are_told_apart_from_a_failed_backup() {
    for major in [13, 15] {
        check_damaged_pages(major).await;
    }
}

async fn check_damaged_pages(major: u32) {
    let mut server = PostgresServer::builder().major(major).start();
    server.psql("CREATE TABLE victim AS SELECT generate_series(1, 10000) AS a; CHECKPOINT");
    let path = server.psql("SELECT pg_relation_filepath('victim')");
    server.stop_fast();
    let file = fs::File::options().write(true).open(server.data_dir().join(path)).unwrap();
    file.write_all_at(b"damage", 8192 + 4000).unwrap();
    server.start();

    let mut connection = connect(&server).await;
    let stream = connection.base_backup(&fast()).await.unwrap();
    let start = stream.start();
    match receive(stream).await.map(|received| received.end) {
        Err(ReplicationError::PagesDamaged { end, server }) => {
            assert!(end.lsn > start.lsn);
            assert_eq!(server.sqlstate, "XX001");
        }
        other => panic!("{other:?}"),
    }
    let unchecked = BaseBackupOptions { verify_checksums: false, ..fast() };
    let stream = connection.base_backup(&unchecked).await.unwrap();
    receive(stream).await.unwrap();
}

const MIB: u64 = 1 << 20;

/// Reads WAL up to a position, reporting all of it as durable, as a client that writes it down would.
async fn read_wal(stream: &mut WalStream<'_>, wal: &mut Vec<u8>, until: Lsn) {
    while stream.position() < until {
        match stream.next().await.unwrap() {
            Some(WalMessage::Data { bytes, .. }) => wal.extend_from_slice(&bytes),
            Some(WalMessage::Keepalive { reply_requested, .. }) => {
                if reply_requested {
                    let position = stream.position();
                    stream.send_status(position, position, Lsn::ZERO, false).await;
                }
            }
            other => panic!("{other:?} at {} before {until}", stream.position()),
        }
    }
}

/// Compares WAL with the server's own files of a timeline.
fn assert_same_wal(data_dir: &Path, timeline: TimelineId, size: SegmentSize, start: Lsn, wal: &[u8]) {
    let mut position = start;
    for piece in wal.chunks(usize::try_from(size.bytes()).unwrap()) {
        let name = SegmentName::containing(timeline, position, size);
        assert_eq!(name.start(size), position);
        let file = fs::read(data_dir.join("pg_wal").join(name.to_string())).unwrap();
        assert!(file[..piece.len()] == *piece, "{name} differs");
        position = position.saturating_add(piece.len() as u64);
    }
}

#[tokio::test]
async fn a51_streamed_wal_is_that_of_the_server_over_many_segments() {
    let server = PostgresServer::builder().wal_segment_megabytes(1).start();
    let size = SegmentSize::new(MIB).unwrap();
    let mut connection = connect(&server).await;
    assert_eq!(connection.show("wal_segment_size").await.unwrap(), "1MB");
    connection.create_physical_slot("stream", SlotKind::Permanent, true).await.unwrap();
    let system = connection.identify_system().await.unwrap();
    let start = SegmentName::containing(system.timeline, system.position, size).start(size);
    server.psql("CREATE TABLE t AS SELECT generate_series(1, 60000) AS a");
    let end = lsn(&server.psql("SELECT pg_current_wal_flush_lsn()"));
    assert!(end.as_u64() - start.as_u64() > 3 * MIB);

    let mut stream = connection.start_replication(Some("stream"), start, system.timeline).await.unwrap();
    let mut wal = Vec::new();
    read_wal(&mut stream, &mut wal, end).await;
    // What comes while it streams is the same story.
    server.psql("INSERT INTO t SELECT generate_series(1, 60000)");
    let end = lsn(&server.psql("SELECT pg_current_wal_flush_lsn()"));
    read_wal(&mut stream, &mut wal, end).await;
    assert_eq!(stream.position().as_u64() - start.as_u64(), wal.len() as u64);
    assert_same_wal(server.data_dir(), system.timeline, size, start, &wal);

    // A status moves the slot, and only to what was reported as flushed.
    let flushed = start.saturating_add(MIB);
    let position = stream.position();
    stream.send_status(position, flushed, Lsn::ZERO, true).await;
    loop {
        match stream.next().await.unwrap() {
            Some(WalMessage::Keepalive { .. }) => break,
            Some(WalMessage::Data { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let restart = server.psql("SELECT restart_lsn FROM pg_replication_slots");
    assert_eq!(lsn(&restart), flushed);

    assert_eq!(stream.stop().await.unwrap(), None);
    assert_eq!(connection.identify_system().await.unwrap().timeline, system.timeline);
}

#[tokio::test]
async fn a_refused_stream_leaves_the_connection_usable() {
    let server = PostgresServer::start_default();
    let mut connection = connect(&server).await;
    let position = connection.identify_system().await.unwrap().position;
    let refusal = async |connection: &mut ReplicationConnection, slot, start, line| {
        let mut stream = match connection.start_replication(slot, start, line).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        // Some refusals come after the copy has begun.
        loop {
            match stream.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended well"),
                Err(error) => return error,
            }
        }
    };
    let ahead = position.saturating_add(1 << 30);
    for (slot, start, line) in
        [(Some("missing"), position, timeline(1)), (None, ahead, timeline(1)), (None, position, timeline(7))]
    {
        let error = refusal(&mut connection, slot, start, line).await;
        assert!(matches!(error, ReplicationError::Server { .. }), "{error:?}");
        connection.identify_system().await.unwrap();
    }
}

#[tokio::test]
async fn a_promotion_ends_the_timeline_and_the_next_one_follows() {
    for major in [13, 15] {
        check_promotion(major).await;
    }
}

async fn check_promotion(major: u32) {
    let primary = PostgresServer::builder().major(major).wal_segment_megabytes(1).start();
    let size = SegmentSize::new(MIB).unwrap();
    let mut standby = primary.start_standby();
    let mut connection = connect(&standby).await;
    let system = connection.identify_system().await.unwrap();
    let start = SegmentName::containing(timeline(1), system.position, size).start(size);
    primary.psql("CREATE TABLE t AS SELECT generate_series(1, 30000) AS a");
    let end = primary.psql("SELECT pg_current_wal_flush_lsn()");
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), "t");
    standby.psql("SELECT 1");

    let mut stream = connection.start_replication(None, start, timeline(1)).await.unwrap();
    let mut wal = Vec::new();
    read_wal(&mut stream, &mut wal, lsn(&end)).await;
    standby.promote();
    let ended = loop {
        match stream.next().await.unwrap() {
            Some(WalMessage::Data { bytes, .. }) => wal.extend_from_slice(&bytes),
            Some(WalMessage::TimelineEnd(end)) => break end,
            Some(WalMessage::Keepalive { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(stream.next().await.unwrap(), None);
    assert_eq!(ended.next_timeline, timeline(2));

    let history = connection.timeline_history(timeline(2)).await.unwrap();
    assert_eq!(history.name, "00000002.history");
    let file = fs::read(standby.data_dir().join("pg_wal/00000002.history")).unwrap();
    assert_eq!(history.content, file);
    let parsed = TimelineHistory::parse(timeline(2), &history.content).unwrap();
    assert_eq!(parsed.switch_point(timeline(1)), Some(ended.next_start));

    // Exactly at the end of the old timeline there is nothing to copy.
    let mut stream = connection.start_replication(None, ended.next_start, timeline(1)).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(WalMessage::TimelineEnd(ended)));
    assert_eq!(stream.next().await.unwrap(), None);
    let stream = connection.start_replication(None, ended.next_start, timeline(1)).await.unwrap();
    assert_eq!(stream.stop().await.unwrap(), Some(TimelineEnd { ..ended }));

    standby.psql("CREATE TABLE u AS SELECT generate_series(1, 30000) AS a");
    let end = lsn(&standby.psql("SELECT pg_current_wal_flush_lsn()"));
    let first = SegmentName::containing(timeline(2), ended.next_start, size).start(size);
    let mut stream = connection.start_replication(None, first, timeline(2)).await.unwrap();
    let mut wal = Vec::new();
    read_wal(&mut stream, &mut wal, end).await;
    assert_same_wal(standby.data_dir(), timeline(2), size, first, &wal);
    stream.stop().await.unwrap();

    // Past the fork the old timeline is not in this server's history.
    let past = ended.next_start.saturating_add(MIB);
    let error = connection.start_replication(None, past, timeline(1)).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Server { .. }), "{error:?}");
}

#[tokio::test]
async fn a44_a_shutdown_sends_the_tail_and_says_that_it_is_one() {
    let mut server = PostgresServer::start_default();
    let mut connection = connect(&server).await;
    let system = connection.identify_system().await.unwrap();
    let size = SegmentSize::new(16 * MIB).unwrap();
    let start = SegmentName::containing(timeline(1), system.position, size).start(size);
    let mut stream = connection.start_replication(None, start, timeline(1)).await.unwrap();
    server.psql("CREATE TABLE t (a int)");
    let data_dir = server.data_dir().to_owned();
    let stopping = tokio::task::spawn_blocking(move || {
        server.stop_fast();
        server
    });
    let mut wal = Vec::new();
    loop {
        match stream.next().await.unwrap() {
            Some(WalMessage::Data { bytes, .. }) => wal.extend_from_slice(&bytes),
            Some(WalMessage::Keepalive { .. }) => {}
            Some(WalMessage::ServerShutdown) => break,
            other => panic!("{other:?}"),
        }
        let position = stream.position();
        stream.send_status(position, position, Lsn::ZERO, false).await;
    }
    let server = stopping.await.unwrap();
    let control = server.run("pg_controldata", &[&data_dir]);
    let checkpoint = control.lines().find_map(|line| line.strip_prefix("Latest checkpoint location:")).unwrap();
    assert!(stream.position() > lsn(checkpoint.trim()), "{control}");
    assert_same_wal(&data_dir, timeline(1), size, start, &wal);
    assert_eq!(stream.next().await.unwrap(), None);
    assert!(matches!(connection.identify_system().await, Err(ReplicationError::Unusable)));
}

#[tokio::test]
async fn a02_a_terminated_stream_is_a_failure() {
    let server = PostgresServer::start_default();
    let mut connection = connect(&server).await;
    let system = connection.identify_system().await.unwrap();
    let pid = connection.process_id();
    let mut stream = connection.start_replication(None, system.position, timeline(1)).await.unwrap();
    server.psql(&format!("SELECT pg_terminate_backend({pid})"));
    let error = loop {
        match stream.next().await {
            Ok(Some(WalMessage::Data { .. } | WalMessage::Keepalive { .. })) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(error.is_retryable(), "{error:?}");
}
