//! s3s-fs, the light S3 server of the everyday tests: it checks signatures and refuses a second conditional create, and
//! a bucket is a folder, so a test can look at and damage what is stored.
//!
//! Its conditional create checks first and writes then: several of many racing writers succeed. Races are for
//! [`RgwServer`](crate::RgwServer).

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::object_storage::{S3Keys, installed};
use crate::server_process::ServerProcess;
use crate::tcp_port::free_tcp_port;
use crate::temp_dir::TempDir;
use crate::test_user::TestUser;

#[derive(Debug)]
pub struct S3Server {
    dir: TempDir,
    port: u16,
    keys: S3Keys,
    process: Option<ServerProcess>,
}

impl S3Server {
    /// Starts a server with one bucket, `backups`.
    pub fn start() -> Self {
        let dir = TempDir::for_test_user("s3");
        dir.create_dir("buckets");
        let mut server = Self { dir, port: free_tcp_port(), keys: S3Keys::of_the_tests(), process: None };
        server.create_bucket("backups");
        server.start_again();
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap_or_else(|| panic!("the server is stopped")).pid()
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn keys(&self) -> &S3Keys {
        &self.keys
    }

    /// The folder of a bucket; an object is the file of the same name below it.
    pub fn bucket_dir(&self, bucket: &str) -> PathBuf {
        self.dir.join("buckets").join(bucket)
    }

    pub fn create_bucket(&self, bucket: &str) {
        let path = self.bucket_dir(bucket);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        TestUser::get().own(&path);
    }

    /// A `[[repository]]` section for bucket `backups`.
    pub fn repository(&self, dir: &TempDir, name: &str) -> String {
        crate::object_storage::s3_repository(dir, name, &self.endpoint(), "backups", "pgark", &self.keys)
    }

    /// An outage: nothing answers until [`Self::start_again`].
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop(Signal::KILL);
        }
    }

    pub fn start_again(&mut self) {
        let mut command = Command::new(installed("s3s/bin/s3s-fs", "install-s3s.sh"));
        command.args(["--host", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--access-key", &self.keys.access_key_id, "--secret-key", &self.keys.secret_access_key]);
        command.arg(self.dir.join("buckets")).current_dir(self.dir.path());
        let mut process =
            ServerProcess::start("s3s-fs", TestUser::get().run(&mut command), &self.dir.join("server.log"));
        let port = self.port;
        process.wait_until("its port", Duration::from_secs(30), || TcpStream::connect(("127.0.0.1", port)).ok());
        self.process = Some(process);
    }
}
