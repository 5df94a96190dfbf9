//! A server that archives into a repository, with the configuration that all three programs share, and the questions
//! that every test of a fault asks in the end.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use harness::{Outcome, PostgresServer, PostgresServerBuilder, Program, ProtectedCluster, TempDir};

use crate::repository_files::RepositoryFiles;

/// Of all tests here: quick, and with parts that are small enough for several in one backup.
const SETTINGS: &str = "[compression]\nlevel = 1\n[backup]\npart_size = \"16MiB\"\n";

/// Made with age-keygen for these tests; it protects nothing.
pub(crate) const PUBLIC_KEY: &str = "age10cmrqenth4cz2gezys9rw5fkarsj26x0swugwmnm0cas4mxp89hq3qmcwx";
const PRIVATE_KEY: &str = "AGE-SECRET-KEY-1YNF2NGK6HWWCXGNRLPRZMVUPQ208KFXRXU8JRNW32CPXALFKJ8YSSA28H9";

/// A protected cluster, with what faults need besides.
pub(crate) struct Site(ProtectedCluster);

impl Deref for Site {
    type Target = ProtectedCluster;

    fn deref(&self) -> &ProtectedCluster {
        &self.0
    }
}

impl DerefMut for Site {
    fn deref_mut(&mut self) -> &mut ProtectedCluster {
        &mut self.0
    }
}

impl Site {
    /// One local repository, and PostgreSQL's archiver delivers into it.
    pub(crate) fn start() -> Self {
        Self(ProtectedCluster::builder().settings(SETTINGS).start())
    }

    /// With an archive command that always fails: the agent soon fetches the backup's WAL itself.
    pub(crate) fn start_with_broken_archiving() -> Self {
        let builder = ProtectedCluster::builder().without_archiving().server(|server| server.archive_command("false"));
        Self(builder.settings(&format!("{SETTINGS}archive_wait = \"1s\"\n")).start())
    }

    /// With other settings of the server.
    pub(crate) fn start_server(change: impl FnOnce(PostgresServerBuilder) -> PostgresServerBuilder) -> Self {
        Self(ProtectedCluster::builder().server(change).settings(SETTINGS).start())
    }

    /// With another repository, as lines of the configuration.
    pub(crate) fn start_with_repository(section: impl FnOnce(&TempDir) -> String) -> Self {
        let builder = ProtectedCluster::builder().settings(SETTINGS);
        let section = section(builder.dir());
        Self(builder.repository(&section).start())
    }

    /// Another configuration of the same cluster: through a proxy, with another repository, or with more settings.
    pub(crate) fn other_config(&self, name: &str, connection: Option<&str>, repository: Option<&str>) -> PathBuf {
        let own = self.server().connection_string();
        let (connection, repository) = (connection.unwrap_or(&own), repository.unwrap_or(self.repositories()));
        let state = self.dir().join("state");
        let text = format!(
            "state_dir = \"{}\"\n[cluster]\nname = \"main\"\nconnection = \"{connection}\"\n{repository}{SETTINGS}",
            state.display()
        );
        self.dir().write(name, format!("{text}archive_wait = \"1s\"\n"))
    }

    /// The configured directory, where the repository is one.
    pub(crate) fn files(&self) -> RepositoryFiles {
        RepositoryFiles::new(&self.repository_dir())
    }

    /// `pgark-agent backup`
    pub(crate) fn start_backup(&self) -> Program {
        self.agent().arg("backup")
    }

    /// `pgark-restore base` into a folder of the test, up to the backup's own end.
    pub(crate) fn base(&self, name: &str) -> Program {
        self.restore()
            .arg("base")
            .arg("--to")
            .arg(self.dir().join(name))
            .args(["--target-immediate", "--target-action=promote"])
    }

    pub(crate) fn list(&self) -> String {
        self.restore().arg("list").succeed().stdout
    }

    /// Restores a backup (the newest without an id), lets PostgreSQL's own tool check the files, recovers it and
    /// returns the answer to `sql`.
    pub(crate) fn restored_answer(&self, name: &str, id: Option<&str>, sql: &str) -> String {
        let mut base = self.base(name);
        if let Some(id) = id {
            base = base.args(["--backup", id]);
        }
        base.succeed();
        let directory = self.dir().join(name);
        self.verify(&directory);
        let mut restored = PostgresServer::start_restored(&directory, self.server().major());
        restored.wait_until_promoted();
        let answer = restored.psql(sql);
        drop(restored);
        drop(std::fs::remove_dir_all(&directory));
        answer
    }

    pub(crate) fn verify(&self, directory: &Path) {
        self.server().run("pg_verifybackup", &["--no-parse-wal".as_ref(), directory.as_os_str()]);
    }

    /// The server has left backup mode, and nothing of the agent stays on it.
    pub(crate) fn wait_until_left_alone(&mut self) {
        self.server_mut().wait_for(
            "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_progress_basebackup),
                    (SELECT count(*) FROM pg_stat_replication)",
            "0|0|0",
        );
    }

    /// A table of about so many megabytes that do not compress.
    pub(crate) fn fill(&self, table: &str, megabytes: u32) {
        // A row is 24 bytes of header, 4 of key and 16 values of 64 bytes; seven fit into a page.
        let rows = megabytes * 128 * 7;
        let noise: Vec<String> = (0..16).map(|part| format!("sha512((i * 16 + {part})::text::bytea)")).collect();
        self.server().psql(&format!(
            "CREATE TABLE {table} AS SELECT i, {} AS noise FROM generate_series(1, {rows}) AS i",
            noise.join(" || ")
        ));
    }

    /// Ends the current segment and waits until it is archived; returns its name.
    pub(crate) fn archive_segment(&self) -> String {
        let name = self.server().psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.archive_all();
        name
    }
}

/// A `[[repository]]` section for a directory that is there.
pub(crate) fn directory_repository(path: &Path) -> String {
    format!("[[repository]]\nname = \"local\"\nurl = \"file://{}\"\n", path.display())
}

/// Lines for a `[[repository]]` section, for both sides.
pub(crate) fn encryption(dir: &TempDir) -> String {
    let identity = dir.write("identity.txt", format!("{PRIVATE_KEY}\n"));
    format!("recipients = [\"{PUBLIC_KEY}\"]\nidentity_file = \"{}\"\n", identity.display())
}

/// One line with the error and nothing that looks like a bug or a secret.
pub(crate) fn assert_one_clear_line(outcome: &Outcome) -> String {
    let errors: Vec<&str> = outcome.stderr.lines().filter(|line| line.contains(": error: ")).collect();
    assert_eq!(errors.len(), 1, "one line was to say what is wrong:\n{}", outcome.stderr);
    assert!(!outcome.stderr.contains("internal error") && !outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    errors[0].to_owned()
}
