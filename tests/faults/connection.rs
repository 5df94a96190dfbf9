//! A01 to A03: the connection to the server is cut in every phase of a base backup, or the server ends the session.

use std::time::Duration;

use harness::{Action, Fault, FaultProxy, Program, RunningProgram, Trigger, wait_until};

use crate::site::{Site, assert_one_clear_line};

const COUNT: &str = "SELECT count(*), sum(length(noise)) FROM kept";
/// What the server sends last: the end of the command, and then that it is ready.
const END_OF_COMMAND: &str = "BASE_BACKUP\0";

#[test]
fn a01_a_connection_that_is_cut_in_any_phase_commits_nothing() {
    let mut site = Site::start();
    site.fill("kept", 24);
    let proxy = FaultProxy::to_postgres(site.server());
    let config = site.other_config("proxied.toml", Some(&proxy.connection_string()), None);
    let backup = || Program::agent().config(&config).as_test_user().arg("backup");
    let answer = |text: &str| Trigger::AnswerWith(text.to_owned());
    let cuts = [
        ("at once", Trigger::Connect, Action::Reset),
        ("within the login", Trigger::BytesToClient(40), Action::Close),
        ("before the first row", Trigger::RequestWith("BASE_BACKUP".to_owned()), Action::LoseAnswer),
        ("before the data", Trigger::BytesToClient(2_000), Action::Close),
        ("in the data", Trigger::BytesToClient(9_000_000), Action::Reset),
        ("in the data, orderly", Trigger::BytesToClient(21_000_001), Action::Close),
        ("at the beginning of the manifest", answer("PostgreSQL-Backup-Manifest-Version"), Action::Close),
        ("at the end of the manifest", answer("Manifest-Checksum"), Action::Reset),
        ("before the server is ready again", answer(END_OF_COMMAND), Action::Close),
    ];
    for (phase, when, then) in cuts {
        let struck = proxy.struck();
        proxy.add(Fault::once(when, then));
        let outcome = backup().fail_with(1);
        assert_eq!(proxy.struck(), struck + 1, "{phase}: the cut did not happen");
        println!("{phase}: {}", assert_one_clear_line(&outcome));
        assert!(site.files().committed().is_empty(), "{phase}: {:?}", site.files().all());
        site.wait_until_left_alone();
    }
    backup().succeed();
    assert_eq!(site.files().committed().len(), 1);
    assert_eq!(site.restored_answer("restored", None, COUNT), site.server().psql(COUNT));
}

/// The connection that only holds the WAL is as important.
#[test]
fn a01_the_connection_that_holds_the_wal_is_watched() {
    let mut site = Site::start();
    site.fill("kept", 24);
    let backup = slow_backup(&mut site);
    let holder = site.server().psql("SELECT active_pid FROM pg_replication_slots");
    site.server().psql(&format!("SELECT pg_terminate_backend({holder})"));
    ends_without_commit(&mut site, backup, "terminat");
}

#[test]
fn a02_a_session_that_is_terminated_is_no_end_of_the_backup() {
    let mut site = Site::start();
    site.fill("kept", 24);
    let backup = slow_backup(&mut site);
    site.server().psql("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_basebackup");
    ends_without_commit(&mut site, backup, "");
    next_backup_works(&site);
}

#[test]
fn a03_a_copy_that_is_cancelled_fails_with_the_servers_words() {
    let mut site = Site::start();
    site.fill("kept", 24);
    let backup = slow_backup(&mut site);
    site.server().psql("SELECT pg_cancel_backend(pid) FROM pg_stat_progress_basebackup");
    ends_without_commit(&mut site, backup, "cancel");
    next_backup_works(&site);
}

#[test]
fn a02_a_server_that_is_shut_down_mid_backup() {
    let mut site = Site::start();
    site.fill("kept", 24);
    for immediate in [false, true] {
        let backup = slow_backup(&mut site);
        if immediate {
            site.server_mut().stop_immediate();
        } else {
            site.server_mut().stop_fast();
        }
        let outcome = backup.wait();
        assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
        println!("immediate {immediate}: {}", assert_one_clear_line(&outcome));
        assert!(site.files().committed().is_empty());
        site.server_mut().start();
    }
    next_backup_works(&site);
}

/// A backup that takes about ten seconds, in the middle of its data.
pub(crate) fn slow_backup(site: &mut Site) -> RunningProgram {
    let backup = site.start_backup().arg("--max-rate=4MB").start();
    site.server_mut().wait_for(
        "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files' AND backup_streamed > 4000000",
        "1",
    );
    backup
}

pub(crate) fn ends_without_commit(site: &mut Site, backup: RunningProgram, expected: &str) {
    let pid = backup.pid();
    let started = std::time::Instant::now();
    let outcome = backup.wait();
    assert_eq!(outcome.code, Some(1), "{pid}: {}", outcome.stderr);
    assert!(started.elapsed() < Duration::from_secs(15), "it took {:?} to end", started.elapsed());
    let line = assert_one_clear_line(&outcome);
    println!("{line}");
    assert!(line.contains(expected), "{line}");
    assert!(site.files().committed().is_empty(), "{:?}", site.files().all());
    site.wait_until_left_alone();
}

pub(crate) fn next_backup_works(site: &Site) {
    let before = site.files().committed().len();
    site.start_backup().succeed();
    wait_until("one more backup", Duration::from_secs(1), || {
        (site.files().committed().len() == before + 1).then_some(())
    });
    assert_eq!(site.restored_answer("restored", None, COUNT), site.server().psql(COUNT));
}
