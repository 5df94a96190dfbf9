//! Segments that are missing in the archive and that the server may still have.
//!
//! A gap comes from an archive command that lied, from a slot that was lost, or from a repository that was added later.
//! Each of them ends all later moments of a restore, so they are looked for again and again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pgark_postgres::{Lsn, SegmentSize};
use tokio::sync::watch;

use super::destination::Destination;
use super::place::{Archived, Path, describe};
use crate::replication::{ConnectionOptions, ReplicationConnection, ReplicationError};
use crate::wal_source::{deliver_histories, fetch_segment};

const INTERVAL: Duration = Duration::from_secs(300);

/// Looks for gaps now and then, forever.
pub(crate) async fn keep_healing(
    options: ConnectionOptions,
    destination: Arc<Destination>,
    durable: watch::Receiver<Lsn>,
) {
    let mut reported = BTreeSet::new();
    loop {
        let end = *durable.borrow();
        if let Err(error) = heal(&options, &destination, end, &mut reported).await {
            let error: &(dyn std::error::Error + 'static) = error.as_ref();
            tracing::warn!(error, "cannot look for gaps in the archive; trying again later");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Looks once. What cannot be healed is reported once.
async fn heal(
    options: &ConnectionOptions,
    destination: &Destination,
    end: Lsn,
    reported: &mut BTreeSet<u64>,
) -> anyhow::Result<()> {
    let mut connection = ReplicationConnection::connect(options).await?;
    let identity = connection.identify_system().await?;
    let size = SegmentSize::from_setting(&connection.show("wal_segment_size").await?)?;
    let history =
        deliver_histories(&mut connection, &destination.repositories, identity.timeline, destination.level).await?;
    let path = Path { history, size };
    let archived = Archived::load(&destination.repositories, &path).await.context("list the archive")?;
    let gaps = archived.gaps(end.as_u64() / size.bytes());
    let (mut healed, mut lost) = (Vec::new(), Vec::new());
    for number in gaps {
        let segment = path.segment(number);
        match fetch_segment(&mut connection, None, segment, size).await {
            Ok(raw) => {
                destination.store_segment(segment, move || Ok(raw)).await?;
                healed.push(number);
            }
            Err(error) if error.downcast_ref::<ReplicationError>().is_some_and(ReplicationError::is_missing_file) => {
                lost.push(number);
                // An error in the middle of a stream may have ended the session.
                connection = ReplicationConnection::connect(options).await?;
                connection.identify_system().await?;
            }
            Err(error) => return Err(error.context(format!("fetch {segment}, which is missing in the archive"))),
        }
    }
    connection.close().await;
    if !healed.is_empty() {
        tracing::info!(segments = describe(&path, &healed), "filled a gap in the archive");
    }
    lost.retain(|number| reported.insert(*number));
    if !lost.is_empty() {
        tracing::error!(
            segments = describe(&path, &lost),
            "missing in the archive, and the server does not have them any more: no restore from an older backup passes \
             this gap; take a new backup: pgark-agent backup"
        );
    }
    Ok(())
}
