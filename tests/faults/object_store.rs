//! B24, B25, B12, C01: object storage that does not answer, refuses, or goes away. Every command ends in time with one
//! line, uploads are aborted, and no secret is printed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{Action, Fault, FaultProxy, Outcome, Program, S3Server, Trigger, s3_repository, wait_until};
use rustix::process::Signal;

use crate::connection::slow_backup;
use crate::repository_files::RepositoryFiles;
use crate::site::{Site, assert_one_clear_line};

/// A site whose repository is an S3 server, and the same behind a proxy.
struct S3Site {
    site: Site,
    proxy: FaultProxy,
    server: S3Server,
}

impl S3Site {
    fn start() -> Self {
        let server = S3Server::start();
        let proxy = FaultProxy::to_port(server.port());
        let site = Site::start_with_repository(|dir| server.repository(dir, "s3"));
        Self { site, proxy, server }
    }

    /// A configuration that goes through the proxy, with more settings.
    fn proxied(&self, settings: &str) -> PathBuf {
        let section =
            s3_repository(self.site.dir(), "s3", &self.proxy.endpoint(), "backups", "pgark", self.server.keys());
        let config = self.site.other_config("proxied.toml", None, Some(&section));
        let text = std::fs::read_to_string(&config).unwrap();
        self.site.dir().write("proxied.toml", format!("{text}{settings}"))
    }

    fn files(&self) -> RepositoryFiles {
        RepositoryFiles::new(&self.server.bucket_dir("backups"))
    }

    /// Pieces of uploads that are neither completed nor aborted, as s3s-fs keeps them beside the buckets.
    fn open_uploads(&self) -> Vec<String> {
        let buckets = self.server.bucket_dir("backups");
        let files = RepositoryFiles::new(buckets.parent().unwrap()).all();
        files.into_iter().filter(|name| name.contains(".upload")).collect()
    }

    /// A copy of a segment that is not archived: the next one of the server, while its archiver is stopped.
    fn fresh_segment(&mut self) -> PathBuf {
        self.site.server_mut().alter_system("archive_command", "false");
        self.site.server().psql("CREATE TABLE IF NOT EXISTS fresh (i int); INSERT INTO fresh VALUES (1)");
        let name = self.site.server().psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.site.server().psql("SELECT pg_switch_wal()");
        self.site.server().data_dir().join("pg_wal").join(name)
    }

    fn assert_no_secret(&self, outcome: &Outcome) {
        let secret = &self.server.keys().secret_access_key;
        for text in [&outcome.stdout, &outcome.stderr] {
            assert!(!text.contains(secret.as_str()), "the secret was printed:\n{text}");
            assert!(!text.contains("Signature="), "a signed request was printed:\n{text}");
        }
    }
}

#[test]
fn b24_an_archive_command_on_a_dead_network_ends_at_its_deadline() {
    let mut s3 = S3Site::start();
    let segment = s3.fresh_segment();
    let config = s3.proxied("[archive]\ndeadline = \"2s\"\n");
    let archive = || Program::archive_command().config(&config).arg("-vv").arg(&segment);
    for when in [Trigger::Connect, Trigger::RequestWith("PUT /backups".to_owned()), Trigger::BytesToServer(30_000)] {
        s3.proxy.add(Fault::always(when.clone(), Action::Stall));
        let outcome = archive().fail_with(1);
        let late = outcome.duration > Duration::from_secs(4) || outcome.duration < Duration::from_secs(2);
        assert!(!late, "{when:?}: it ended after {:?}", outcome.duration);
        assert!(assert_one_clear_line(&outcome).contains("archive.deadline"), "{}", outcome.stderr);
        assert!(s3.proxy.struck() > 0, "{when:?} did not happen");
        s3.assert_no_secret(&outcome);
        s3.proxy.clear();
        s3.proxy.cut_all();
    }
    archive().succeed();
}

#[test]
fn b25_sigterm_ends_a_hanging_upload_at_once() {
    let mut s3 = S3Site::start();
    let segment = s3.fresh_segment();
    let config = s3.proxied("");
    s3.proxy.add(Fault::always(Trigger::RequestWith("PUT /backups".to_owned()), Action::Stall));
    for signal in [Signal::TERM, Signal::INT] {
        let struck = s3.proxy.struck();
        let archive = Program::archive_command().config(&config).arg(&segment).start();
        wait_until("a hanging upload", Duration::from_secs(20), || (s3.proxy.struck() > struck).then_some(()));
        let sent = Instant::now();
        archive.signal(signal);
        let outcome = archive.wait();
        assert_eq!((outcome.code, outcome.signal), (Some(1), None), "{}", outcome.stderr);
        assert!(sent.elapsed() < Duration::from_secs(2), "it took {:?}", sent.elapsed());
        assert_one_clear_line(&outcome);
    }
    s3.proxy.clear();
    Program::archive_command().config(&config).arg(&segment).succeed();
}

#[test]
fn b12_refused_credentials_are_a_failure_with_a_hint_and_without_secrets() {
    let mut s3 = S3Site::start();
    let segment = s3.fresh_segment();
    let config = s3.proxied("");
    let error = |code: &str| format!("<Error><Code>{code}</Code><Message>No.</Message></Error>");
    for (status, code) in [
        ("403 Forbidden", "AccessDenied"),
        ("403 Forbidden", "InvalidAccessKeyId"),
        ("403 Forbidden", "SignatureDoesNotMatch"),
        ("403 Forbidden", "RequestTimeTooSkewed"),
        ("401 Unauthorized", "ExpiredToken"),
    ] {
        let refused = Fault::http_answer(status, &error(code));
        s3.proxy.add(Fault::always(Trigger::RequestWith("/backups".to_owned()), refused));
        let archive = Program::archive_command().config(&config).arg("-vv").arg(&segment).fail_with(1);
        let backup = Program::agent().config(&config).args(["-vv", "backup"]).as_test_user().fail_with(1);
        for outcome in [archive, backup] {
            let line = assert_one_clear_line(&outcome);
            assert!(line.contains("refuses") && outcome.stderr.contains("hint: "), "{code}: {}", outcome.stderr);
            s3.assert_no_secret(&outcome);
        }
        s3.proxy.clear();
    }
    s3.site.wait_until_left_alone();
    Program::archive_command().config(&config).arg(&segment).succeed();
}

/// A key that is wrong for the server itself, which checks signatures.
#[test]
fn b12_a_wrong_secret_is_refused_by_the_server() {
    let mut s3 = S3Site::start();
    let segment = s3.fresh_segment();
    let config = s3.proxied("");
    let keys = harness::S3Keys { secret_access_key: "anothersecretsecret".to_owned(), ..s3.server.keys().clone() };
    // Over the file that the configuration names.
    s3_repository(s3.site.dir(), "s3", "unused", "backups", "pgark", &keys);
    let outcome = Program::archive_command().config(&config).arg("-vv").arg(&segment).fail_with(1);
    assert!(!outcome.stderr.contains("anothersecret"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("hint: "), "{}", outcome.stderr);
}

#[test]
fn c01_an_interrupted_backup_aborts_its_uploads() {
    let mut s3 = S3Site::start();
    s3.site.fill("kept", 40);
    for how in ["terminated session", "cancelled", "SIGTERM"] {
        let backup = slow_backup(&mut s3.site);
        // Pieces have 8 MiB, so some of the first part must be there before there is something to abort.
        wait_until("an upload", Duration::from_secs(60), || (!s3.open_uploads().is_empty()).then_some(()));
        match how {
            "SIGTERM" => backup.signal(Signal::TERM),
            "cancelled" => {
                drop(s3.site.server().psql("SELECT pg_cancel_backend(pid) FROM pg_stat_progress_basebackup"))
            }
            _ => drop(s3.site.server().psql("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_basebackup")),
        }
        let outcome = backup.wait();
        assert_eq!(outcome.code, Some(1), "{how}: {}", outcome.stderr);
        println!("{how}: {}", assert_one_clear_line(&outcome));
        assert!(s3.files().committed().is_empty(), "{how}: {:?}", s3.files().all());
        assert_eq!(s3.open_uploads(), Vec::<String>::new(), "{how}: uploads were left behind");
        s3.site.wait_until_left_alone();
    }
    s3.site.start_backup().succeed();
    assert_eq!(s3.files().committed().len(), 1);
    assert_eq!(s3.open_uploads(), Vec::<String>::new());
    assert_eq!(
        s3.site.restored_answer("restored", None, "SELECT count(*), sum(length(noise)) FROM kept"),
        s3.site.server().psql("SELECT count(*), sum(length(noise)) FROM kept")
    );
}

/// The store hangs in the middle of a backup: a signal still ends it at once, and the server is left alone.
#[test]
fn b24_a_backup_into_a_hanging_store_is_ended_by_a_signal() {
    let mut s3 = S3Site::start();
    s3.site.fill("kept", 40);
    let config = s3.proxied("");
    s3.proxy.add(Fault::always(Trigger::RequestWith("partNumber=".to_owned()), Action::Stall));
    let backup = Program::agent().config(&config).as_test_user().arg("backup").start();
    wait_until("a hanging upload", Duration::from_secs(60), || (s3.proxy.struck() > 0).then_some(()));
    let sent = Instant::now();
    backup.signal(Signal::TERM);
    let outcome = backup.wait();
    assert_eq!((outcome.code, outcome.signal), (Some(1), None), "{}", outcome.stderr);
    assert!(sent.elapsed() < Duration::from_secs(10), "it took {:?}", sent.elapsed());
    assert_one_clear_line(&outcome);
    s3.site.wait_until_left_alone();
    assert!(s3.files().committed().is_empty());
}

/// The store goes away in the middle of a backup.
#[test]
fn a55_a_store_that_goes_away_fails_the_backup_in_time() {
    let mut s3 = S3Site::start();
    s3.site.fill("kept", 40);
    let backup = slow_backup(&mut s3.site);
    s3.server.stop();
    let outcome = backup.wait();
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let line = assert_one_clear_line(&outcome);
    println!("after {:?}: {line}", outcome.duration);
    s3.assert_no_secret(&outcome);
    s3.site.wait_until_left_alone();
    s3.server.start_again();
    assert!(s3.files().committed().is_empty());
    s3.site.start_backup().succeed();
    assert_eq!(s3.files().committed().len(), 1);
}

/// A lost answer to a conditional create, for the archive command: it recognises its own object.
#[test]
fn b10_a_lost_answer_is_recognised() {
    let mut s3 = S3Site::start();
    let segment = s3.fresh_segment();
    let config = s3.proxied("");
    s3.proxy.add(Fault::once(Trigger::RequestWith("PUT /backups".to_owned()), Action::LoseAnswer));
    Program::archive_command().config(&config).arg(&segment).succeed();
    assert_eq!(s3.proxy.struck(), 1);
    let name = segment.file_name().unwrap().to_str().unwrap();
    assert_eq!(s3.files().with(&[name]).len(), 1);
}
