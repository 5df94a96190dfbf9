//! `pgark-agent run` as the tests start it, wait for it and stop it.

use std::time::{Duration, Instant};

use harness::{PostgresServer, ProtectedCluster, RunningProgram, wait_until};
use rustix::process::Signal;

pub(crate) fn start(cluster: &ProtectedCluster) -> RunningProgram {
    let run = cluster.agent().arg("run").limit(Duration::from_secs(3600)).start();
    run.wait_for_stderr("receiving WAL");
    run
}

/// Stops it in order, and returns what it said.
pub(crate) fn stop(run: RunningProgram) -> String {
    run.signal(Signal::TERM);
    let started = Instant::now();
    let outcome = run.wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(started.elapsed() < Duration::from_secs(10), "stopping took {:?}", started.elapsed());
    outcome.stderr
}

/// Waits until it has said something: how long it tries before is drawn by lot.
pub(crate) fn wait_for_message(run: &RunningProgram, expected: &str) {
    wait_until(&format!("run to say {expected:?}"), Duration::from_secs(60), || {
        run.stderr().contains(expected).then_some(())
    });
}

/// Waits until all that the server has written is acknowledged.
pub(crate) fn wait_until_flushed(limit: Duration, server: &PostgresServer) {
    let written = server.psql("SELECT pg_current_wal_flush_lsn()");
    wait_until("the agent to report the flush", limit, || {
        let query = format!("SELECT count(*) FROM pg_stat_replication WHERE flush_lsn >= '{written}'");
        (server.psql(&query) != "0").then_some(())
    });
}
