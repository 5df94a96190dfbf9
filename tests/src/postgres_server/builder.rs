//! What a test can choose about a server before it starts.

use std::fs;
use std::path::{Path, PathBuf};

use super::PostgresServer;
use super::installation::Installation;
use super::template::{ClusterOptions, create_cluster};
use crate::certificates::{Certificate, CertificateAuthority};
use crate::tcp_port::free_tcp_port;
use crate::temp_dir::TempDir;
use crate::test_user::TestUser;

/// Settings of every server of the tests. Nothing here survives a crash of the machine, and no test crashes it: killed
/// processes lose nothing without fsync.
const SETTINGS: [(&str, &str); 12] = [
    ("fsync", "off"),
    ("shared_buffers", "64MB"),
    ("max_connections", "40"),
    ("wal_level", "replica"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("log_line_prefix", "%m [%p] %b "),
    ("log_statement", "none"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("dynamic_shared_memory_type", "posix"),
    ("listen_addresses", ""),
];

#[derive(Debug, Clone)]
pub struct PostgresServerBuilder {
    major: u32,
    cluster: ClusterOptions,
    own_identity: bool,
    tcp: bool,
    settings: Vec<(String, String)>,
    hba: String,
}

impl Default for PostgresServerBuilder {
    fn default() -> Self {
        Self {
            major: 15,
            cluster: ClusterOptions { data_checksums: true, wal_segment_megabytes: 16 },
            own_identity: false,
            tcp: false,
            settings: Vec::new(),
            hba: String::new(),
        }
    }
}

impl PostgresServerBuilder {
    /// 15 by default; 13 to 18 are there, and for 18 see [`newest_major`](crate::newest_major).
    pub fn major(mut self, major: u32) -> Self {
        self.major = major;
        self
    }

    /// On by default, in every version.
    pub fn data_checksums(mut self, on: bool) -> Self {
        self.cluster.data_checksums = on;
        self
    }

    /// `initdb --wal-segsize`; 16 by default.
    pub fn wal_segment_megabytes(mut self, megabytes: u32) -> Self {
        self.cluster.wal_segment_megabytes = megabytes;
        self
    }

    /// Runs initdb for this server, so that its system identifier differs from that of the other servers.
    pub fn own_identity(mut self) -> Self {
        self.own_identity = true;
        self
    }

    /// Also listens on a free port of 127.0.0.1.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Also speaks TLS there, with this certificate, and asks clients for one of the authority.
    pub fn tls(self, certificate: &Certificate, authority: &CertificateAuthority<'_>) -> Self {
        self.tcp()
            .setting("ssl", "on")
            .setting("ssl_cert_file", &certificate.certificate.display().to_string())
            .setting("ssl_key_file", &certificate.key.display().to_string())
            .setting("ssl_ca_file", &authority.root().display().to_string())
    }

    /// A line of `postgresql.conf`; later ones win. For a restored directory it goes on the command line.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `archive_mode = on` with this command.
    pub fn archive_command(self, command: &str) -> Self {
        self.setting("archive_mode", "on").setting("archive_command", command)
    }

    /// A line for the top of `pg_hba.conf`; below it everybody on the socket and on 127.0.0.1 is trusted.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push_str(line);
        self.hba.push('\n');
        self
    }

    /// Creates the cluster, starts it and waits until it is ready.
    pub fn start(self) -> PostgresServer {
        let mut server = self.create();
        server.start();
        server
    }

    /// Creates the cluster without starting it.
    pub fn create(self) -> PostgresServer {
        let installation = Installation::find(self.major);
        let dir = TempDir::for_test_user("pg");
        let data_dir = dir.join("data");
        create_cluster(&installation, &self.cluster, &data_dir, self.own_identity);
        let port = if self.tcp { free_tcp_port() } else { 5432 };

        append(&data_dir.join("postgresql.conf"), &self.configuration(dir.path(), port));
        let hba = data_dir.join("pg_hba.conf");
        let trusted = fs::read_to_string(&hba).unwrap_or_else(|error| panic!("cannot read {}: {error}", hba.display()));
        fs::write(&hba, format!("{}{trusted}", self.hba))
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", hba.display()));
        PostgresServer { installation, process: None, dir, data_dir, port, tcp: self.tcp, command_line: Vec::new() }
    }

    /// Starts a directory that was restored, on a private socket, without archiving. Its owner becomes the test user,
    /// for tablespaces too; else nothing in it is touched, and it stays when the server goes. Does not wait.
    pub fn start_restored(self, data_dir: impl AsRef<Path>) -> PostgresServer {
        let data_dir = data_dir.as_ref().to_owned();
        own_with_tablespaces(&data_dir);
        self.start_in(TempDir::for_test_user("restored"), data_dir)
    }

    pub(super) fn start_in(self, dir: TempDir, data_dir: PathBuf) -> PostgresServer {
        let port = if self.tcp { free_tcp_port() } else { 5432 };
        let mut command_line = vec![
            ("unix_socket_directories".to_owned(), dir.path().display().to_string()),
            ("port".to_owned(), port.to_string()),
            ("listen_addresses".to_owned(), if self.tcp { "127.0.0.1" } else { "" }.to_owned()),
            ("archive_mode".to_owned(), "off".to_owned()),
        ];
        command_line.extend(self.settings);
        let installation = Installation::find(self.major);
        let mut server =
            PostgresServer { installation, process: None, dir, data_dir, port, tcp: self.tcp, command_line };
        server.spawn();
        server
    }

    fn configuration(&self, socket_dir: &Path, port: u16) -> String {
        let mut text = String::from("\n# Of the tests.\n");
        let mut line = |name: &str, value: &str| {
            let value = value.replace("'", "''");
            text.push_str(&format!("{name} = '{value}'\n"));
        };
        for (name, value) in SETTINGS {
            line(name, value);
        }
        line("unix_socket_directories", &socket_dir.display().to_string());
        line("port", &port.to_string());
        if self.tcp {
            line("listen_addresses", "127.0.0.1");
        }
        for (name, value) in &self.settings {
            line(name, value);
        }
        text
    }
}

fn append(path: &Path, text: &str) {
    let file = fs::OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

fn own_with_tablespaces(data_dir: &Path) {
    let user = TestUser::get();
    user.own_all(data_dir);
    for entry in fs::read_dir(data_dir.join("pg_tblspc")).into_iter().flatten().flatten() {
        if let Ok(target) = fs::read_link(entry.path()) {
            user.own_all(&target);
        }
    }
}
