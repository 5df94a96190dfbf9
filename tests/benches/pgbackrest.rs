//! pgBackRest as a peer, with a local repository: the program that `PGBACKREST` names, or the one on the path.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{PostgresServer, TempDir, TestUser};

pub(crate) struct PgBackRest {
    program: PathBuf,
    dir: TempDir,
}

/// A version such as 2.46.
pub(crate) type Version = (u32, u32);

impl PgBackRest {
    /// Prints which version there is. One that is older than `needed`, which has what is compared, is left out.
    pub(crate) fn find(needed: Version) -> Option<Self> {
        let program = std::env::var_os("PGBACKREST").map_or_else(|| PathBuf::from("pgbackrest"), PathBuf::from);
        let told = Command::new(&program).arg("version").output().ok().filter(|outcome| outcome.status.success());
        let Some((major, minor)) = told.and_then(|outcome| version(&String::from_utf8_lossy(&outcome.stdout))) else {
            println!("pgBackRest is not installed: it is left out; PGBACKREST names a program");
            return None;
        };
        if (major, minor) < needed {
            println!("pgBackRest {major}.{minor} is left out: {}.{} is needed for this", needed.0, needed.1);
            return None;
        }
        println!("the peer is pgBackRest {major}.{minor}");
        Some(Self { program, dir: TempDir::for_test_user("pgbackrest") })
    }

    /// A command of the stanza `bench`, whose cluster is in `data_dir`.
    pub(crate) fn command(&self, repository: &Path, data_dir: &Path, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--stanza=bench", "--config=/dev/null", "--log-level-file=off", "--log-level-console=warn"])
            .arg(format!("--pg1-path={}", data_dir.display()))
            .arg(format!("--repo1-path={}", repository.display()))
            .arg(format!("--lock-path={}", self.dir.join("lock").display()))
            .arg(name);
        command
    }

    /// Prepares an empty repository for a server.
    pub(crate) fn create(&self, repository: &Path, server: &PostgresServer) {
        let mut create = self.of_server(repository, server, "stanza-create");
        let outcome = TestUser::get().run(&mut create).output().expect("pgBackRest starts");
        assert!(outcome.status.success(), "stanza-create: {}", String::from_utf8_lossy(&outcome.stderr));
    }

    /// A backup with two processes and bundles that begins at once.
    pub(crate) fn backup(&self, repository: &Path, server: &PostgresServer, kind: &str, level: u32) -> Command {
        let mut command = self.of_server(repository, server, "backup");
        command.arg(format!("--type={kind}")).arg(format!("--compress-level={level}"));
        command.args(["--process-max=2", "--start-fast", "--repo1-bundle", "--compress-type=zst"]);
        command
    }

    fn of_server(&self, repository: &Path, server: &PostgresServer, name: &str) -> Command {
        let mut command = self.command(repository, server.data_dir(), name);
        command
            .arg(format!("--pg1-port={}", server.port()))
            .arg(format!("--pg1-socket-path={}", server.socket_dir().display()))
            .arg("--pg1-user=postgres");
        command
    }
}

/// A command as the shell takes it, where nothing in it needs quotes.
#[allow(dead_code, reason = "each benchmark takes what it needs")]
pub(crate) fn shell_command(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The version in a line like `pgBackRest 2.59.1`.
fn version(line: &str) -> Option<Version> {
    let mut numbers = line.trim().strip_prefix("pgBackRest ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
