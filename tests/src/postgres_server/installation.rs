//! Where the programs of a PostgreSQL version are, as `tests/servers/install-postgres.sh` puts them.

use std::path::PathBuf;
use std::process::Command;

/// What the tests know how to install.
const NEWEST: u32 = 18;

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
        let places = bin_dirs(major);
        let Some(bin_dir) = places.iter().find(|dir| dir.join("postgres").exists()) else {
            panic!(
                "PostgreSQL {major} is in none of {places:?}: run tests/servers/install-postgres.sh {major} as root"
            );
        };
        Self { major, bin_dir: bin_dir.clone() }
    }

    pub(crate) fn major(&self) -> u32 {
        self.major
    }

    /// A program of this version, or of the next newer one that has it: 14 and 16 come without client tools.
    pub(crate) fn bin(&self, name: &str) -> PathBuf {
        let newer = (self.major + 1..=NEWEST).flat_map(bin_dirs);
        let path = [self.bin_dir.clone()].into_iter().chain(newer).map(|dir| dir.join(name)).find(|path| path.exists());
        path.unwrap_or_else(|| panic!("neither PostgreSQL {} nor a newer one that is installed has {name}", self.major))
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

/// Where the programs of a version may be.
fn bin_dirs(major: u32) -> [PathBuf; 2] {
    [unpacked_bin_dir(major), PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))]
}

fn unpacked_bin_dir(major: u32) -> PathBuf {
    let prefix = crate::object_storage::test_prefix();
    prefix.join(format!("pg{major}/usr/lib/postgresql/{major}/bin"))
}
