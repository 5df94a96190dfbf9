//! An archive command that has fallen behind ships several segments in one call, and never says yes to what is not stored.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use harness::{ProtectedCluster, TestUser, wait_until};

/// A server that keeps its segments, and a copy of its `pg_wal` in which all of them wait.
struct Backlog {
    cluster: ProtectedCluster,
    segments: Vec<PathBuf>,
}

impl Backlog {
    fn new(settings: &str) -> Self {
        let builder = ProtectedCluster::builder().without_archiving().settings(settings);
        let cluster = builder.server(|server| server.setting("wal_keep_size", "1GB")).start();
        let pg_wal = cluster.dir().create_dir("waiting/pg_wal");
        fs::create_dir(pg_wal.join("archive_status")).unwrap();
        let mut segments = Vec::new();
        for number in 0..11 {
            let sql = format!(
                "CREATE TABLE t{number} AS SELECT n, md5(n::text) FROM generate_series(1, 5000) n;
                 SELECT pg_walfile_name(pg_switch_wal())"
            );
            let name = cluster.server().psql(&sql).lines().last().unwrap().to_owned();
            let segment = pg_wal.join(&name);
            fs::copy(cluster.server().data_dir().join("pg_wal").join(&name), &segment).unwrap();
            fs::write(pg_wal.join(format!("archive_status/{name}.ready")), "").unwrap();
            segments.push(segment);
        }
        segments.sort();
        TestUser::get().own_all(&pg_wal);
        Self { cluster, segments }
    }

    fn stored(&self) -> usize {
        if self.cluster.repository_dir().join("main").exists() { self.cluster.archived_segments(1).len() } else { 0 }
    }

    fn name(&self, number: usize) -> String {
        self.segments[number].file_name().unwrap().to_str().unwrap().to_owned()
    }
}

#[test]
fn one_call_ships_many_and_their_own_calls_answer_at_once() {
    let backlog = Backlog::new("");
    let ask = |number: usize| backlog.cluster.archive_command().arg(&backlog.segments[number]);
    ask(0).succeed();
    let stored = backlog.stored();
    assert!((8..=11).contains(&stored), "the one that was asked for, seven with it, and perhaps more: {stored}");
    let before: Vec<_> = backlog.cluster.archived_segments(1).iter().map(|path| fs::metadata(path).unwrap()).collect();
    // Without the repository only notes can answer.
    let repository = backlog.cluster.repository_dir();
    let away = repository.with_extension("away");
    fs::rename(&repository, &away).unwrap();
    for number in 1..stored {
        ask(number).succeed();
    }
    assert!(!repository.exists());
    fs::rename(&away, &repository).unwrap();
    let after: Vec<_> = backlog.cluster.archived_segments(1).iter().map(|path| fs::metadata(path).unwrap()).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| before.modified().unwrap() == after.modified().unwrap()));
    for number in stored..11 {
        ask(number).succeed();
    }
    assert_eq!(backlog.stored(), 11);
    // Everything that was shipped ahead is what the server wrote.
    for (segment, stored) in backlog.segments.iter().zip(backlog.cluster.archived_segments(1)) {
        let raw = Command::new("zstd").arg("-dcq").arg(&stored).output().unwrap().stdout;
        assert!(raw == fs::read(segment).unwrap(), "{}", segment.display());
    }
}

/// A note is only believed for the very file: a name that comes back with other bytes is a conflict, as without notes.
#[test]
fn b02_a_note_never_speaks_for_other_bytes() {
    let backlog = Backlog::new("");
    let ask = |number: usize| backlog.cluster.archive_command().arg(&backlog.segments[number]);
    ask(0).succeed();
    // The same bytes in another file: looked at again, and found to be the same.
    let bytes = fs::read(&backlog.segments[1]).unwrap();
    fs::remove_file(&backlog.segments[1]).unwrap();
    fs::write(&backlog.segments[1], &bytes).unwrap();
    let said = ask(1).args(["-v"]).succeed();
    assert!(said.stderr.contains("was stored already"), "{}", said.stderr);
    for number in [1, 2] {
        let mut other = fs::read(&backlog.segments[number]).unwrap();
        let last = other.len() - 1;
        other[last] ^= 1;
        fs::write(&backlog.segments[number], &other).unwrap();
        let refused = ask(number).fail_with(1);
        assert!(refused.stderr.contains(&backlog.name(number)), "{}", refused.stderr);
    }
}

/// Damage behind the segment that was asked for is the business of the call that asks for it.
#[test]
fn b21_what_cannot_be_shipped_ahead_fails_only_its_own_call() {
    let backlog = Backlog::new("");
    fs::write(&backlog.segments[3], "no segment").unwrap();
    backlog.cluster.archive_command().arg(&backlog.segments[0]).succeed();
    assert!(backlog.stored() >= 7);
    let refused = backlog.cluster.archive_command().arg(&backlog.segments[3]).fail_with(1);
    assert!(refused.stderr.contains("not the WAL segment that its name says"), "{}", refused.stderr);
}

#[test]
fn without_a_place_for_notes_or_with_ahead_1_each_call_ships_one() {
    for settings in ["[archive]\nahead = 1\n", ""] {
        let backlog = Backlog::new(settings);
        if settings.is_empty() {
            let state = backlog.cluster.dir().join("state");
            drop(fs::remove_dir_all(&state));
            fs::write(&state, "a file in the place of the directory").unwrap();
        }
        backlog.cluster.archive_command().arg(&backlog.segments[0]).succeed();
        assert_eq!(backlog.stored(), 1, "{settings}");
    }
}

/// The real archiver, after an archive that was away.
#[test]
fn a_server_that_fell_behind_catches_up() {
    let mut cluster = ProtectedCluster::start();
    let command = cluster.server().psql("SHOW archive_command");
    cluster.server_mut().alter_system("archive_command", "false");
    for number in 0..20 {
        cluster.server().psql(&format!(
            "CREATE TABLE t{number} AS SELECT n FROM generate_series(1, 1000) n; SELECT pg_switch_wal()"
        ));
    }
    let before = cluster.archived_segments(1).len();
    cluster.server_mut().alter_system("archive_command", &command);
    cluster.archive_all();
    wait_until("an empty backlog", Duration::from_secs(60), || {
        let status = cluster.server().data_dir().join("pg_wal/archive_status");
        let waiting = fs::read_dir(status).unwrap().any(|entry| entry.unwrap().path().extension().unwrap() == "ready");
        (!waiting).then_some(())
    });
    assert!(cluster.archived_segments(1).len() >= before + 20);
    cluster.backup();
}
