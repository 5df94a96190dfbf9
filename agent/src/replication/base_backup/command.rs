//! The command that starts a base backup, in both of its grammars.
//!
//! ```text
//! 13, 14   BASE_BACKUP LABEL 'x' PROGRESS FAST NOWAIT …       a word switches an option from its default
//! 15 on    BASE_BACKUP (LABEL 'x', PROGRESS true, …)          each option has a value
//! ```
//!
//! A server understands its own only, so the version decides.

use super::super::error::ReplicationError;
use super::super::literal;

/// The first version of the grammar in parentheses, and of archives in one COPY.
pub(super) const NEW_GRAMMAR: u32 = 150_000;

/// What to ask of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Written into `backup_label`: printable and not empty.
    pub label: String,
    /// Asks for sizes before the start and for progress messages; the server then measures all files first.
    pub progress: bool,
    /// Asks for an immediate checkpoint instead of one that is spread over minutes.
    pub fast_checkpoint: bool,
    /// The server's own limit in KiB a second, 32 to 1048576.
    pub max_rate_kib: Option<u32>,
    /// Asks for `backup_manifest` with CRC-32C checksums.
    pub manifest: bool,
    /// Makes the server wait until its archive has the last segment: forever if `archive_command` is broken.
    pub wait_for_archive: bool,
    /// Asks for `tablespace_map` in place of symbolic links.
    pub tablespace_map: bool,
    /// Asks for what changed since the backup whose manifest was uploaded; 17 and later.
    pub incremental: bool,
    /// Makes the server check the pages that it reads, where the cluster has data checksums.
    pub verify_checksums: bool,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        Self {
            label: "pgark".to_owned(),
            progress: true,
            fast_checkpoint: false,
            max_rate_kib: None,
            manifest: true,
            wait_for_archive: false,
            tablespace_map: true,
            incremental: false,
            verify_checksums: true,
        }
    }
}

impl BaseBackupOptions {
    /// The command for a server of this version.
    pub(super) fn command(&self, version: u32) -> Result<String, ReplicationError> {
        let label = literal::label(&self.label)?;
        Ok(if version < NEW_GRAMMAR { self.old_command(&label) } else { self.new_command(&label) })
    }

    fn old_command(&self, label: &str) -> String {
        let mut command = format!("BASE_BACKUP LABEL {label}");
        for (word, given) in [
            ("FAST", self.fast_checkpoint),
            ("PROGRESS", self.progress),
            ("NOWAIT", !self.wait_for_archive),
            ("TABLESPACE_MAP", self.tablespace_map),
            ("NOVERIFY_CHECKSUMS", !self.verify_checksums),
        ] {
            if given {
                command.push_str(&format!(" {word}"));
            }
        }
        if let Some(rate) = self.max_rate_kib {
            command.push_str(&format!(" MAX_RATE {rate}"));
        }
        if self.manifest {
            command.push_str(" MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'");
        }
        command
    }

    fn new_command(&self, label: &str) -> String {
        let mut command = format!("BASE_BACKUP (LABEL {label}");
        command.push_str(if self.fast_checkpoint { ", CHECKPOINT 'fast'" } else { ", CHECKPOINT 'spread'" });
        for (name, value) in [
            ("PROGRESS", self.progress),
            ("WAIT", self.wait_for_archive),
            ("TABLESPACE_MAP", self.tablespace_map),
            ("VERIFY_CHECKSUMS", self.verify_checksums),
        ] {
            command.push_str(&format!(", {name} {value}"));
        }
        if let Some(rate) = self.max_rate_kib {
            command.push_str(&format!(", MAX_RATE {rate}"));
        }
        if self.manifest {
            command.push_str(", MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'");
        }
        if self.incremental {
            command.push_str(", INCREMENTAL true");
        }
        command.push(')');
        command
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_new_command_names_every_option() {
        let options = BaseBackupOptions { label: "it's".to_owned(), max_rate_kib: Some(32), ..Default::default() };
        assert_eq!(
            options.command(150_000).unwrap(),
            "BASE_BACKUP (LABEL 'it''s', CHECKPOINT 'spread', PROGRESS true, WAIT false, TABLESPACE_MAP true, \
             VERIFY_CHECKSUMS true, MAX_RATE 32, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        );
    }

    #[test]
    fn the_old_command_has_a_word_where_an_option_differs_from_its_default() {
        let options = BaseBackupOptions { label: "it's".to_owned(), max_rate_kib: Some(32), ..Default::default() };
        assert_eq!(
            options.command(149_999).unwrap(),
            "BASE_BACKUP LABEL 'it''s' PROGRESS NOWAIT TABLESPACE_MAP MAX_RATE 32 \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
        let options = BaseBackupOptions {
            fast_checkpoint: true,
            progress: false,
            wait_for_archive: true,
            tablespace_map: false,
            verify_checksums: false,
            manifest: false,
            ..Default::default()
        };
        assert_eq!(options.command(130_000).unwrap(), "BASE_BACKUP LABEL 'pgark' FAST NOVERIFY_CHECKSUMS");
    }
}
