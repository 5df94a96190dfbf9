//! What the server's settings, slots and clock mean for backups and streaming.

use jiff::Timestamp;
use pgark_command::{Configuration, IncrementalMode, format_duration, format_size, printable};

use super::finding::Findings;
use crate::server::{Server, ServerError};

/// Clocks that are further apart make times in plans and in ids misleading; stores refuse at 15 minutes.
const CLOCK_WARNING_MS: i64 = 5_000;
const CLOCK_FAILURE_MS: i64 = 5 * 60_000;
/// An inactive slot that holds more is forgotten rather than resting.
const MUCH_WAL: u64 = 1 << 30;
/// A backup takes two connections, and `run` a third.
const SENDERS: i64 = 3;

pub(super) async fn check(
    server: &Server,
    configuration: &Configuration,
    findings: &mut Findings,
) -> Result<(), ServerError> {
    let version = server.setting("server_version").await?;
    let role = match server.text("its role", "SELECT pg_is_in_recovery()").await?.as_deref() {
        Some("t") => "a standby",
        _ => "a primary",
    };
    findings.ok("connection", format!("PostgreSQL {version}, {role}"));
    check_role(server, findings).await?;
    check_wal_level(server, findings).await?;
    check_safety(server, findings).await?;
    check_senders(server, findings).await?;
    check_slots(server, &configuration.stream.slot, findings).await?;
    check_incremental(server, configuration.backup.incremental, findings).await?;
    let asked = Timestamp::now();
    let clock = server.clock().await?;
    let middle = asked.checked_add(Timestamp::now().duration_since(asked) / 2).unwrap_or(asked);
    compare_clocks("the server", clock, middle, findings);
    Ok(())
}

async fn check_role(server: &Server, findings: &mut Findings) -> Result<(), ServerError> {
    let user = server.text("its user", "SELECT quote_ident(current_user)").await?.unwrap_or_default();
    match server.protected_setting("data_directory").await? {
        Some(_) => findings.ok("role", format!("{user} may read all settings")),
        None => findings.warning(
            "role",
            format!(
                "{user} may not read where the server's configuration lies, so nobody says what a backup leaves out"
            ),
            format!("GRANT pg_read_all_settings TO {user};"),
        ),
    }
    Ok(())
}

async fn check_wal_level(server: &Server, findings: &mut Findings) -> Result<(), ServerError> {
    let level = server.setting("wal_level").await?;
    if level == "minimal" {
        findings.failure(
            "wal_level",
            "wal_level is minimal: the WAL is not enough to restore from",
            "ALTER SYSTEM SET wal_level = 'replica'; then restart the server",
        );
    } else {
        findings.ok("wal_level", format!("wal_level is {level}"));
    }
    let pending = "SELECT string_agg(name, ', ') FROM pg_settings WHERE pending_restart \
                   AND name IN ('wal_level', 'archive_mode', 'max_wal_senders', 'max_replication_slots')";
    if let Some(names) = server.text("its settings", pending).await? {
        findings.warning("settings", format!("{names} was changed and waits for a restart"), "restart the server");
    }
    Ok(())
}

async fn check_incremental(server: &Server, mode: IncrementalMode, findings: &mut Findings) -> Result<(), ServerError> {
    if mode == IncrementalMode::Never {
        return Ok(());
    }
    match server.can_send_changes().await? {
        Ok(()) => findings.ok("incremental", "backups can build on one another"),
        Err(reason) => findings.warning(
            "incremental",
            format!("every backup will be a full one: {reason}"),
            "mend it, or set backup.incremental to \"never\"",
        ),
    }
    Ok(())
}

async fn check_safety(server: &Server, findings: &mut Findings) -> Result<(), ServerError> {
    for (name, what) in [
        ("fsync", "a crash of the host can damage the cluster, and backups of it hold the damage"),
        ("full_page_writes", "a crash of the host can leave torn pages, and a standby cannot be backed up"),
    ] {
        if server.setting(name).await? == "off" {
            let mend = format!("ALTER SYSTEM SET {name} = 'on'; SELECT pg_reload_conf();");
            findings.warning("safety", format!("{name} is off: {what}"), mend);
        }
    }
    if server.setting("data_checksums").await? == "on" {
        findings.ok("safety", "data pages have checksums: damage in the source is noticed while it is backed up");
    } else {
        findings.warning(
            "safety",
            "data pages have no checksums, so damage in the source goes into backups unnoticed",
            "stop the server, then pg_checksums --enable -D its data directory",
        );
    }
    Ok(())
}

async fn check_senders(server: &Server, findings: &mut Findings) -> Result<(), ServerError> {
    let query = "SELECT current_setting('max_wal_senders')::int - count(*) FROM pg_stat_replication";
    let free = server.number("its WAL senders", query).await?;
    if free < SENDERS {
        findings.warning(
            "max_wal_senders",
            format!("{free} more connections for replication are allowed; a backup needs two, and run a third"),
            "ALTER SYSTEM SET max_wal_senders = '10'; then restart the server",
        );
    }
    Ok(())
}

async fn check_slots(server: &Server, own: &str, findings: &mut Findings) -> Result<(), ServerError> {
    let position = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";
    let query = format!(
        "SELECT slot_name, active, coalesce(wal_status, ''), coalesce(pg_wal_lsn_diff({position}, restart_lsn), 0)::bigint \
         FROM pg_replication_slots WHERE NOT temporary ORDER BY 1"
    );
    let rows = server.rows("its replication slots", &query).await?;
    let is_bounded = server.setting("max_slot_wal_keep_size").await? != "-1";
    if !rows.is_empty() && !is_bounded {
        findings.warning(
            "slots",
            "a slot that nobody reads can fill the server's disk: max_slot_wal_keep_size is unlimited",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf(); with what the disk can spare",
        );
    }
    for row in &rows {
        let text = |column: usize| row.get(column).unwrap_or_default();
        let name = printable(text(0));
        let held: u64 = text(3).parse().unwrap_or(0);
        let shown = format_size(held);
        match (text(2), text(1) == "t") {
            ("lost", _) if name == own => findings.failure(
                "slots",
                format!("the server has given up the slot {name}, which held too much WAL: there may be a gap"),
                "systemctl restart pgark-run, which makes it anew; then pgark-agent backup",
            ),
            ("lost", _) => findings.warning(
                "slots",
                format!("the server has given up the slot {name}"),
                format!("SELECT pg_drop_replication_slot('{name}');"),
            ),
            ("unreserved", _) => findings.warning(
                "slots",
                format!("the slot {name} is {shown} behind, and the server is about to give it up"),
                "see why its reader does not keep up, or raise max_slot_wal_keep_size",
            ),
            (_, false) if name == own => findings.warning(
                "slots",
                format!("nobody streams through the slot {name}; it holds {shown} of WAL on the server"),
                format!(
                    "systemctl start pgark-run; or, if it is no longer used: SELECT pg_drop_replication_slot('{name}');"
                ),
            ),
            (_, false) if held > MUCH_WAL => findings.warning(
                "slots",
                format!("the slot {name} is not used and holds {shown} of WAL on the server"),
                format!("SELECT pg_drop_replication_slot('{name}');"),
            ),
            (_, true) if name == own => findings.ok("slots", format!("WAL is streamed through the slot {name}")),
            _ => {}
        }
    }
    Ok(())
}

/// Compares a clock with that of this host at the same moment.
pub(super) fn compare_clocks(whose: &str, clock: Timestamp, own: Timestamp, findings: &mut Findings) {
    let ahead = clock.duration_since(own);
    let milliseconds = i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
    let direction = if milliseconds < 0 { "behind" } else { "ahead of" };
    let message =
        format!("the clock of {whose} is {} {direction} that of this host", format_duration(ahead.unsigned_abs()));
    let mend = "synchronise the clocks of both hosts, as with chrony or systemd-timesyncd";
    match milliseconds.unsigned_abs() {
        off if off >= CLOCK_FAILURE_MS.unsigned_abs() => findings.failure("clock", message, mend),
        off if off >= CLOCK_WARNING_MS.unsigned_abs() => findings.warning("clock", message, mend),
        _ => findings.ok("clock", message),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use jiff::SignedDuration;

    use super::super::finding::Outcome;
    use super::*;

    #[test]
    fn g08_a_clock_that_is_off_is_found_in_both_directions() {
        let own = Timestamp::UNIX_EPOCH;
        for (seconds, expected) in [
            (0, Outcome::Ok),
            (-4, Outcome::Ok),
            (6, Outcome::Warning),
            (-6, Outcome::Warning),
            (301, Outcome::Failure),
            (-301, Outcome::Failure),
        ] {
            let mut findings = Findings::default();
            compare_clocks("it", own + SignedDuration::from_secs(seconds), own, &mut findings);
            assert_eq!(findings.count(expected), 1, "{seconds}");
        }
    }
}
