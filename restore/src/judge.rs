//! From this crate's errors to exit codes and hints.

use std::error::Error;

use pgark_command::{ExitCode, Verdict, judge_repository};
use pgark_postgres::AutoConfError;

use crate::catalogue::CatalogueError;
use crate::destination::DestinationError;
use crate::drill::ThrowawayError;
use crate::extract::ExtractError;
use crate::fetch_wal::FetchError;
use crate::plan::PlanError;
use crate::reach::ReachError;
use crate::target::TargetError;

/// What follows from one link of an error chain.
pub fn judge(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let verdict = |code, hint: Option<String>| Some(Verdict { code, hint });
    if let Some(error) = error.downcast_ref::<PlanError>() {
        let code = match error {
            PlanError::Unreadable { is_newer: true, .. } => ExitCode::Usage,
            PlanError::Unreadable { .. } => ExitCode::Damaged,
            _ => ExitCode::Unreachable,
        };
        return verdict(code, error.hint());
    }
    if let Some(error) = error.downcast_ref::<ReachError>() {
        return match error {
            ReachError::Repository(error) => judge_repository(error),
            ReachError::Damaged { .. } => verdict(ExitCode::Damaged, error.hint()),
            _ => verdict(ExitCode::Unreachable, error.hint()),
        };
    }
    if let Some(error) = error.downcast_ref::<TargetError>() {
        return verdict(ExitCode::Usage, error.hint().map(str::to_owned));
    }
    if let Some(error) = error.downcast_ref::<DestinationError>() {
        return match error {
            DestinationError::NoSpace { .. } | DestinationError::Unreadable { .. } => {
                verdict(ExitCode::Failed, error.hint())
            }
            _ => verdict(ExitCode::Usage, error.hint()),
        };
    }
    if let Some(error) = error.downcast_ref::<ThrowawayError>() {
        let hint = error.hint();
        return verdict(if hint.is_some() { ExitCode::Usage } else { ExitCode::Failed }, hint);
    }
    if let Some(error) = error.downcast_ref::<CatalogueError>() {
        return match error {
            CatalogueError::Repository(error) => judge_repository(error),
            CatalogueError::Empty { .. } => verdict(
                ExitCode::Unreachable,
                Some("check the url of the repository, whether it is mounted, and the name of the cluster".to_owned()),
            ),
            CatalogueError::UnknownSystem { .. } => verdict(ExitCode::Unreachable, None),
        };
    }
    if let Some(error) = error.downcast_ref::<ExtractError>() {
        return match error {
            ExtractError::Repository(error) => judge_repository(error),
            ExtractError::Io { .. } | ExtractError::Stopped => verdict(ExitCode::Failed, None),
        };
    }
    if let Some(error) = error.downcast_ref::<FetchError>() {
        return match error {
            FetchError::Repository(error) => judge_repository(error),
            FetchError::WrongSegment { .. } | FetchError::OtherCluster { .. } => verdict(ExitCode::Damaged, None),
            FetchError::EmptyRepository { .. } | FetchError::Io { .. } => verdict(ExitCode::Failed, None),
        };
    }
    if error.is::<AutoConfError>() || error.is::<pgark_command::TimeInputError>() {
        return verdict(ExitCode::Usage, None);
    }
    judge_repository(error)
}
