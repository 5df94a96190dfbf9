//! pgbench as the load of a test, and the proof that its books balance afterwards.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::postgres_server::PostgresServer;
use crate::wait::wait_until;

/// A pgbench that runs until it is stopped.
#[derive(Debug)]
pub struct Pgbench {
    child: Option<Child>,
}

impl Pgbench {
    pub(crate) fn start(server: &PostgresServer, clients: u32) -> Self {
        let before = history_rows(server);
        let child = server
            .command("pgbench")
            .args(["--no-vacuum", "--time=3600", "--client", &clients.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start pgbench: {error}"));
        // A test that says "under load" must not begin before there is any.
        let pgbench = Self { child: Some(child) };
        wait_until("the first transactions of pgbench", Duration::from_secs(60), || {
            (history_rows(server) > before).then_some(())
        });
        pgbench
    }

    /// Stops the load; panics with its messages when it had ended by itself, as after a failed transaction.
    pub fn stop(mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let early = child.try_wait().unwrap_or_else(|error| panic!("cannot wait for pgbench: {error}"));
        end(&mut child);
        let output = child.wait_with_output().unwrap_or_else(|error| panic!("cannot wait for pgbench: {error}"));
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(early.is_none(), "pgbench ended before it was stopped ({}):\n{messages}", output.status);
    }

    /// Stops the load where its server may already be gone: how pgbench ended is of no interest then.
    pub fn stop_anyhow(mut self) {
        if let Some(mut child) = self.child.take() {
            end(&mut child);
            drop(child.wait());
        }
    }
}

impl PostgresServer {
    /// Checks what pgbench keeps invariant: accounts, tellers, branches and history agree. Returns the number of
    /// transactions in the history.
    pub fn check_pgbench_balances(&self) -> u64 {
        let sums = self.psql(
            "SELECT (SELECT coalesce(sum(abalance), 0) FROM pgbench_accounts), (SELECT coalesce(sum(tbalance), 0) FROM pgbench_tellers),
                    (SELECT coalesce(sum(bbalance), 0) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        );
        let different = sums.split('|').any(|sum| Some(sum) != sums.split('|').next());
        assert!(!different, "the balances of pgbench's accounts, tellers, branches and history differ: {sums}");
        history_rows(self)
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn history_rows(server: &PostgresServer) -> u64 {
    let count = server.psql("SELECT count(*) FROM pgbench_history");
    count.parse().unwrap_or_else(|_| panic!("pgbench_history has {count:?} rows"))
}

fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended by itself; the caller looks at that.
        let _ = kill_process(pid, Signal::TERM);
    }
}
