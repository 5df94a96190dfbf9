//! `pgark-agent expire`, `hold` and `release`: what is kept, and the deletion of the rest.
//!
//! What is kept is decided by `pgark_repository::plan_retention`, which touches nothing. Here the repository is read for
//! it, the plan is shown and carried out. Each repository, and in it each system identifier, is looked at on its own: a
//! backup never counts for another cluster, and what one repository holds says nothing about another one.

mod carry_out;
mod hold;
mod report;
mod stored;

use std::collections::BTreeSet;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use pgark_command::{
    Configuration, Environment, ExitCode, Failure, GlobalOptions, Overrides, Report, notify_about, open_for_writing,
};
use pgark_repository::{
    BackupId, ClusterRepository, Refusal, Repository, RetentionPlan, RetentionPolicy, plan_retention,
};

pub use self::hold::{HoldArguments, ReleaseArguments, hold, release};

use self::carry_out::Outcome;
pub(crate) use self::report::sentence;
use self::report::{ExpireJson, PlaceJson};
use self::stored::Stored;

/// Arguments of `expire`.
#[derive(Args, Debug)]
pub struct ExpireArguments {
    /// Show what would be kept and deleted, and why, and delete nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Deletes what the policy does not keep.
///
/// # Errors
/// When a repository cannot be read or refuses a deletion: what was deleted until then was to be deleted, and the next
/// call goes on. Also when a backup cannot be read, which keeps everything.
pub async fn expire(
    global: &GlobalOptions,
    environment: &Environment,
    arguments: &ExpireArguments,
) -> anyhow::Result<ExitCode> {
    let configuration = global.configuration(environment, &Overrides::none()).context("read the configuration")?;
    if !arguments.dry_run {
        notify_about("expire", &configuration);
    }
    let policy = configuration.retention.policy;
    let mut report = Report::to_stdout();
    let mut json = ExpireJson { dry_run: arguments.dry_run, repositories: Vec::new() };
    let mut failures = Vec::new();
    for repository in open_for_writing(&global.repositories(environment, &configuration)?)? {
        let places = match places(&repository, &configuration).await {
            Ok(places) => places,
            Err(error) => {
                missed(&repository, error, &mut failures);
                continue;
            }
        };
        for place in places {
            let expired = match Expiry::plan(place, &policy).await {
                Ok(expiry) => {
                    if !arguments.json {
                        report::write_plan(&mut report, &expiry)?;
                    }
                    failures.extend(expiry.failure());
                    if arguments.dry_run { Ok((expiry, None)) } else { expiry.carry_out(&policy).await }
                }
                Err(error) => Err(error),
            };
            match expired {
                Ok((expiry, outcome)) if arguments.json => {
                    json.repositories.push(PlaceJson::new(&expiry, outcome.as_ref()));
                }
                Ok((expiry, outcome)) => report::write_outcome(&mut report, &expiry, outcome.as_ref())?,
                Err(error) => missed(&repository, error, &mut failures),
            }
        }
    }
    if arguments.json {
        report.json("expire", &json)?;
    }
    one_of(failures).map_or(Ok(ExitCode::Done), Err)
}

/// The clusters of this name in a repository.
async fn places(repository: &Repository, configuration: &Configuration) -> anyhow::Result<Vec<ClusterRepository>> {
    let name = &configuration.cluster.name;
    let systems = repository.system_identifiers(name).await.context("read the repository")?;
    systems.into_iter().map(|system| Ok(repository.cluster(name, system)?)).collect()
}

/// One that is not required may be away; it is expired another time.
fn missed(repository: &Repository, error: anyhow::Error, failures: &mut Vec<anyhow::Error>) {
    if repository.is_optional() {
        tracing::warn!(repository = repository.name(), "not expired: {error:#}");
    } else {
        failures.push(error);
    }
}

/// Reports all failures but the first, which is returned: the exit code is its.
fn one_of(failures: Vec<anyhow::Error>) -> Option<anyhow::Error> {
    let mut failures = failures.into_iter();
    let first = failures.next();
    failures.for_each(|error| tracing::error!("{error:#}"));
    first
}

/// Expires what is not kept beside a backup that was just stored. What happens here changes nothing about that backup,
/// so a failure is only said.
pub(crate) async fn after_backup(repositories: &[ClusterRepository], policy: &RetentionPolicy) -> Vec<Expired> {
    let mut all = Vec::new();
    for place in repositories {
        let repository = place.name().to_owned();
        let expired = async {
            let expiry = Expiry::plan(place.clone(), policy).await?;
            match expiry.failure() {
                Some(failure) => Err(failure),
                None => expiry.carry_out(policy).await,
            }
        };
        all.push(match expired.await {
            Ok((_, outcome)) => Expired { repository, outcome, failure: None },
            Err(error) => Expired { repository, outcome: None, failure: Some(format!("{error:#}")) },
        });
    }
    all
}

/// How the expiry of one repository after a backup ended.
pub(crate) struct Expired {
    pub(crate) repository: String,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) failure: Option<String>,
}

/// The plan for one cluster in one repository, and what it was made from.
struct Expiry {
    place: ClusterRepository,
    stored: Stored,
    plan: RetentionPlan,
}

impl Expiry {
    /// Reads what is stored and plans; asks the store about locks of the backups that would be deleted.
    async fn plan(place: ClusterRepository, policy: &RetentionPolicy) -> anyhow::Result<Self> {
        let context =
            || format!("read what repository `{}` holds of system {}", place.name(), place.system_identifier());
        let mut stored = Stored::read(&place).await.with_context(context)?;
        let clock = Timestamp::now();
        let mut plan = plan_retention(&stored.contents, policy, clock);
        let mut asked = BTreeSet::new();
        let next = |plan: &RetentionPlan, asked: &BTreeSet<BackupId>| {
            plan.deleted_backups().map(|backup| &backup.id).find(|id| !asked.contains(*id)).cloned()
        };
        while let Some(id) = next(&plan, &asked) {
            if let Some(words) = place.store().lock_of(&place.keys().backup(&id)).await.with_context(context)? {
                stored.lock(&id, words);
                plan = plan_retention(&stored.contents, policy, clock);
            }
            asked.insert(id);
        }
        Ok(Self { place, stored, plan })
    }

    /// What a person must look at: nothing can be deleted before.
    fn failure(&self) -> Option<anyhow::Error> {
        let refusal = self.plan.refusal.as_ref()?;
        let sentence =
            format!("repository `{}`, system {}: {refusal}", self.place.name(), self.place.system_identifier());
        let (code, hint) = match refusal {
            Refusal::NoBackup => return None,
            Refusal::Unreadable { .. } => (
                if self.stored.has_newer_format { ExitCode::Usage } else { ExitCode::Damaged },
                "look at it with `pgark-restore verify`; docs/runbook.md says how to go on (Nothing expires)",
            ),
            Refusal::NothingToRestore { .. } => {
                (ExitCode::Failed, "take a full backup, and find out with `pgark-restore verify` what is wrong")
            }
        };
        Some(Failure::new(code, sentence).with_hint(hint).into())
    }
}
