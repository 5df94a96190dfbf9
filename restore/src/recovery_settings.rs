//! What a restored server is told about its recovery: settings at the end of `postgresql.auto.conf`, and a signal file.
//!
//! Settings that the source left behind are cleared first, since an old target or a cleanup command of production would
//! act here. Targets that are not meant are set to the empty text as well, because `postgresql.conf` may hold one and
//! two targets stop the server. `restore_command` goes through a shell, `%` has a meaning in it, and the whole is a
//! quoted value of a configuration file: three layers, each quoted here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use pgark_postgres::{AutoConf, AutoConfError, SystemIdentifier, TimelineId};

use crate::target::{RecoveryTarget, Target};

/// Settings of the source that must not act in the restored cluster.
const INHERITED: [&str; 16] = [
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "recovery_min_apply_delay",
    "restore_command",
    "recovery_end_command",
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "trigger_file",
];
/// What must not come out of `postgresql.conf` either.
const EMPTIED: [&str; 7] = [
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_end_command",
    "archive_cleanup_command",
];

/// What the restored server is to do.
#[derive(Clone, Debug)]
pub struct RecoverySettings {
    pub target: Target,
    /// The timeline to follow; nothing means the latest.
    pub timeline: Option<TimelineId>,
    pub mode: RecoveryMode,
    pub archiving: Archiving,
    pub command: RestoreCommand,
}

/// What ends recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryMode {
    /// The target, or the end of the archive: `recovery.signal`.
    Recovery,
    /// Nothing; the server goes on following its primary: `standby.signal`.
    Standby,
}

/// Whether the restored server archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Archiving {
    /// Do not archive: a copy must not write into the archive of the original
    Off,
    /// Leave the settings as they are in the backup
    Keep,
}

/// How the server fetches WAL: this very program, with everything it needs named.
#[derive(Clone, Debug)]
pub struct RestoreCommand {
    /// The absolute path of this program.
    pub program: PathBuf,
    /// The absolute path of the configuration.
    pub config: PathBuf,
    /// The repository, where it is to be one alone; otherwise all of the configuration.
    pub repository: Option<String>,
    pub system_identifier: SystemIdentifier,
}

impl RecoveryMode {
    /// The name of the file that asks for it.
    pub fn signal_file(self) -> &'static str {
        match self {
            Self::Recovery => "recovery.signal",
            Self::Standby => "standby.signal",
        }
    }
}

impl RecoverySettings {
    /// Rewrites the content of `postgresql.auto.conf`.
    pub fn apply(&self, auto_conf: &[u8]) -> Result<Vec<u8>, AutoConfError> {
        let mut conf = AutoConf::new(auto_conf);
        conf.clear(&INHERITED);
        let target = self.target_setting();
        for name in EMPTIED.iter().filter(|name| target.as_ref().is_none_or(|(chosen, _)| chosen != *name)) {
            conf.append(name, "")?;
        }
        if self.archiving == Archiving::Off {
            conf.clear(&["archive_mode"]);
            conf.append("archive_mode", "off")?;
        }
        conf.append("restore_command", self.command.line(self.mode))?;
        match self.timeline {
            Some(timeline) => conf.append("recovery_target_timeline", timeline.to_string())?,
            None => conf.append("recovery_target_timeline", "latest")?,
        }
        if let Some((name, value)) = target {
            conf.append("recovery_target_inclusive", if self.target.inclusive { "on" } else { "off" })?;
            conf.append("recovery_target_action", self.target.action.to_string())?;
            conf.append(name, value)?;
        }
        Ok(conf.into_bytes())
    }

    fn target_setting(&self) -> Option<(&'static str, String)> {
        match &self.target.stop {
            RecoveryTarget::EndOfArchive => None,
            RecoveryTarget::Immediate => Some(("recovery_target", "immediate".to_owned())),
            RecoveryTarget::Time(time) => Some(("recovery_target_time", time.to_string())),
            RecoveryTarget::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
            RecoveryTarget::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
            RecoveryTarget::Name(name) => Some(("recovery_target_name", name.clone())),
        }
    }
}

impl RestoreCommand {
    /// The line for the shell, with `%f` and `%p` for the server to fill in.
    pub fn line(&self, mode: RecoveryMode) -> Vec<u8> {
        let mut line = Vec::new();
        let system_identifier = self.system_identifier.to_string();
        let mut words =
            vec![self.program.as_os_str(), OsStr::new("wal"), OsStr::new("--config"), self.config.as_os_str()];
        if let Some(repository) = &self.repository {
            words.extend([OsStr::new("--repository"), OsStr::new(repository)]);
        }
        words.extend([OsStr::new("--system-identifier"), OsStr::new(&system_identifier)]);
        for word in words {
            quote(word.as_bytes(), &mut line);
            line.push(b' ');
        }
        if mode == RecoveryMode::Standby {
            line.extend_from_slice(b"--standby ");
        }
        // pg_rewind gives the whole path, which may have blanks in it.
        line.extend_from_slice(b"%f \"%p\"");
        line
    }
}

/// Quotes a word for the shell, and its percent signs for the server.
fn quote(word: &[u8], line: &mut Vec<u8>) {
    let is_harmless = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+:@,=".contains(byte);
    if !word.is_empty() && word.iter().all(is_harmless) {
        line.extend_from_slice(word);
        return;
    }
    line.push(b'\'');
    for &byte in word {
        match byte {
            b'\'' => line.extend_from_slice(b"'\\''"),
            b'%' => line.extend_from_slice(b"%%"),
            other => line.push(other),
        }
    }
    line.push(b'\'');
}

#[cfg(test)]
#[path = "recovery_settings/tests.rs"]
mod tests;
