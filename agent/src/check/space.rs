//! Free space where pgark and the server write, as far as it is on this host.

use std::path::{Path, PathBuf};

use pgark_command::{Configuration, RepositoryConfiguration, Scheme, format_size};

use super::finding::Findings;
use crate::server::Server;

/// Below this, nothing that writes lives for long.
const SCARCE: u64 = 256 << 20;

/// The file system of a directory, or of the nearest one above that exists.
fn free(path: &Path) -> Option<(PathBuf, u64)> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let found = rustix::fs::statvfs(existing).ok()?;
    Some((existing.to_path_buf(), found.f_bavail.saturating_mul(found.f_frsize)))
}

pub(super) fn check_repository(configured: &RepositoryConfiguration, newest: Option<u64>, findings: &mut Findings) {
    if configured.scheme != Scheme::File {
        return;
    }
    let Some((path, free)) = free(Path::new(configured.url.trim_start_matches("file://"))) else { return };
    let message = format!("`{}`: {} has {} free", configured.name, path.display(), format_size(free));
    match newest {
        _ if free < SCARCE => findings.failure("space", message, "free some, or move the repository"),
        Some(size) if free < size => findings.warning(
            "space",
            format!("{message}, and the newest backup has {}", format_size(size)),
            "free some before the next backup: pgark-agent expire --dry-run",
        ),
        _ => findings.ok("space", message),
    }
}

pub(super) fn check_state_dir(configuration: &Configuration, findings: &mut Findings) {
    let path = &configuration.state_dir;
    let Some((existing, free)) = free(path) else { return };
    let message = format!("state_dir {} has {} free", path.display(), format_size(free));
    let is_writable = rustix::fs::access(&existing, rustix::fs::Access::WRITE_OK).is_ok();
    if !is_writable {
        findings.failure(
            "state_dir",
            format!("state_dir {} cannot be written by this user", path.display()),
            format!("install -d -o postgres -g postgres -m 0700 {}", path.display()),
        );
    } else if free < SCARCE {
        findings.warning("state_dir", message, "free some: pgark-agent run keeps the WAL that it receives there");
    } else {
        findings.ok("state_dir", message);
    }
}

/// The disk that a server stops on when archiving fails for long.
pub(super) async fn check_data_directory(server: &Server, findings: &mut Findings) {
    let Ok(Some(directory)) = server.protected_setting("data_directory").await else { return };
    let Some((_, free)) = free(&Path::new(&directory).join("pg_wal")) else { return };
    let message = format!("the file system of pg_wal has {} free", format_size(free));
    match free < SCARCE {
        true => findings.failure("space", message, "free some: a server that cannot write WAL stops"),
        false => findings.ok("space", message),
    }
}
