//! What ends a drill early: SIGINT, SIGTERM and the time limit. Everything that takes long runs against it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use pgark_command::{Configuration, ExitCode, Failure, format_duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Debug)]
pub(crate) struct Stopping {
    reason: watch::Receiver<Option<String>>,
}

impl Stopping {
    /// From now on signals do not end the process.
    pub(crate) fn listen(configuration: &Configuration) -> anyhow::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let limit: Duration = configuration.drill.timeout;
        let (sender, reason) = watch::channel(None);
        tokio::spawn(async move {
            let why = tokio::select! {
                _ = interrupt.recv() => "the drill was ended by SIGINT".to_owned(),
                _ = terminate.recv() => "the drill was ended by SIGTERM".to_owned(),
                () = tokio::time::sleep(limit) => {
                    format!("the drill has not ended within {} (timeout in [drill])", format_duration(limit))
                }
            };
            // Where nobody looks any more, the drill is over.
            drop(sender.send(Some(why)));
            std::future::pending::<()>().await;
        });
        Ok(Self { reason })
    }

    /// Works on something that can be dropped at any time.
    pub(crate) async fn unless<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            failure = self.wait() => Err(failure.into()),
            done = work => done,
        }
    }

    /// Waits for a task that has to be told when to stop, and for its end then too.
    pub(crate) async fn or_tell<T>(&self, stop: &AtomicBool, mut task: JoinHandle<T>) -> anyhow::Result<T> {
        tokio::select! {
            failure = self.wait() => {
                stop.store(true, Ordering::Relaxed);
                // Why it is stopped is known; what it says then does not matter.
                drop(task.await);
                Err(failure.into())
            }
            done = &mut task => done.context("the restore stopped"),
        }
    }

    async fn wait(&self) -> Failure {
        let mut reason = self.reason.clone();
        match reason.wait_for(Option::is_some).await {
            Ok(why) => Failure::new(ExitCode::Failed, why.clone().unwrap_or_default()),
            // The sender lives as long as the runtime.
            Err(_) => std::future::pending().await,
        }
    }
}
