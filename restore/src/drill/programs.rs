//! PostgreSQL's own programs, of the version that a backup needs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgark_command::{ExitCode, Failure};

/// Where they are, and exactly which ones.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) directory: PathBuf,
    /// As `15.20`.
    pub(crate) version: String,
}

impl Programs {
    /// Looks for the programs of a major version: in `given` only, or else where packages put them and in `path`.
    pub(crate) fn find(major: u32, given: Option<&Path>, path: Option<&OsStr>) -> Result<Self, Failure> {
        let usual = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")];
        let usual = usual.into_iter().chain(["/usr/local/pgsql/bin".to_owned()]).map(PathBuf::from);
        let candidates: Vec<PathBuf> = match given {
            Some(directory) => vec![directory.to_path_buf()],
            None => usual.chain(path.into_iter().flat_map(std::env::split_paths)).collect(),
        };
        let mut others = Vec::new();
        for directory in &candidates {
            match version(&directory.join("postgres")) {
                Some(version) if major_of(&version) == Some(major) => {
                    return Ok(Self { directory: directory.clone(), version });
                }
                Some(version) => others.push(format!("{} in {}", version, directory.display())),
                None => {}
            }
        }
        let places: Vec<String> = candidates.iter().map(|directory| directory.display().to_string()).collect();
        let found = if others.is_empty() { String::new() } else { format!("; there is {}", others.join(", ")) };
        let message = format!("PostgreSQL {major} is not installed here: looked in {}{found}", places.join(", "));
        let hint = format!(
            "install the server of PostgreSQL {major}, or name the directory of its programs with --bin-dir or bin_dir \
             in [drill]"
        );
        Err(Failure::new(ExitCode::Usage, message).with_hint(hint))
    }

    /// A program that may or may not be installed.
    pub(crate) fn optional(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.join(name)).filter(|path| path.is_file())
    }
}

/// `15.20` of `postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    Some(version.to_owned())
}

fn major_of(version: &str) -> Option<u32> {
    let digits = version.find(|character: char| !character.is_ascii_digit()).unwrap_or(version.len());
    version.get(..digits)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_right_version_is_found_and_what_is_missing_is_said() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("postgres");
        std::fs::write(&program, "#!/bin/sh\necho 'postgres (PostgreSQL) 97.3 (Debian 97.3-1)'\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = Some(place.path().as_os_str());
        assert_eq!(Programs::find(97, None, path).unwrap().version, "97.3");
        assert_eq!(Programs::find(97, Some(place.path()), None).unwrap().directory, place.path());
        let refused = Programs::find(98, None, path).unwrap_err().to_string();
        assert!(refused.contains("PostgreSQL 98 is not installed here"), "{refused}");
        assert!(refused.contains(&format!("there is 97.3 in {}", place.path().display())), "{refused}");
        assert!(Programs::find(97, Some(Path::new("/nonexistent")), path).is_err());
        assert_eq!(["19devel", "9.6.1", "x"].map(major_of), [Some(19), Some(9), None]);
    }
}
