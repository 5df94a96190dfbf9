//! The agent: everything that writes to the repository, besides the archive command.

mod backup;
mod catch_up;
mod check;
mod consolidate;
mod expire;
mod run;
mod server;
mod stop_signal;
mod wal_source;

pub mod replication;

use std::error::Error;

use pgark_command::{ExitCode, Verdict};
use pgark_repository::RepositoryError;

pub use backup::{BackupArguments, backup};
pub use check::{CheckArguments, check};
pub use consolidate::{ConsolidateArguments, consolidate};
pub use expire::{ExpireArguments, HoldArguments, ReleaseArguments, expire, hold, release};
pub use run::run;
pub use server::ServerError;

/// For the fuzz targets only.
#[doc(hidden)]
pub mod fuzzed {
    pub use crate::backup::{TarPiece, TarStream, TarStreamError};
}

/// What follows from an error, for the exit code and the hint.
#[must_use]
pub fn judge(error: &(dyn Error + 'static)) -> Option<Verdict> {
    if let Some(error) = error.downcast_ref::<replication::ReplicationError>() {
        let usage = matches!(error, replication::ReplicationError::TlsSettings(_));
        let verdict = Verdict::new(if usage { ExitCode::Usage } else { ExitCode::Failed });
        return Some(match error.hint() {
            Some(hint) => verdict.with_hint(hint),
            None => verdict,
        });
    }
    if error.is::<replication::ConnectionStringError>() {
        return Some(Verdict::new(ExitCode::Usage));
    }
    // What arrives is refused before it counts: nothing that is stored is damaged.
    if let Some(RepositoryError::Input(_)) = error.downcast_ref() {
        let hint =
            "nothing was committed; take the backup again, and if this comes back, look at the server and its log";
        return Some(Verdict::new(ExitCode::Failed).with_hint(hint));
    }
    pgark_restore::judge(error)
}
