//! `pgark-agent run`: receives WAL while the server writes it.
//!
//! One session after the other: connect, see which timeline the server is on, stream from the first segment on that is
//! not in every repository, until the connection or the timeline ends. What arrives is kept in a file of `state_dir`,
//! and stored by a [`Pipeline`]: pieces of the segment that is being written, and each segment as a whole when it is
//! complete. Only what every required repository has is reported to the server as flushed.

mod backoff;
mod destination;
mod gaps;
mod lane;
mod open_segment;
mod pipeline;
mod place;
mod session;
mod slot;

use std::sync::Arc;

use anyhow::Context;
use pgark_command::{Environment, ExitCode, GlobalOptions, Overrides, notify_while, open_for_writing};
use tokio::sync::watch;

use self::backoff::Backoff;
use self::destination::Settings;
use self::session::{Ended, Receiver};
use crate::replication::{ConnectionOptions, ReplicationError};
use crate::stop_signal::stop_signal;

/// Set when the process was asked to end.
pub(crate) type Stop = watch::Receiver<bool>;

/// Receives WAL until a signal ends it.
///
/// # Errors
/// When the first connection is refused, or when the repository holds other WAL under the same names.
pub async fn run(global: &GlobalOptions, environment: &Environment) -> anyhow::Result<ExitCode> {
    let configuration = global.configuration(environment, &Overrides::none()).context("read the configuration")?;
    notify_while("run", &configuration);
    let connection = ConnectionOptions::from_process(configuration.cluster.connection.expose())
        .context("read cluster.connection")?;
    let repositories = open_for_writing(&global.repositories(environment, &configuration)?)?;
    let settings = Arc::new(Settings {
        cluster: configuration.cluster.name.clone(),
        level: configuration.compression.level,
        spool: configuration.state_dir.join("stream"),
        stream: configuration.stream.clone(),
    });
    let mut stop = watch_signals()?;
    let mut receiver = Receiver::new(connection, repositories, settings);
    let mut backoff = Backoff::default();
    let mut is_first = true;
    while !*stop.borrow() {
        let ended = receiver.session(&mut stop).await;
        // What has arrived goes into the repository also when nothing follows it.
        receiver.drain().await?;
        match ended {
            Ok(Ended::Stopped) => break,
            Ok(Ended::Again) => {
                backoff = Backoff::default();
                continue;
            }
            Ok(Ended::ServerShutdown) => tracing::info!("the server shut down; waiting for it"),
            Err(error) => {
                let is_final = is_first && !may_pass(&error);
                if is_final || error.is::<destination::Foreign>() || error.is::<session::OtherSystem>() {
                    return Err(error);
                }
                let cause: &(dyn std::error::Error + 'static) = error.as_ref();
                tracing::warn!(error = cause, hint = hint(&error), "not receiving WAL; trying again");
            }
        }
        is_first = is_first && !receiver.has_streamed();
        if receiver.has_streamed() {
            backoff.calm_down(receiver.streamed_for());
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
    receiver.end().await;
    tracing::info!("stopped");
    Ok(ExitCode::Done)
}

/// Whether waiting may help with an error at the start, so that a service may be started before its server.
fn may_pass(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ReplicationError>() {
        Some(error) => error.is_retryable() || slot::is_active_elsewhere(error),
        None => error.downcast_ref::<slot::NoPhysicalSlot>().is_none(),
    }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    let error = error.downcast_ref::<ReplicationError>()?;
    if slot::is_active_elsewhere(error) {
        return Some("another pgark-agent run uses the slot; stop it, or give each its own [stream] slot".to_owned());
    }
    error.hint()
}

fn watch_signals() -> anyhow::Result<Stop> {
    let stopped = stop_signal()?;
    let (stopping, stop) = watch::channel(false);
    tokio::spawn(async move {
        let name = stopped.await;
        tracing::info!(signal = name, "stopping");
        // Nobody listens any more when the program has ended by itself.
        let _ignored = stopping.send(true);
    });
    Ok(stop)
}
