//! Where the programs of a PostgreSQL version are, as `tests/servers/install-postgres.sh` puts them.

use std::path::PathBuf;
use std::process::Command;

#[derive(Debug, Clone)]
pub(crate) struct Installation {
    major: u32,
    bin_dir: PathBuf,
}

/// The newest PostgreSQL that the install script could get: 18, or else 17.
pub fn newest_major() -> u32 {
    let unpacked = |major: u32| unpacked_bin_dir(major).join("postgres").exists();
    if !unpacked(18) && unpacked(17) { 17 } else { 18 }
}

impl Installation {
    pub(crate) fn find(major: u32) -> Self {
        let native = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let unpacked = unpacked_bin_dir(major);
        let bin_dir = [&unpacked, &native].into_iter().find(|dir| dir.join("postgres").exists());
        let Some(bin_dir) = bin_dir else {
            panic!(
                "PostgreSQL {major} is in neither {} nor {}: run tests/servers/install-postgres.sh {major} as root",
                unpacked.display(),
                native.display()
            );
        };
        Self { major, bin_dir: bin_dir.clone() }
    }

    pub(crate) fn major(&self) -> u32 {
        self.major
    }

    pub(crate) fn bin(&self, name: &str) -> PathBuf {
        let path = self.bin_dir.join(name);
        assert!(path.exists(), "PostgreSQL {} has no {name} in {}", self.major, self.bin_dir.display());
        path
    }

    /// A command that sees nothing of the tester's own PostgreSQL settings or language.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin(name));
        for (variable, _) in std::env::vars_os() {
            let foreign = variable.to_str().is_some_and(|name| name.starts_with("PG") || name.starts_with("LC_"));
            if foreign {
                command.env_remove(variable);
            }
        }
        command.env("LC_ALL", "C").env("HOME", "/nonexistent").current_dir("/");
        command
    }
}

fn unpacked_bin_dir(major: u32) -> PathBuf {
    let prefix = crate::object_storage::test_prefix();
    prefix.join(format!("pg{major}/usr/lib/postgresql/{major}/bin"))
}
