//! The proof that counts: a segment that ends now arrives in every repository.

use std::time::{Duration, Instant};

use pgark_command::{Configuration, format_duration};
use pgark_postgres::WalFileName;
use pgark_repository::ClusterRepository;

use super::Connected;
use super::finding::Findings;
use crate::server::{Archiving, ServerError};
use crate::wal_source::missing_in;

const POLL: Duration = Duration::from_millis(250);
/// Also where backups do not wait for the archive at all.
const LEAST_PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn check(
    connected: &Connected,
    configuration: &Configuration,
    places: &[ClusterRepository],
    no_switch: bool,
    findings: &mut Findings,
) {
    if places.is_empty() {
        return;
    }
    let is_delivered = match connected.server.archiving().await {
        Ok(Archiving::On) => true,
        _ => connected.server.is_streaming(&configuration.stream.slot).await.unwrap_or(false),
    };
    if !is_delivered {
        return;
    }
    let segment = match end_segment(connected, no_switch, findings).await {
        Ok(Some(segment)) => segment,
        Ok(None) => return,
        Err(error) => return findings.error("segment", error),
    };
    let Ok(name @ WalFileName::Segment(_)) = segment.parse::<WalFileName>() else { return };
    let patience = configuration.backup.archive_wait.max(LEAST_PATIENCE);
    let started = Instant::now();
    loop {
        match missing_in(places, &name).await {
            Err(error) => return findings.error("segment", error),
            Ok(missing) if missing.is_empty() => {
                let elapsed = format_duration(started.elapsed());
                return findings.ok("segment", format!("{segment} is in every repository, after {elapsed}"));
            }
            Ok(missing) if started.elapsed() > patience => {
                let missing: Vec<String> = missing.iter().map(|place| format!("`{}`", place.name())).collect();
                let elapsed = format_duration(started.elapsed());
                return findings.failure(
                    "segment",
                    format!("{segment} did not arrive in {} within {elapsed}", missing.join(", ")),
                    "see why: SELECT * FROM pg_stat_archiver, the server's log, and journalctl -u pgark-run",
                );
            }
            Ok(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// The name of the last segment that is complete: one that ends now, or the last that was archived.
async fn end_segment(
    connected: &Connected,
    no_switch: bool,
    findings: &mut Findings,
) -> Result<Option<String>, ServerError> {
    let server = &connected.server;
    if !no_switch && server.text("its role", "SELECT pg_is_in_recovery()").await?.as_deref() == Some("f") {
        match server.text("a new segment", "SELECT pg_walfile_name(pg_switch_wal())").await {
            Err(ServerError::Query { source, .. }) if is_denied(&source) => findings.warning(
                "segment",
                "this role may not end a segment, so the last one that was archived has to do",
                "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO the role of cluster.connection",
            ),
            other => return other,
        }
    }
    let last = server.text("pg_stat_archiver", "SELECT last_archived_wal FROM pg_stat_archiver").await?;
    if last.is_none() {
        findings.warning("segment", "no segment was archived yet", "SELECT pg_switch_wal(); then check again");
    }
    Ok(last)
}

fn is_denied(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE)
}
