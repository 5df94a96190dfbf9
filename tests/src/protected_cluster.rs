//! What nearly every whole-system test begins with: a PostgreSQL server that is protected by pgark as a user would set
//! it up: a configuration, one or more repositories, and the archive command in the server's settings.
//!
//! All programs run as the test user, like the server, so that both may write to a local repository.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::certificates::CertificateAuthority;
use crate::postgres_server::{PostgresServer, PostgresServerBuilder};
use crate::programs::{Program, program_path};
use crate::temp_dir::TempDir;
use crate::wait::wait_until;

/// How long the archiver may take for all that is waiting, on a loaded machine.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(60);

/// The name in the server's certificate; no name service knows it.
const HOST: &str = "db.pgark.test";

/// The authority that its certificate is from.
const ROOT: &str = "root";

/// Whom the agent logs in as over TCP.
const ROLE: &str = "pgark";
const PASSWORD: &str = "correct horse battery staple";

#[derive(Debug)]
pub struct ProtectedCluster {
    /// Stops before its folder goes.
    server: PostgresServer,
    /// How the agent reaches the server.
    connection: String,
    config: PathBuf,
    repositories: String,
    dir: TempDir,
}

#[derive(Debug)]
pub struct ProtectedClusterBuilder {
    dir: TempDir,
    server: PostgresServerBuilder,
    repositories: String,
    settings: String,
    archiving: bool,
    over_tls: bool,
}

impl ProtectedCluster {
    /// PostgreSQL 15 that archives into one local repository called `local`.
    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> ProtectedClusterBuilder {
        ProtectedClusterBuilder {
            dir: TempDir::for_test_user("protected"),
            server: PostgresServer::builder(),
            repositories: String::new(),
            settings: String::new(),
            archiving: true,
            over_tls: false,
        }
    }

    pub fn server(&self) -> &PostgresServer {
        &self.server
    }

    pub fn server_mut(&mut self) -> &mut PostgresServer {
        &mut self.server
    }

    /// A folder of the test user for whatever a test needs: it holds the configuration and the local repository, and
    /// goes away with this value.
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Writes a second configuration for the same cluster with other repositories, such as one with the private key.
    pub fn write_config(&self, name: &str, repositories: &str) -> PathBuf {
        write_config(&self.dir, name, &self.connection, repositories, "")
    }

    /// The `[[repository]]` sections of the configuration.
    pub fn repositories(&self) -> &str {
        &self.repositories
    }

    /// The folder of the local repository.
    pub fn repository_dir(&self) -> PathBuf {
        self.dir.join("repository")
    }

    /// Where the objects of this cluster are in the local repository: `backups/` and `wal/` are in it.
    pub fn cluster_dir(&self) -> PathBuf {
        let identifier = self.server.run("pg_controldata", &["-D", &self.server.data_dir().display().to_string()]);
        let identifier = identifier.lines().find_map(|line| line.strip_prefix("Database system identifier:"));
        let identifier = identifier.unwrap_or_else(|| panic!("pg_controldata names no system identifier")).trim();
        self.repository_dir().join("main").join(identifier)
    }

    /// The archived segments of a timeline in the local repository, as files, in order.
    pub fn archived_segments(&self, timeline: u32) -> Vec<PathBuf> {
        let folder = self.cluster_dir().join(format!("wal/{timeline:08X}"));
        let mut segments = Vec::new();
        for log in entries(&folder) {
            let is_segment = |path: &PathBuf| path.is_file() && path.to_string_lossy().contains(".zst");
            segments.extend(entries(&log).into_iter().filter(is_segment));
        }
        segments.sort();
        segments
    }

    /// Makes the archived segments an hour old: of a gap behind which one was stored just now, it is not certain for some
    /// seconds that it is there for good.
    pub fn age_archive(&self) {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        let timelines = self.archived_timelines();
        for segment in timelines.into_iter().flat_map(|timeline| self.archived_segments(timeline)) {
            let file = fs::File::options().write(true).open(&segment);
            file.and_then(|file| file.set_modified(hour_ago)).unwrap_or_else(|error| panic!("{segment:?}: {error}"));
        }
    }

    fn archived_timelines(&self) -> Vec<u32> {
        let folders = entries(&self.cluster_dir().join("wal")).into_iter();
        folders.filter_map(|folder| u32::from_str_radix(folder.file_name()?.to_str()?, 16).ok()).collect()
    }

    /// `pgark-agent --config …`
    pub fn agent(&self) -> Program {
        Program::agent().config(&self.config).as_test_user()
    }

    /// `pgark-archive-command --config …`, in the data directory, as the server runs it.
    pub fn archive_command(&self) -> Program {
        Program::archive_command().config(&self.config).as_test_user().current_dir(self.server.data_dir())
    }

    /// `pgark-restore --config …`
    pub fn restore(&self) -> Program {
        self.restore_with(&self.config)
    }

    /// `pgark-restore` with another configuration.
    pub fn restore_with(&self, config: &Path) -> Program {
        Program::restore().config(config).as_test_user()
    }

    /// Takes a backup; panics with the messages when it fails. Returns its id.
    pub fn backup(&self) -> String {
        let outcome = self.agent().args(["--quiet", "backup", "--json"]).succeed();
        let id = outcome.stdout.split("\"id\":").nth(1).and_then(|rest| rest.split('"').nth(1));
        id.unwrap_or_else(|| panic!("the summary of the backup names no id:\n{}", outcome.stdout)).to_owned()
    }

    /// Switches to a new segment and waits until everything before it is archived.
    pub fn archive_all(&self) {
        archive_all(&self.server);
    }

    /// Restores into a new folder below [`Self::dir`]; panics with the messages when that fails. Returns the folder.
    pub fn restore_to<S: AsRef<std::ffi::OsStr>>(&self, name: &str, arguments: &[S]) -> PathBuf {
        let to = self.dir.join(name);
        self.restore().args(["--quiet", "base", "--to"]).arg(&to).args(arguments).succeed();
        to
    }

    /// Restores and starts what was restored, without waiting for it.
    pub fn restore_and_start<S: AsRef<std::ffi::OsStr>>(&self, name: &str, arguments: &[S]) -> PostgresServer {
        PostgresServer::start_restored(self.restore_to(name, arguments), self.server.major())
    }
}

/// Switches to a new segment of a server that archives, and waits until everything before it is archived.
pub fn archive_all(server: &PostgresServer) {
    // Without a record in the current segment nothing would be switched.
    let switched = server.psql(
        "SELECT FROM pg_logical_emit_message(false, 'pgark tests', 'end of a segment');
         SELECT pg_walfile_name(pg_switch_wal())",
    );
    let segment = switched.lines().last().unwrap_or_default().to_owned();
    wait_until(&format!("{segment} in the archive"), ARCHIVE_LIMIT, || {
        let archived = server.psql("SELECT last_archived_wal FROM pg_stat_archiver");
        // History files come before segments in the archiver's order, and are not comparable with them.
        (archived.len() >= segment.len() && archived >= segment).then_some(())
    });
}

/// A `[[repository]]` section for a folder `folder` below `dir`, which belongs to the test user.
pub fn local_repository(dir: &TempDir, name: &str, folder: &str) -> String {
    let path = dir.create_dir(folder);
    format!("[[repository]]\nname = \"{name}\"\nurl = \"file://{}\"\n", path.display())
}

impl ProtectedClusterBuilder {
    /// The folder of the cluster, for the secrets of its repositories.
    pub fn dir(&self) -> &TempDir {
        &self.dir
    }

    /// Changes how the server is built.
    pub fn server(mut self, change: impl FnOnce(PostgresServerBuilder) -> PostgresServerBuilder) -> Self {
        self.server = change(self.server);
        self
    }

    /// Adds a `[[repository]]` section. Without any, there is one called `local` in [`ProtectedCluster::repository_dir`].
    pub fn repository(mut self, section: &str) -> Self {
        self.repositories.push_str(section);
        self
    }

    /// Adds other sections of the configuration, such as `[backup]`.
    pub fn settings(mut self, text: &str) -> Self {
        self.settings.push_str(text);
        self
    }

    /// `archive_mode = off`: nothing but the agent brings WAL into the repository.
    pub fn without_archiving(mut self) -> Self {
        self.archiving = false;
        self
    }

    /// The agent connects as a fleet would have it: over TCP with TLS, the server's certificate and name checked, as a
    /// role with no more rights than it needs, whose password (SCRAM-SHA-256, tied to the connection) is in a password
    /// file. Otherwise it is the superuser on the unix socket.
    pub fn over_tls(mut self) -> Self {
        self.over_tls = true;
        let authority = CertificateAuthority::new(&self.dir, ROOT);
        let server = self.server.tls(&authority.server("server", &[HOST]), &authority);
        self.server = server.hba(&format!("hostssl postgres,replication {ROLE} 127.0.0.1/32 scram-sha-256"));
        self
    }

    pub fn start(self) -> ProtectedCluster {
        let over_tls = self.over_tls;
        let mut cluster = self.create();
        cluster.server.start();
        if over_tls {
            cluster.server.psql(&format!(
                "SET password_encryption = 'scram-sha-256';
                 CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD '{PASSWORD}';
                 GRANT pg_read_all_settings TO {ROLE}"
            ));
        }
        cluster
    }

    /// Creates everything without starting the server.
    pub fn create(self) -> ProtectedCluster {
        let Self { dir, mut server, mut repositories, settings, archiving, over_tls } = self;
        if repositories.is_empty() {
            repositories = local_repository(&dir, "local", "repository");
        }
        if archiving {
            let program = program_path("pgark-archive-command");
            let config = dir.join("config.toml");
            server = server.archive_command(&format!("{} --config {} %p", program.display(), config.display()));
        }
        let server = server.create();
        let connection = if over_tls { tls_connection(&dir, &server) } else { server.connection_string() };
        let config = write_config(&dir, "config.toml", &connection, &repositories, &settings);
        ProtectedCluster { server, connection, config, repositories, dir }
    }
}

/// The connection string of a cluster that is reached with TLS, and the password file that it names.
fn tls_connection(dir: &TempDir, server: &PostgresServer) -> String {
    let port = server.port();
    let passwords = dir.write("pgpass", format!("{HOST}:{port}:*:{ROLE}:{PASSWORD}\n"));
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600))
        .unwrap_or_else(|error| panic!("cannot protect {}: {error}", passwords.display()));
    format!(
        "host={HOST} hostaddr=127.0.0.1 port={port} user={ROLE} passfile={} \
         sslmode=verify-full sslrootcert={} channel_binding=require",
        passwords.display(),
        dir.join(format!("{ROOT}.crt")).display()
    )
}

fn write_config(dir: &TempDir, name: &str, connection: &str, repositories: &str, settings: &str) -> PathBuf {
    let state = dir.create_dir("state");
    let state = state.display();
    dir.write(
        name,
        format!("state_dir = \"{state}\"\n\n[cluster]\nname = \"main\"\nconnection = \"{connection}\"\n\n{repositories}\n{settings}"),
    )
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
