//! Data folders that initdb made once and that servers are cloned from: a clone takes a third of the time of initdb.
//!
//! Clones share a system identifier. Tests in which two clusters meet in one repository ask for a cluster of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::installation::Installation;
use crate::test_user::TestUser;

/// What initdb decides for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterOptions {
    pub(crate) data_checksums: bool,
    pub(crate) wal_segment_megabytes: u32,
}

/// Makes `data_dir` a fresh cluster, owned by the test user.
pub(crate) fn create_cluster(
    installation: &Installation,
    options: &ClusterOptions,
    data_dir: &Path,
    own_identity: bool,
) {
    if own_identity {
        initdb(installation, options, data_dir);
        return;
    }
    let template = find_or_create_template(installation, options);
    let mut copy = Command::new("cp");
    copy.args(["--archive", "--reflink=auto"]).arg(&template).arg(data_dir);
    run(&mut copy);
}

fn find_or_create_template(installation: &Installation, options: &ClusterOptions) -> PathBuf {
    let user = TestUser::get();
    let cache = PathBuf::from(format!("/tmp/pgark-templates-{}", user.uid));
    let version = run(installation.command("postgres").arg("--version"));
    let version: String = version.chars().filter(|c| c.is_ascii_digit() || *c == '.' || *c == '-').take(12).collect();
    let checksums = if options.data_checksums { "checksums" } else { "plain" };
    let template = cache.join(format!("{version}-{checksums}-{}mb", options.wal_segment_megabytes));

    if let Err(error) = fs::create_dir(&cache) {
        assert!(cache.is_dir(), "cannot create {}: {error}", cache.display());
    } else {
        user.own(&cache);
    }
    // Test processes that start together wait for the one that runs initdb.
    let lock = File::create(template.with_extension("lock"))
        .unwrap_or_else(|error| panic!("cannot lock {}: {error}", template.display()));
    lock.lock().unwrap_or_else(|error| panic!("cannot lock {}: {error}", template.display()));
    if !template.is_dir() {
        let unfinished = template.with_extension("unfinished");
        drop(fs::remove_dir_all(&unfinished));
        initdb(installation, options, &unfinished);
        fs::rename(&unfinished, &template)
            .unwrap_or_else(|error| panic!("cannot name {}: {error}", template.display()));
    }
    template
}

fn initdb(installation: &Installation, options: &ClusterOptions, data_dir: &Path) {
    let mut command = installation.command("initdb");
    command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
    command.arg(format!("--wal-segsize={}", options.wal_segment_megabytes));
    match (options.data_checksums, installation.major()) {
        (true, _) => drop(command.arg("--data-checksums")),
        // Checksums are the default from 18 on, and the switch to refuse them came with it.
        (false, 18..) => drop(command.arg("--no-data-checksums")),
        (false, _) => {}
    }
    command.arg("--pgdata").arg(data_dir);
    run(TestUser::get().run(&mut command));
}

fn run(command: &mut Command) -> String {
    let program = command.get_program().display().to_string();
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
