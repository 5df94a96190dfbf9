//! The replication slot, which keeps on the server what is not stored yet.

use pgark_postgres::Lsn;

use crate::replication::{ReplicationConnection, ReplicationError, SlotKind};
use crate::server::Server;

/// The name belongs to a slot of another kind.
#[derive(Debug, thiserror::Error)]
#[error("the replication slot `{name}` is not a physical one; choose another name for [stream] slot")]
pub(crate) struct NoPhysicalSlot {
    name: String,
}

/// Whether somebody else streams through the slot.
pub(crate) fn is_active_elsewhere(error: &ReplicationError) -> bool {
    error.sqlstate() == Some("55006")
}

/// Makes sure that the slot is there and holds WAL. Returns from where on it does.
pub(crate) async fn ensure(
    connection: &mut ReplicationConnection,
    server: &Server,
    name: &str,
    was_there: bool,
) -> anyhow::Result<Option<Lsn>> {
    match server.slot(name).await? {
        Some(slot) if !slot.is_physical => return Err(NoPhysicalSlot { name: name.to_owned() }.into()),
        Some(slot) if slot.is_lost => {
            tracing::error!(
                slot = name,
                "the server has given up the slot because it held too much WAL (max_slot_wal_keep_size); making it \
                 anew. If a gap is reported now, take a new backup: pgark-agent backup"
            );
            connection.drop_slot(name).await?;
            connection.create_physical_slot(name, SlotKind::Permanent, true).await?;
        }
        Some(slot) => return Ok(slot.restart_lsn),
        None => {
            if was_there {
                tracing::error!(
                    slot = name,
                    "the slot was dropped; making it anew. If a gap is reported now, take a new backup: pgark-agent backup"
                );
            } else {
                tracing::info!(slot = name, "creating the replication slot");
            }
            connection.create_physical_slot(name, SlotKind::Permanent, true).await?;
        }
    }
    Ok(server.slot(name).await?.and_then(|slot| slot.restart_lsn))
}
