//! Ceph's RADOS Gateway, the strict S3 server of the full tests: conditional creates that are atomic, versioning, object
//! lock, data that survives a kill.
//!
//! It takes seconds and a root user to start, so all tests of a machine share one: the first that asks starts it
//! through `tests/servers/ceph.sh`, and it stays up until `ceph.sh stop` (`make test-full` does that at its end). Every
//! test makes a bucket of its own.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use crate::object_storage::{S3Keys, s3_repository, server_script};
use crate::temp_dir::TempDir;

#[derive(Debug)]
pub struct RgwServer {
    port: u16,
    keys: S3Keys,
}

impl RgwServer {
    /// Starts the gateway where it does not run yet; tests that ask together wait for the one that starts it.
    pub fn shared() -> Self {
        let port = std::env::var("PGARK_TEST_RGW_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(55051);
        control(&["start"]);
        Self { port, keys: S3Keys::of_the_tests() }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn keys(&self) -> &S3Keys {
        &self.keys
    }

    /// Creates a bucket that no other test or run has, and returns its name.
    pub fn create_bucket(&self, topic: &str) -> String {
        let bucket = unique(topic);
        control(&["bucket", &bucket]);
        bucket
    }

    /// The same, with object lock (and with it versioning) on.
    pub fn create_locked_bucket(&self, topic: &str) -> String {
        let bucket = unique(topic);
        control(&["bucket", &bucket, "x-amz-bucket-object-lock-enabled: true"]);
        bucket
    }

    /// Has the bucket lock every object that is stored from now on, for a day.
    pub fn lock_for_a_day(&self, bucket: &str) {
        control(&["lock", bucket]);
    }

    /// A `[[repository]]` section for a bucket.
    pub fn repository(&self, dir: &TempDir, name: &str, bucket: &str) -> String {
        s3_repository(dir, name, &self.endpoint(), bucket, "pgark", &self.keys)
    }
}

/// The gateway keeps its buckets from run to run, and pids come back.
fn unique(topic: &str) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().map(|elapsed| elapsed.as_nanos()).unwrap_or_default();
    format!("{topic}-{}-{now}", std::process::id())
}

fn control(arguments: &[&str]) {
    let script = server_script("ceph.sh");
    // Its output goes to a file: the servers it starts would hold a pipe open.
    let dir = TempDir::new("ceph-control");
    let path = dir.join("output");
    let file = File::create(&path).and_then(|file| Ok((file.try_clone()?, file)));
    let (output, errors) = file.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    let mut command = Command::new(&script);
    let status = command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(errors).status();
    let status = status.unwrap_or_else(|error| panic!("cannot run {}: {error}", script.display()));
    let said = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(status.success(), "ceph.sh {} failed ({status}):\n{said}", arguments.join(" "));
}
