//! The agent: everything that writes to the repository, besides the archive command.

mod backup;
mod server;

pub mod replication;

use std::error::Error;

use pgark_command::{ExitCode, Verdict, judge_repository};

pub use backup::{BackupArguments, backup};
pub use server::ServerError;

/// What follows from an error, for the exit code and the hint.
#[must_use]
pub fn judge(error: &(dyn Error + 'static)) -> Option<Verdict> {
    if let Some(error) = error.downcast_ref::<replication::ReplicationError>() {
        let verdict = Verdict::new(ExitCode::Failed);
        return Some(match error.hint() {
            Some(hint) => verdict.with_hint(hint),
            None => verdict,
        });
    }
    if error.is::<replication::ConnectionStringError>() {
        return Some(Verdict::new(ExitCode::Usage));
    }
    judge_repository(error)
}
