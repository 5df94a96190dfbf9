//! The optimised programs with a configuration for a server and a local repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{PostgresServer, TempDir, TestUser};

pub(crate) struct ReleasePrograms {
    dir: TempDir,
    programs: PathBuf,
    config: PathBuf,
}

impl ReleasePrograms {
    /// The programs that the make target has built, for this server; `settings` are further lines of `[backup]`.
    pub(crate) fn new(name: &str, server: &PostgresServer, settings: &str) -> Self {
        let dir = TempDir::for_test_user(name);
        let programs = std::env::var_os("PGARK_BENCH_PROGRAMS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"), PathBuf::from);
        let programs = programs.canonicalize().unwrap_or_else(|error| panic!("make {name} builds them: {error}"));
        let config = format!(
            "state_dir = '{}'\n[cluster]\nname = 'bench'\nconnection = '{}'\n[[repository]]\nname = 'local'\n\
             url = 'file://{}'\n[backup]\n{settings}",
            dir.create_dir("state").display(),
            server.connection_string().replace('\'', "\""),
            dir.create_dir("repository").display(),
        );
        let config = dir.write("config.toml", config);
        Self { dir, programs, config }
    }

    /// A folder that goes away with this value; the repository is `repository` in it.
    pub(crate) fn dir(&self) -> &TempDir {
        &self.dir
    }

    pub(crate) fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join(name));
        TestUser::get().run(&mut command).arg("--config").arg(&self.config).arg("--quiet").args(arguments);
        command
    }
}
