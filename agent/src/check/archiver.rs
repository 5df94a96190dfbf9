//! Whether the server hands its WAL to this program: the settings, the command that is really set, the configuration
//! that it reads, and how it went so far.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use pgark_command::{Configuration, Environment, Overrides, RepositoryConfiguration, printable};

use super::command_line::ArchiveCommand;
use super::finding::Findings;
use crate::server::{Server, ServerError};

const SET_COMMAND: &str = "ALTER SYSTEM SET archive_command = 'pgark-archive-command %p'; SELECT pg_reload_conf();";

pub(super) async fn check(
    server: &Server,
    configuration: &Configuration,
    chosen: &[&RepositoryConfiguration],
    is_local: bool,
    findings: &mut Findings,
) -> Result<(), ServerError> {
    let mode = server.setting("archive_mode").await?;
    if mode == "off" {
        match server.is_streaming(&configuration.stream.slot).await? {
            true => findings.ok("archive_mode", "archive_mode is off, and WAL is streamed by pgark-agent run"),
            false => findings.failure(
                "archive_mode",
                "archive_mode is off and nobody streams: no WAL is stored, so a backup reaches no later moment",
                format!("ALTER SYSTEM SET archive_mode = 'on'; {SET_COMMAND} then restart the server"),
            ),
        }
        return Ok(());
    }
    findings.ok("archive_mode", format!("archive_mode is {mode}"));
    // The setting does not exist before 15.
    let library = server.text("archive_library", "SELECT current_setting('archive_library', true)").await?;
    if let Some(library) = library.filter(|library| !library.is_empty()) {
        findings.failure(
            "archive_command",
            format!("archive_library is {}, and goes before any archive_command", printable(&library)),
            format!("ALTER SYSTEM RESET archive_library; {SET_COMMAND}"),
        );
    } else {
        let command = server.setting("archive_command").await?;
        check_command(server, &command, configuration, chosen, is_local, findings).await?;
    }
    check_history(server, findings).await
}

async fn check_command(
    server: &Server,
    command: &str,
    configuration: &Configuration,
    chosen: &[&RepositoryConfiguration],
    is_local: bool,
    findings: &mut Findings,
) -> Result<(), ServerError> {
    const CHECK: &str = "archive_command";
    if command.trim().is_empty() || command == "(disabled)" {
        findings.failure(CHECK, "archive_command is empty, so WAL piles up on the server", SET_COMMAND);
        return Ok(());
    }
    let Some(parsed) = ArchiveCommand::parse(command) else {
        // The rest of it may hold a secret.
        let program = printable(command.split_whitespace().next().unwrap_or_default());
        findings.failure(CHECK, format!("archive_command runs `{program}`, not pgark-archive-command"), SET_COMMAND);
        return Ok(());
    };
    if !parsed.takes_file {
        findings.failure(
            CHECK,
            "archive_command does not pass %p, so it does not know which file to ship",
            SET_COMMAND,
        );
        return Ok(());
    }
    let shown = parsed.program.display();
    if !is_local {
        let config = parsed.config.display();
        findings.ok(CHECK, format!("it runs {shown} with {config}, on the server's own host, which was not looked at"));
        return Ok(());
    }
    if parsed.program.is_absolute() && !is_executable(&parsed.program) {
        let mend = format!("install pgark-archive-command as {shown}, or correct archive_command");
        findings.failure(CHECK, format!("archive_command runs {shown}, which is not a program on this host"), mend);
        return Ok(());
    }
    let owner = match server.protected_setting("data_directory").await? {
        Some(directory) => std::fs::metadata(directory).ok().map(|found| found.uid()),
        None => None,
    };
    if let Some((message, mend)) = unreadable(&parsed.config, owner) {
        findings.failure(CHECK, message, mend);
        return Ok(());
    }
    // What the server's own environment adds is not known here.
    let other = match Configuration::load(&parsed.config, &Environment::of_process(), &Overrides::none()) {
        Ok(other) => other,
        Err(error) => {
            findings.error(CHECK, anyhow::Error::new(error).context("read the configuration of archive_command"));
            return Ok(());
        }
    };
    match difference(&parsed, &other, configuration, chosen) {
        Some((message, mend)) => findings.failure(CHECK, message, mend),
        None => findings.ok(CHECK, format!("it runs {shown} with {}", parsed.config.display())),
    }
    Ok(())
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Why the server's user cannot read the configuration. Groups are given the benefit of the doubt.
fn unreadable(config: &Path, server_user: Option<u32>) -> Option<(String, String)> {
    let shown = config.display();
    let found = match std::fs::metadata(config) {
        Ok(found) => found,
        Err(error) => {
            let message = format!("archive_command reads {shown}, which cannot be looked at: {error}");
            return Some((message, format!("create {shown}, or name the right one with --config in archive_command")));
        }
    };
    let owner = server_user?;
    let may_read = match found.uid() == owner {
        true => 0o400,
        false => 0o044,
    };
    if owner == 0 || found.mode() & may_read != 0 {
        return None;
    }
    let message = format!("archive_command reads {shown}, which the server's user (uid {owner}) cannot read");
    Some((message, format!("chown root:postgres {shown}; chmod 0640 {shown}")))
}

/// What the archive command would do otherwise than this configuration says.
fn difference(
    command: &ArchiveCommand,
    other: &Configuration,
    own: &Configuration,
    chosen: &[&RepositoryConfiguration],
) -> Option<(String, String)> {
    let mend = format!("make {} agree with the configuration of the agent", command.config.display());
    if other.cluster.name != own.cluster.name {
        let message =
            format!("archive_command ships for the cluster `{}`, not `{}`", other.cluster.name, own.cluster.name);
        return Some((message, mend));
    }
    let shipped = match other.repositories_named(command.repository.as_deref()) {
        Ok(shipped) => shipped,
        Err(error) => return Some((error.to_string(), mend)),
    };
    let missing = chosen.iter().find(|repository| !shipped.iter().any(|other| other.url == repository.url));
    missing.map(|missing| (format!("archive_command does not ship to `{}` ({})", missing.name, missing.url), mend))
}

async fn check_history(server: &Server, findings: &mut Findings) -> Result<(), ServerError> {
    let query = "SELECT last_failed_wal, failed_count, \
                        last_failed_time > coalesce(last_archived_time, '-infinity'), last_archived_wal \
                 FROM pg_stat_archiver";
    let rows = server.rows("pg_stat_archiver", query).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let text = |column: usize| row.get(column).unwrap_or_default();
    if text(2) == "t" {
        findings.failure(
            "archiving",
            format!("archiving fails: {} was not shipped, after {} failures so far", text(0), text(1)),
            "see the server's log for the reason, which the archive command gives in one line",
        );
    } else if !text(3).is_empty() {
        findings.ok("archiving", format!("the last segment that was archived is {}", text(3)));
    }
    Ok(())
}
