//! Azurite, Microsoft's own emulator of Azure Blob storage, on a free port with a folder of the test.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::object_storage::{azure_repository, installed, server_script};
use crate::server_process::ServerProcess;
use crate::tcp_port::free_tcp_port;
use crate::temp_dir::TempDir;
use crate::test_user::TestUser;

/// The account that every Azurite has, and its key, which its documentation publishes.
pub(crate) const ACCOUNT: &str = "devstoreaccount1";
pub(crate) const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

#[derive(Debug)]
pub struct Azurite {
    port: u16,
    /// Ends before its folder goes.
    _process: ServerProcess,
    _dir: TempDir,
}

impl Azurite {
    /// Starts a server with one container, `backups`.
    pub fn start() -> Self {
        let dir = TempDir::for_test_user("azurite");
        let port = free_tcp_port();
        let node = installed("azurite/node", "install-azurite.sh");
        let mut command = Command::new(&node);
        command.arg(installed("azurite/node_modules/azurite/dist/src/blob/main.js", "install-azurite.sh"));
        command.arg("--location").arg(dir.join("blobs"));
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--silent", "--disableTelemetry"]);
        command.current_dir(dir.path()).env("HOME", dir.path());
        let mut process = ServerProcess::start("Azurite", TestUser::get().run(&mut command), &dir.join("server.log"));
        process.wait_until("its port", Duration::from_secs(60), || TcpStream::connect(("127.0.0.1", port)).ok());

        let mut create = Command::new(&node);
        create.arg(server_script("azure-container.js"));
        create.args([&port.to_string(), ACCOUNT, ACCOUNT_KEY, "backups"]);
        let output = create.output().unwrap_or_else(|error| panic!("cannot run {}: {error}", node.display()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { port, _process: process, _dir: dir }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// With the account, as an emulator wants it in the path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{ACCOUNT}", self.port)
    }

    pub fn account(&self) -> &'static str {
        ACCOUNT
    }

    pub fn account_key(&self) -> &'static str {
        ACCOUNT_KEY
    }

    /// A `[[repository]]` section for container `backups`.
    pub fn repository(&self, dir: &TempDir, name: &str) -> String {
        azure_repository(dir, name, &self.endpoint(), "backups", "pgark")
    }
}
