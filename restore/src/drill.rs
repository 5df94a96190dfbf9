//! `pgark-restore drill`: restores a backup to a throw-away directory, starts PostgreSQL on it, lets it recover, asks it
//! whether everything is there, and removes all of it again.
//!
//! Whatever happens in between, no server keeps running and no directory stays behind: both end when their values are
//! dropped, also after SIGINT, SIGTERM and the time limit; what a SIGKILL leaves is removed by the next drill.

mod checks;
mod moment;
mod page;
mod programs;
mod report;
mod server;
mod stopping;
mod throwaway;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use pgark_command::{
    Configuration, Environment, ExitCode, ExitPolicy, Failure, GlobalOptions, Progress, ProgressDisplay, Report,
    Scheme, Side, configuration_path, explain, open_repository,
};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{BackupId, ProofKind, ProvenBackup, ReadSegments};

use self::programs::Programs;
use self::report::{DrillReport, FailureReport, RecoveryReport, Seconds};
use self::server::Server;
use self::stopping::Stopping;
use self::throwaway::Throwaway;
pub(crate) use self::throwaway::ThrowawayError;
use crate::archive::Archive;
use crate::base::{TargetArguments, prove_one};
use crate::catalogue::Catalogue;
use crate::chain::Chain;
use crate::copies::Copies;
use crate::destination::{self, DestinationRequest};
use crate::extract::{Extraction, extract};
use crate::judge::judge;
use crate::plan::{Request, RestorePlan};
use crate::proofs::{self, Finding};
use crate::recovery_settings::{Archiving, RecoveryMode, RecoverySettings, RestoreCommand};
use crate::survey::Survey;
use crate::target::{RecoveryTarget, Target, TargetAction};

/// More connections than this only wait for each other.
const MOST_CHECKS_AT_ONCE: usize = 8;

/// Arguments of `drill`.
#[derive(Args, Debug)]
pub struct DrillArguments {
    #[command(flatten)]
    target: TargetArguments,

    /// Restore to a random moment of all that can be restored; the report names it
    #[arg(long, conflicts_with = "target")]
    random: bool,

    /// Use this backup [default: the newest one that ends before the target]
    #[arg(long, value_name = "ID", conflicts_with = "random")]
    backup: Option<BackupId>,

    /// Restore the cluster with this system identifier [default: the one with the newest backup]
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,

    /// Make the throw-away directory in DIR [default: drill.directory of the configuration]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Take PostgreSQL's programs from DIR [default: drill.bin_dir of the configuration, else the usual places]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// Read N parts at once [default: restore.jobs of the configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,

    /// Keep the directory; the server is stopped all the same
    #[arg(long)]
    keep: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Write the report as a web page to FILE, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command.
pub async fn drill(
    options: &GlobalOptions,
    environment: &Environment,
    configuration: &Configuration,
    arguments: &DrillArguments,
) -> anyhow::Result<ExitCode> {
    refuse_root()?;
    let began = Instant::now();
    let target = arguments.target.parse(None)?;
    let drill = Drill { options, environment, configuration, arguments, stopping: Stopping::listen(configuration)? };
    let mut report = drill.new_report(&target)?;
    let mut stage = Stage::new();
    let outcome = drill.run(target, &mut report, &mut stage).await;
    report.seconds.total = began.elapsed().as_secs_f64();
    report.passed = outcome.is_ok();
    report.failure = outcome.as_ref().err().map(|error| {
        let (reason, verdict) = explain(error, judge);
        FailureReport { stage: stage.name, reason, exit_code: verdict.code.number(ExitPolicy::Ordinary) }
    });
    drill.record(&mut report).await;
    // Whoever waits for the page gets it, also where the drill has failed.
    if let Some(path) = &arguments.html {
        std::fs::write(path, page::page(&report)).with_context(|| format!("write {}", path.display()))?;
    }
    let mut output = Report::to_stdout();
    match arguments.json {
        true => output.json("drill", &report)?,
        false => report.write_text(&mut output)?,
    }
    outcome.map(|()| ExitCode::Done)
}

fn refuse_root() -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let message = "a drill must not run as root, because PostgreSQL refuses to start as root";
    Err(Failure::new(ExitCode::Usage, message)
        .with_hint("run it as the user of the server, as in `sudo -u postgres pgark-restore drill`"))
}

/// Where a drill is, and since when.
struct Stage {
    name: &'static str,
    since: Instant,
}

impl Stage {
    fn new() -> Self {
        Self { name: "plan", since: Instant::now() }
    }

    /// Begins the next stage; returns how long the last one took.
    fn next(&mut self, name: &'static str) -> f64 {
        let now = Instant::now();
        self.name = name;
        now.duration_since(std::mem::replace(&mut self.since, now)).as_secs_f64()
    }
}

struct Drill<'d> {
    options: &'d GlobalOptions,
    environment: &'d Environment,
    configuration: &'d Configuration,
    arguments: &'d DrillArguments,
    stopping: Stopping,
}

/// What is to be restored, and from where.
struct Decision {
    plan: RestorePlan,
    survey: Survey,
    copies: Copies,
    chain: Chain,
    programs: Programs,
}

impl Drill<'_> {
    fn new_report(&self, target: &Target) -> anyhow::Result<DrillReport> {
        Ok(DrillReport {
            passed: false,
            failure: None,
            started: Timestamp::now(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            repository: self.options.repository(self.environment, self.configuration)?.name.clone(),
            cluster: self.configuration.cluster.name.clone(),
            system_identifier: None,
            backup: None,
            target: shown_target(target),
            is_random: self.arguments.random,
            timeline: None,
            server_version: None,
            restored_files: 0,
            restored_bytes: 0,
            wal_segments: 0,
            replayed: Vec::new(),
            recovery: None,
            checks: Vec::new(),
            notes: Vec::new(),
            seconds: Seconds::default(),
            kept: None,
            proof: None,
        })
    }

    async fn run(&self, target: Target, report: &mut DrillReport, stage: &mut Stage) -> anyhow::Result<()> {
        let decided = self.stopping.unless(Box::pin(self.decide(target, report))).await;
        report.seconds.plan = stage.since.elapsed().as_secs_f64();
        let decision = decided?;
        let directory = self.arguments.directory.as_deref().unwrap_or(&self.configuration.drill.directory);
        let throwaway = Throwaway::create(directory, self.arguments.keep)?;
        // What was made is taken down in any case; that a drill failed is more than that its remains could not go.
        let outcome = self.in_directory(&throwaway, decision, report, stage).await;
        let kept = throwaway.finish().context("remove the directory of the drill");
        report.seconds.clean_up += stage.since.elapsed().as_secs_f64();
        outcome?;
        report.kept = kept?;
        Ok(())
    }

    /// Everything that can be known before a file is written.
    async fn decide(&self, target: Target, report: &mut DrillReport) -> anyhow::Result<Decision> {
        let chosen = self.options.repository(self.environment, self.configuration)?;
        let repository = open_repository(chosen, Side::Reading)?;
        let wanted = self.arguments.system_identifier;
        let loaded = Catalogue::load(&repository, &self.configuration.cluster.name, wanted).await;
        let (catalogue, place) = loaded.context("read the repository")?;
        let archive = Archive::of(place.clone());
        report.system_identifier = Some(catalogue.system_identifier);
        let mut target = match self.arguments.random {
            true => moment::random(&catalogue, &archive).await,
            false => target,
        };
        report.target = shown_target(&target);
        if target.stop != RecoveryTarget::EndOfArchive {
            // A server that pauses at its target can only be read; the drill wants it to open.
            target.action = TargetAction::Promote;
        }
        let plan = prove_one(&catalogue, &archive, Request { target, backup: self.arguments.backup.clone() }).await?;
        report.backup = Some(plan.backup.id.clone());
        report.timeline = Some(plan.timeline);
        report.wal_segments = plan.needed_segments().len() as u64;
        report.replayed = whole_segments(&catalogue, &plan);
        let copies = Copies::of(place.clone(), plan.backup.clone());
        let mut survey = copies.survey().await.with_context(|| format!("read the backup {}", plan.backup.id))?;
        let older = plan.chain.iter().map(|older| Copies::of(place.clone(), older.clone())).collect();
        let display = ProgressDisplay::detect(self.options);
        let chain = Chain::prove(&copies, older, &mut survey, self.jobs(), display)
            .await
            .with_context(|| format!("read what {} builds on", plan.backup.id))?;
        let given = self.arguments.bin_dir.as_deref().or(self.configuration.drill.bin_dir.as_deref());
        let path = self.environment.get("PATH");
        let programs = Programs::find(plan.backup.server.major(), given, path.as_deref().map(AsRef::as_ref))?;
        report.server_version = Some(programs.version.clone());
        Ok(Decision { plan, survey, copies, chain, programs })
    }

    async fn in_directory(
        &self,
        throwaway: &Throwaway,
        decision: Decision,
        report: &mut DrillReport,
        stage: &mut Stage,
    ) -> anyhow::Result<()> {
        let Decision { plan, survey, copies, chain, programs } = decision;
        let control = survey.control;
        report.seconds.plan = stage.next("restore");
        (report.restored_files, report.restored_bytes) = (survey.files, survey.layout.bytes);
        let restored = self.restore(throwaway, &plan, survey, (copies, chain)).await;
        report.seconds.restore = stage.next("replay");
        if restored.is_err() {
            stage.name = "restore";
        }
        restored?;
        let drill = &self.configuration.drill;
        let mut server = Server::start(&programs, throwaway, &control, &drill.user, &drill.settings)?;
        let opened = self.stopping.unless(server.wait_until_open()).await;
        let recovered = server.recovered();
        report.recovery =
            Some(RecoveryReport { last_record: recovered.last_record, stopped: recovered.stopped.clone() });
        let opened = opened.and_then(|()| prove_recovered(&plan, &recovered));
        report.seconds.replay = stage.next("check");
        if opened.is_err() {
            stage.name = "replay";
        }
        opened?;
        let jobs = self.jobs().min(MOST_CHECKS_AT_ONCE);
        let (found, notes) = (&mut report.checks, &mut report.notes);
        let checked = self.stopping.unless(checks::run(&server, &programs, drill, jobs, found, notes)).await;
        let checked = checked.and_then(|()| Ok(checks::verdict(&report.checks)?));
        report.seconds.check = stage.next("clean up");
        if checked.is_err() {
            stage.name = "check";
        }
        let stopped = self.stopping.unless(server.stop()).await;
        checked.and(stopped)
    }

    async fn restore(
        &self,
        throwaway: &Throwaway,
        plan: &RestorePlan,
        survey: Survey,
        (copies, chain): (Copies, Chain),
    ) -> anyhow::Result<()> {
        let chosen = self.options.repository(self.environment, self.configuration)?;
        let local = (chosen.scheme == Scheme::File).then(|| PathBuf::from(chosen.url.trim_start_matches("file://")));
        let local: Vec<PathBuf> = local.into_iter().collect();
        let (data, tablespaces) = (throwaway.data(), throwaway.tablespaces());
        let request = DestinationRequest {
            directory: &data,
            tablespaces: &[],
            tablespace_base: Some(&tablespaces),
            repositories: &local,
            delta: false,
        };
        let destination = destination::check(&request, &plan.backup, &survey.layout)?;
        let progress = Progress::start("restore", ProgressDisplay::detect(self.options));
        progress.set_total(plan.raw_bytes());
        let stop = Arc::default();
        let extraction = Extraction {
            copies,
            backup: plan.backup.clone(),
            chain,
            // What was set on the original by ALTER SYSTEM does not act in the drill.
            auto_conf: self.recovery_settings(plan)?.apply(b"").context("write the recovery settings")?,
            survey,
            destination,
            signal_file: RecoveryMode::Recovery.signal_file(),
            jobs: self.jobs(),
            progress: Arc::new(progress),
            stop: Arc::clone(&stop),
        };
        // Its threads write until they are told to stop; nothing may be removed before that.
        self.stopping.or_tell(&stop, tokio::spawn(extract(extraction))).await??;
        Ok(())
    }

    fn recovery_settings(&self, plan: &RestorePlan) -> anyhow::Result<RecoverySettings> {
        let config = configuration_path(self.options.config.as_deref(), self.environment);
        Ok(RecoverySettings {
            target: plan.target.clone(),
            timeline: Some(plan.timeline),
            mode: RecoveryMode::Recovery,
            archiving: Archiving::Off,
            command: RestoreCommand {
                program: std::env::current_exe().context("find out the path of this program")?,
                config: std::path::absolute(&config).with_context(|| format!("make {} absolute", config.display()))?,
                repository: Some(plan.repository.clone()),
                system_identifier: plan.backup.server.system_identifier,
            },
        })
    }

    fn jobs(&self) -> usize {
        self.arguments.jobs.map_or(self.configuration.restore.workers().get(), usize::from)
    }

    /// Keeps what was found, unless the drill never came to look at a backup.
    async fn record(&self, report: &mut DrillReport) {
        let is_about_backup = report.failure.as_ref().is_none_or(|failure| matches!(failure.exit_code, 1 | 3 | 4));
        let (Some(system_identifier), true) = (report.system_identifier, is_about_backup) else { return };
        let told = |id: &BackupId| ProvenBackup { id: id.clone(), passed: report.passed, read: None };
        let finding = Finding {
            kind: ProofKind::Drill,
            seconds: report.seconds.total,
            repository: report.repository.clone(),
            passed: report.passed,
            summary: report.summary(),
            backups: report.backup.iter().map(told).collect(),
            wal: if report.passed { report.replayed.clone() } else { Vec::new() },
        };
        let key = proofs::record(self.configuration, system_identifier, finding).await;
        report.proof = key.map(|key| key.to_string());
    }
}

/// Recovery to the end of the archive has no target that the server could miss: what was archived when the drill
/// began has to be there.
fn prove_recovered(plan: &RestorePlan, recovered: &server::Recovered) -> anyhow::Result<()> {
    let (Some(last), Some(found)) = (&plan.last_transaction, recovered.last_record) else { return Ok(()) };
    if plan.target.stop == RecoveryTarget::EndOfArchive && found < last.lsn {
        let message = format!("recovery ended at {found}, before the last archived transaction at {}", last.lsn);
        return Err(Failure::new(ExitCode::Unreachable, message).into());
    }
    Ok(())
}

/// The segments that the plan replays, by timeline; one that is there in pieces has not ended yet.
fn whole_segments(catalogue: &Catalogue, plan: &RestorePlan) -> Vec<ReadSegments> {
    let mut stretches: Vec<ReadSegments> = Vec::new();
    let needed = plan.needed_segments().iter().map(|segment| segment.name);
    for name in needed.filter(|name| catalogue.wal.segments.contains_key(name)) {
        match stretches.last_mut() {
            Some(stretch) if stretch.last.timeline == name.timeline => stretch.last = name,
            _ => stretches.push(ReadSegments { first: name, last: name }),
        }
    }
    stretches
}

fn shown_target(target: &Target) -> String {
    match target.stop {
        RecoveryTarget::EndOfArchive => "the end of the archive".to_owned(),
        _ => target.to_string(),
    }
}
