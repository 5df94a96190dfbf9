//! The manners of `pgark-restore`: help, exit codes, bad input, and promise 6 of `wal` on a real local repository.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pgark_postgres::{SegmentName, SegmentSize, SystemIdentifier, TimelineId, WalFileName};
use pgark_repository::{PreparedWalFile, Repository, RepositoryOptions, generate_key_pair};

const SYSTEM: u64 = 7_710_481_341_042_244_658;
const SIZE: usize = 1 << 20;

/// A folder with a configuration for a local repository in it.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        host.configure("");
        std::fs::create_dir(host.path("pg_wal")).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, more: &str) {
        let text =
            format!("[restore]\nprefetch = 0\n[[repository]]\nname = \"local\"\nurl = \"{}\"\n{more}", self.url());
        std::fs::write(self.path("config.toml"), text).unwrap();
    }

    fn url(&self) -> String {
        format!("file://{}", self.path("repository").display())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgark-restore"));
        command.env_clear().current_dir(self.folder.path()).arg("--config").arg(self.path("config.toml"));
        command.args(arguments).output().unwrap()
    }

    fn wal(&self, name: &str, more: &[&str]) -> Output {
        let system = SYSTEM.to_string();
        self.run(&[&["wal", name, "pg_wal/RECOVERYXLOG", "--system-identifier", &system], more].concat())
    }

    /// Archives a file as the archive command does.
    fn archive(&self, name: WalFileName, content: &[u8], recipients: Vec<String>) {
        let options =
            RepositoryOptions { name: "local".to_owned(), url: self.url(), recipients, ..RepositoryOptions::default() };
        let repository = Repository::open(&options).unwrap();
        let cluster = repository.cluster("main", SystemIdentifier::new(SYSTEM)).unwrap();
        let file = PreparedWalFile::prepare(name, content, 1, 1).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(cluster.store_wal_file(&file)).unwrap();
    }

    fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("repository")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found
    }

    /// What lies in pg_wal afterwards: the file or nothing, and never a piece of it.
    fn fetched(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("pg_wal")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn segment(number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId::FIRST, number, SegmentSize::new(SIZE as u64).unwrap())
}

/// A segment of PostgreSQL 15: a header and noise.
fn content(number: u64, system: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE).map(|at| (at * at / 7) as u8).collect();
    bytes[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&(number * SIZE as u64).to_le_bytes());
    bytes[16..24].fill(0);
    bytes[24..32].copy_from_slice(&system.to_le_bytes());
    bytes[32..36].copy_from_slice(&(SIZE as u32).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
    bytes
}

fn archived() -> Host {
    let host = Host::new();
    host.archive(WalFileName::Segment(segment(3)), &content(3, SYSTEM), Vec::new());
    host
}

#[test]
fn help_names_every_command_and_version_works() {
    let host = Host::new();
    let help = host.run(&["--help"]);
    assert_eq!(code(&help), 0);
    let text = String::from_utf8(help.stdout).unwrap();
    for command in ["list", "show", "base", "wal"] {
        assert!(text.contains(&format!("\n  {command} ")), "{text}");
    }
    assert!(String::from_utf8(host.run(&["base", "--help"]).stdout).unwrap().contains("--target-exclusive"));
    assert_eq!(code(&host.run(&["--version"])), 0);
}

#[test]
fn wrong_usage_exits_with_2() {
    let host = Host::new();
    for arguments in [
        &["base"][..],
        &["base", "--to", "x", "--target-lsn", "0/1", "--target-immediate"],
        &["base", "--to", "x", "--target-timeline", "010"],
        &["base", "--to", "x", "--target-time", "now"],
        &["base", "--to", "x", "--target-time", "2026-11-20 02:00 PM"],
        &["base", "--to", "x", "--target-name", "0123456789012345678901234567890123456789012345678901234567890123"],
        &["base", "--to", "x", "--target-xid", "0"],
        &["base", "--to", "x", "--target-exclusive"],
        &["base", "--to", "x", "--target-action", "explode"],
        &["base", "--to", "x", "--tablespace", "16385"],
        &["show", "../../etc/passwd"],
        &["list", "--repository", "nowhere"],
        &["unknown"],
    ] {
        let output = host.run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty());
    }
    assert!(!host.path("x").exists());
}

#[test]
fn nothing_stored_exits_with_3_and_says_what_to_check() {
    let host = Host::new();
    let unmounted = host.run(&["list"]);
    assert_eq!(code(&unmounted), 2, "{}", stderr(&unmounted));
    assert!(stderr(&unmounted).contains("mount it"), "{}", stderr(&unmounted));
    std::fs::create_dir(host.path("repository")).unwrap();
    for arguments in [&["list"][..], &["show", "20261120T020003Z-full"], &["base", "--to", "x"]] {
        let output = host.run(arguments);
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        assert!(stderr(&output).contains("nothing is stored for the cluster `main`"), "{}", stderr(&output));
        assert!(stderr(&output).contains("\nhint: "), "{}", stderr(&output));
    }
    assert!(!host.path("x").exists());
}

#[test]
fn wal_without_a_backup_is_listed_and_not_restorable() {
    let host = archived();
    let list = host.run(&["list", "--json"]);
    assert_eq!(code(&list), 0, "{}", stderr(&list));
    let json: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["system_identifier"], SYSTEM.to_string());
    let base = host.run(&["base", "--to", "x"]);
    assert_eq!(code(&base), 3);
    assert!(stderr(&base).contains("no finished full backup"), "{}", stderr(&base));
}

#[test]
fn d12_a_file_is_put_into_its_place_whole() {
    let host = archived();
    let output = host.wal(&segment(3).to_string(), &[]);
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    assert_eq!(std::fs::read(host.path("pg_wal/RECOVERYXLOG")).unwrap(), content(3, SYSTEM));
    assert_eq!(host.fetched(), ["RECOVERYXLOG"]);
    host.archive("00000002.history".parse().unwrap(), b"1\t0/3000000\tx\n", Vec::new());
    assert_eq!(code(&host.wal("00000002.history", &[])), 0);
    assert_eq!(std::fs::read(host.path("pg_wal/RECOVERYXLOG")).unwrap(), b"1\t0/3000000\tx\n");
}

#[test]
fn d08_only_a_proven_absence_exits_with_1() {
    let host = archived();
    let absent = host.wal(&segment(4).to_string(), &[]);
    assert_eq!((code(&absent), stderr(&absent).as_str()), (1, ""));
    assert_eq!(code(&host.wal("00000002.history", &[])), 1);
    assert!(host.fetched().is_empty());
}

#[test]
fn d08_everything_else_exits_above_125() {
    let host = archived();
    let name = segment(3).to_string();
    let refused = |output: Output, why: &str| {
        assert_eq!(code(&output), 200, "{why}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{why}");
        assert!(host.fetched().is_empty(), "{why}: {:?}", host.fetched());
    };
    refused(host.run(&["wal"]), "usage");
    refused(host.wal("nonsense", &[]), "a name that is none");
    refused(host.wal("../../etc/passwd", &[]), "a path");
    refused(host.run(&["wal", &name, "pg_wal/RECOVERYXLOG", "--repository", "x"]), "an unknown repository");
    refused(host.run(&["wal", &name, "pg_wal/RECOVERYXLOG"]), "no pg_control to tell the cluster");
    refused(host.run(&["wal", &name, "missing/RECOVERYXLOG", "--system-identifier", "7"]), "no directory");

    // An unmounted repository states everything absent.
    std::fs::rename(host.path("repository"), host.path("unmounted")).unwrap();
    refused(host.wal(&name, &[]), "no repository");
    std::fs::create_dir(host.path("repository")).unwrap();
    refused(host.wal(&segment(4).to_string(), &[]), "an empty repository");
    std::fs::remove_dir(host.path("repository")).unwrap();
    std::fs::rename(host.path("unmounted"), host.path("repository")).unwrap();

    std::fs::write(host.path("config.toml"), "nonsense = 1\n").unwrap();
    refused(host.wal(&name, &[]), "a wrong configuration");
    host.configure("");
    assert_eq!(code(&host.wal(&name, &[])), 0);
}

#[test]
fn d12_a_damaged_file_is_never_delivered() {
    let host = archived();
    let object = host.objects().pop().unwrap();
    let good = std::fs::read(&object).unwrap();
    let step = good.len() / 97 + 1;
    for at in (0..good.len()).step_by(step) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&object, &bad).unwrap();
        let output = host.wal(&segment(3).to_string(), &[]);
        if code(&output) == 0 {
            // A flipped bit that zstd ignores changes nothing of the content.
            assert_eq!(std::fs::read(host.path("pg_wal/RECOVERYXLOG")).unwrap(), content(3, SYSTEM));
            std::fs::remove_file(host.path("pg_wal/RECOVERYXLOG")).unwrap();
        } else {
            assert_eq!(code(&output), 200, "byte {at}: {}", stderr(&output));
        }
        assert!(host.fetched().is_empty(), "byte {at}");
    }
    for length in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(&object, &good[..length]).unwrap();
        let output = host.wal(&segment(3).to_string(), &[]);
        assert_eq!(code(&output), 200, "{length} bytes: {}", stderr(&output));
        assert!(host.fetched().is_empty(), "{length} bytes");
    }
}

#[test]
fn a_segment_that_is_not_the_one_of_its_name_is_never_delivered() {
    let host = Host::new();
    host.archive(WalFileName::Segment(segment(3)), &content(4, SYSTEM), Vec::new());
    host.archive(WalFileName::Segment(segment(5)), &content(5, 99), Vec::new());
    host.archive(WalFileName::Segment(segment(6)), &content(6, SYSTEM)[..SIZE / 2], Vec::new());
    for number in [3, 5, 6] {
        let output = host.wal(&segment(number).to_string(), &[]);
        assert_eq!(code(&output), 200, "{number}: {}", stderr(&output));
        assert!(host.fetched().is_empty());
    }
}

#[test]
fn a_missing_or_wrong_key_is_not_an_absence() {
    let host = Host::new();
    let (private, public) = generate_key_pair();
    let (other, _) = generate_key_pair();
    host.archive(WalFileName::Segment(segment(3)), &content(3, SYSTEM), vec![public]);
    let name = segment(3).to_string();
    assert_eq!(code(&host.wal(&name, &[])), 200);
    std::fs::write(host.path("identity"), other).unwrap();
    host.configure(&format!("identity_file = \"{}\"\n", host.path("identity").display()));
    let wrong = host.wal(&name, &[]);
    assert_eq!(code(&wrong), 200);
    assert!(stderr(&wrong).contains("cannot be decrypted"), "{}", stderr(&wrong));
    assert!(host.fetched().is_empty());
    std::fs::write(host.path("identity"), private).unwrap();
    let right = host.wal(&name, &[]);
    assert_eq!(code(&right), 0, "{}", stderr(&right));
}

#[test]
fn d09_a_standby_lives_through_faults_and_hears_of_them() {
    let host = archived();
    let object = host.objects().pop().unwrap();
    std::fs::write(&object, b"nonsense").unwrap();
    for arguments in [&[][..], &["--no-such-option"]] {
        let output = host.wal(&segment(3).to_string(), &[&["--standby"], arguments].concat());
        assert!((1..=125).contains(&code(&output)), "{}", stderr(&output));
        assert!(stderr(&output).contains("error"), "{}", stderr(&output));
    }
    let absent = host.wal(&segment(4).to_string(), &["--standby"]);
    assert_eq!((code(&absent), stderr(&absent).as_str()), (1, ""));
}

#[test]
fn d44_pg_rewind_gives_a_whole_path_and_the_cluster_is_told_from_it() {
    let host = archived();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../postgres/tests/samples/15/pg_control");
    let mut control = std::fs::read(sample).unwrap();
    control.resize(8192, 0);
    control[..8].copy_from_slice(&SYSTEM.to_le_bytes());
    let crc = crc32c::crc32c(&control[..288]);
    control[288..292].copy_from_slice(&crc.to_le_bytes());
    std::fs::create_dir(host.path("global")).unwrap();
    std::fs::write(host.path("global/pg_control"), control).unwrap();
    let name = segment(3).to_string();
    let destination = host.path("pg_wal").join(&name);
    let output = host.run(&["wal", &name, destination.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(host.fetched(), std::slice::from_ref(&name));
    assert_eq!(code(&host.run(&["wal", &name, "pg_wal/RECOVERYXLOG"])), 0);
}
