//! What a program learns from the data directory of the server that runs it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark_postgres::{ControlFile, ControlFileError};

/// Why the control file of a data directory tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The control file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// It is damaged, or of a version that is not known.
    #[error("cannot tell the cluster from {path}")]
    Control {
        /// The control file.
        path: PathBuf,
        /// What is wrong with it.
        source: ControlFileError,
    },
}

/// The data directory to which a file in `pg_wal` belongs, by its path alone: PostgreSQL runs its commands in the data
/// directory and gives `pg_wal/<name>`. Links are not followed, since `pg_wal` may be one.
#[must_use]
pub fn data_directory_of_wal_file(file: &Path) -> PathBuf {
    match file.parent().and_then(Path::parent) {
        Some(directory) if directory != Path::new("") => directory.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Reads `global/pg_control`.
///
/// # Errors
/// When it cannot be read, or is damaged. A running server may be writing it, so a damaged one is read again for some
/// time.
pub fn read_control_file(data_directory: &Path) -> Result<ControlFile, DataDirectoryError> {
    let path = data_directory.join("global/pg_control");
    let mut attempt = 1;
    loop {
        let mut content = Vec::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(64 << 10).read_to_end(&mut content))
            .map_err(|source| DataDirectoryError::Unreadable { path: path.clone(), source })?;
        match ControlFile::parse(&content) {
            Ok(control) => return Ok(control),
            Err(_) if attempt < 5 => std::thread::sleep(Duration::from_millis(50)),
            Err(source) => return Err(DataDirectoryError::Control { path, source }),
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b27_the_data_directory_follows_from_the_path() {
        for (file, directory) in [
            ("pg_wal/000000010000000000000001", "."),
            ("000000010000000000000001", "."),
            ("/data/pg_wal/RECOVERYXLOG", "/data"),
            ("data/pg_wal/x", "data"),
        ] {
            assert_eq!(data_directory_of_wal_file(Path::new(file)), Path::new(directory), "{file}");
        }
    }
}
