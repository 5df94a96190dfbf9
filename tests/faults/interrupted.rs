//! Backups under other troubles: signals, a server with an idle timeout, an archive command that does not work, and two
//! backups at once.

use std::time::{Duration, Instant};

use harness::Program;
use rustix::process::Signal;

use crate::connection::{next_backup_works, slow_backup};
use crate::site::{Site, assert_one_clear_line};

const COUNT: &str = "SELECT count(*), sum(length(noise)) FROM kept";

#[test]
fn signals_end_a_backup_in_seconds_and_without_a_commit_mark() {
    let mut site = Site::start();
    site.fill("kept", 24);
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let backup = slow_backup(&mut site);
        let sent = Instant::now();
        backup.signal(signal);
        let outcome = backup.wait();
        assert_eq!((outcome.code, outcome.signal), (Some(1), None), "{}", outcome.stderr);
        assert!(sent.elapsed() < Duration::from_secs(3), "it took {:?}", sent.elapsed());
        assert!(assert_one_clear_line(&outcome).contains(name), "{}", outcome.stderr);
        assert!(site.files().committed().is_empty(), "{:?}", site.files().all());
        site.wait_until_left_alone();
    }
    next_backup_works(&site);
}

/// While the WAL is waited for, the content is stored, and still nothing is committed.
#[test]
fn a26_a_signal_while_the_archive_is_waited_for() {
    let mut site = Site::start_with_broken_archiving();
    let config = site.other_config("patient.toml", None, None);
    let patient = std::fs::read_to_string(&config).unwrap().replace("\"1s\"", "\"1h\"");
    site.dir().write("patient.toml", patient);
    let backup = Program::agent().config(&config).as_test_user().arg("backup").start();
    backup.wait_for_stderr("waiting until the backup's WAL is stored");
    std::thread::sleep(Duration::from_secs(1));
    backup.signal(Signal::TERM);
    let outcome = backup.wait();
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(site.files().committed().is_empty());
    site.wait_until_left_alone();
}

#[test]
fn a24_a_backup_survives_an_idle_timeout_of_the_server() {
    let site = Site::start_server(|server| server.setting("idle_session_timeout", "1s"));
    site.fill("kept", 24);
    let outcome = site.start_backup().arg("--max-rate=5MB").succeed();
    assert!(outcome.duration > Duration::from_secs(4), "it was too quick to meet the timeout: {:?}", outcome.duration);
    assert_eq!(site.restored_answer("restored", None, COUNT), site.server().psql(COUNT));
}

#[test]
fn a26_a27_where_the_archive_command_is_broken_the_wal_is_fetched_before_the_commit() {
    let mut site = Site::start_with_broken_archiving();
    site.fill("kept", 24);
    let outcome = site.start_backup().succeed();
    assert!(outcome.stderr.contains("did not deliver"), "the operator must hear of it:\n{}", outcome.stderr);
    let wal = site.files().with(&["/wal/", ".zst"]);
    assert!(!wal.is_empty());
    site.wait_until_left_alone();
    assert_eq!(site.restored_answer("restored", None, COUNT), site.server().psql(COUNT));
}

#[test]
fn a33_two_backups_at_once_never_mix() {
    let mut site = Site::start();
    site.fill("kept", 24);
    let backups = [site.start_backup().start(), site.start_backup().start()];
    let outcomes = backups.map(harness::RunningProgram::wait);
    let done = outcomes.iter().filter(|outcome| outcome.code == Some(0)).count();
    for outcome in &outcomes {
        assert!(matches!(outcome.code, Some(0 | 1)), "{:?} {}", outcome.code, outcome.stderr);
    }
    assert!(done >= 1, "none of two backups worked:\n{}\n{}", outcomes[0].stderr, outcomes[1].stderr);
    println!("{done} of two backups at once were taken");
    let committed = site.files().committed();
    assert_eq!(committed.len(), done);
    for id in committed {
        assert_eq!(site.restored_answer("restored", Some(&id), COUNT), site.server().psql(COUNT), "{id}");
    }
    site.wait_until_left_alone();
}
