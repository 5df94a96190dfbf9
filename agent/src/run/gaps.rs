//! Segments that are missing in the archive and that the server may still have.
//!
//! A gap comes from an archive command that lied, from a slot that was lost, from a repository that was away, or from one
//! that was added later. Each of them ends all later moments of a restore, so they are looked for again and again: what
//! another repository has is copied, with backups and histories, and the rest comes from the server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pgark_postgres::{Lsn, SegmentName, SegmentSize};
use pgark_repository::ClusterRepository;
use tokio::sync::watch;

use super::destination::Destination;
use super::place::{Path, describe};
use crate::catch_up::{Stock, fill};
use crate::replication::{ConnectionOptions, ReplicationConnection, ReplicationError};
use crate::wal_source::{deliver_histories, fetch_segment};

const INTERVAL: Duration = Duration::from_secs(300);
/// While a repository lacks something.
const SHORT_INTERVAL: Duration = Duration::from_secs(20);

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
        let interval = if destination.is_behind() { SHORT_INTERVAL } else { INTERVAL };
        // An end that comes early means that there may be something to do.
        drop(tokio::time::timeout(interval, destination.catch_up.notified()).await);
    }
}

/// Looks once. What cannot be healed is reported once.
async fn heal(
    options: &ConnectionOptions,
    destination: &Arc<Destination>,
    end: Lsn,
    reported: &mut BTreeSet<u64>,
) -> anyhow::Result<()> {
    let mut connection = ReplicationConnection::connect(options).await?;
    let identity = connection.identify_system().await?;
    let size = SegmentSize::from_setting(&connection.show("wal_segment_size").await?)?;
    let history =
        deliver_histories(&mut connection, &destination.required, identity.timeline, destination.level).await?;
    let path = Path { history, size };
    let left_out = destination.left_out();
    let mut stocks = Stock::of_all(&destination.repositories).await?;
    // Listings of large archives are long: another one only where something has changed.
    if stocks.len() > 1 && fill(&stocks).await {
        stocks = Stock::of_all(&destination.repositories).await?;
    }
    let gaps = gaps(&stocks, &path, end.as_u64() / size.bytes());
    let (mut healed, mut lost) = (Vec::new(), Vec::new());
    for (number, lacking) in gaps {
        let segment = path.segment(number);
        let fetch = fetch_segment(&mut connection, None, segment, size);
        match destination.fill_gap(segment, &lacking, fetch).await {
            Ok(()) => healed.push(number),
            Err(error) if error.downcast_ref::<ReplicationError>().is_some_and(ReplicationError::is_missing_file) => {
                lost.push(number);
                // An error in the middle of a stream may have ended the session.
                connection = ReplicationConnection::connect(options).await?;
                connection.identify_system().await?;
            }
            Err(error) if lacking.iter().all(ClusterRepository::is_optional) => {
                let error: &(dyn std::error::Error + 'static) = error.as_ref();
                tracing::info!(%segment, error, "a gap is not filled yet");
            }
            Err(error) => return Err(error.context(format!("fetch {segment}, which is missing in the archive"))),
        }
    }
    connection.close().await;
    if stocks.len() == destination.repositories.len() {
        destination.caught_up(&left_out);
    }
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

/// The numbers of the segments below `end` that a repository lacks on the server's way, and who lacks each.
fn gaps(stocks: &[Stock], path: &Path, end: u64) -> Vec<(u64, Vec<ClusterRepository>)> {
    let on_path = stocks.iter().flat_map(|stock| stock.wal.segments.keys()).filter(|segment| path.is_on(**segment));
    let numbers: BTreeSet<u64> = on_path.map(|segment| segment.number(path.size)).collect();
    let (Some(&first), Some(&last)) = (numbers.first(), numbers.last()) else { return Vec::new() };
    let wanted: BTreeSet<SegmentName> = (first..end.min(last + 1)).map(|number| path.segment(number)).collect();
    let mut gaps: BTreeMap<u64, Vec<ClusterRepository>> = BTreeMap::new();
    for stock in stocks {
        for segment in stock.lacks(&wanted) {
            gaps.entry(segment.number(path.size)).or_default().push(stock.repository.clone());
        }
    }
    gaps.into_iter().collect()
}
