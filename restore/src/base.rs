//! `pgark-restore base`: plan, prove, check the place, restore.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use pgark_command::{
    Configuration, Environment, ExitCode, GlobalOptions, Progress, ProgressDisplay, Report, RepositoryConfiguration,
    Scheme, Side, TargetTime, configuration_path, format_duration, format_size, machine_zone, open_repository,
    printable,
};
use pgark_postgres::SystemIdentifier;
use pgark_repository::BackupId;
use serde::Serialize;

use crate::archive::Archive;
use crate::catalogue::Catalogue;
use crate::chain::Chain;
use crate::destination::{self, Destination, DestinationRequest, PlacedTablespace};
use crate::extract::{DeltaFigures, Extraction, extract, look};
use crate::included;
use crate::plan::{PlanJson, Request, RestorePlan, plan};
use crate::reach::{ReachError, prove};
use crate::recovery_settings::{Archiving, RecoveryMode, RecoverySettings, RestoreCommand};
use crate::target::{RecoveryTarget, Target, TargetAction, TargetOptions};

/// Arguments of `base`.
#[derive(Args, Debug)]
pub struct BaseArguments {
    /// Restore into DIR, which must be absent or empty, unless --delta is given
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    to: Option<PathBuf>,

    #[command(flatten)]
    target: TargetArguments,

    /// What to do at the target [default: pause]
    #[arg(long, value_enum, value_name = "ACTION", help_heading = TARGET_HEADING)]
    target_action: Option<TargetAction>,

    /// Put the tablespace OID into DIR [default: where it was]
    #[arg(long = "tablespace", value_name = "OID=DIR", value_parser = parse_tablespace)]
    tablespaces: Vec<(u32, PathBuf)>,

    /// Put all other tablespaces below DIR, each into a directory named after its OID
    #[arg(long, value_name = "DIR")]
    tablespace_base: Option<PathBuf>,

    /// Bring back what `backup --include` took along, each directory under its own path below DIR
    ///
    /// DIR must be absent or empty: nothing is put over the configuration of this host.
    #[arg(long, value_name = "DIR")]
    included_to: Option<PathBuf>,

    /// Bring the stopped cluster in DIR to the backup: write what differs, remove what does not belong
    ///
    /// Also goes on with an interrupted restore. Checksums tell what differs. A tablespace stays where DIR has it, unless
    /// it is given another place. WAL in DIR goes too: copy pg_wal away first if it holds some that was not archived.
    /// With --dry-run, the plan says how much would be written and removed.
    #[arg(long, requires = "to")]
    delta: bool,

    /// Make a standby, which goes on following its primary and the archive
    #[arg(long)]
    standby: bool,

    /// Use this backup [default: the newest one that ends before the target]
    #[arg(long, value_name = "ID")]
    backup: Option<BackupId>,

    /// Restore the cluster with this system identifier [default: the one with the newest backup]
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,

    /// Whether the restored server archives its WAL [default: off; with --standby: keep]
    ///
    /// A restored copy would write into the archive of the original. When the copy takes the place of the original,
    /// turn archiving on again: ALTER SYSTEM SET archive_mode = on, then restart.
    #[arg(long, value_enum, value_name = "MODE")]
    archive_mode: Option<Archiving>,

    /// Read N parts at once [default: restore.jobs of the configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,

    /// Print the plan and touch nothing
    #[arg(long)]
    dry_run: bool,

    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

const TARGET_HEADING: &str = "Target options (none: the end of the archive)";

/// Where recovery ends. The options carry the names of PostgreSQL's settings.
#[derive(Args, Debug)]
#[command(next_help_heading = TARGET_HEADING)]
#[group(id = "target")]
pub(crate) struct TargetArguments {
    /// Stop before the first transaction that ended after TIME; without an offset, TIME is in this machine's zone
    #[arg(long, value_name = "TIME")]
    target_time: Option<String>,

    /// Stop at the position LSN, like 16/B374D848
    #[arg(long, value_name = "LSN")]
    target_lsn: Option<String>,

    /// Stop when the transaction XID has ended
    #[arg(long, value_name = "XID")]
    target_xid: Option<String>,

    /// Stop at the restore point NAME, made by pg_create_restore_point()
    #[arg(long, value_name = "NAME")]
    target_name: Option<String>,

    /// Stop as soon as the backup is consistent
    #[arg(long)]
    target_immediate: bool,

    /// Stop just before the target instead of just after it
    #[arg(long)]
    target_exclusive: bool,

    /// Follow this timeline: latest, current (that of the backup) or a decimal number
    #[arg(long, value_name = "TIMELINE")]
    target_timeline: Option<String>,
}

fn parse_tablespace(text: &str) -> Result<(u32, PathBuf), String> {
    let (oid, directory) = text.split_once('=').ok_or("expected OID=DIR, like 16385=/srv/fast")?;
    let oid = oid.parse().map_err(|_| format!("`{oid}` is not the OID of a tablespace"))?;
    if directory.is_empty() {
        return Err("the directory is missing".to_owned());
    }
    Ok((oid, PathBuf::from(directory)))
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct BaseJson {
    plan: PlanJson,
    directory: Option<PathBuf>,
    /// Where each tablespace goes; empty without a directory.
    tablespaces: Vec<TablespaceJson>,
    archive_mode: &'static str,
    signal_file: &'static str,
    /// What differed from the backup; nothing without `--delta`.
    delta: Option<DeltaFigures>,
    restored: bool,
}

#[derive(Serialize)]
struct TablespaceJson {
    oid: u32,
    /// Nothing for one that lies in the data directory itself.
    location: Option<String>,
    /// Where it was.
    original: String,
    is_moved: bool,
}

impl TablespaceJson {
    fn new(placed: &PlacedTablespace, plan: &RestorePlan) -> Self {
        let original = plan.backup.tablespaces.iter().find(|tablespace| tablespace.oid == placed.oid);
        Self {
            oid: placed.oid,
            location: placed.location.as_ref().map(|location| location.display().to_string()),
            original: original.map(|tablespace| tablespace.location.clone()).unwrap_or_default(),
            is_moved: placed.is_moved,
        }
    }
}

/// Runs the command.
pub async fn base(
    options: &GlobalOptions,
    environment: &Environment,
    configuration: &Configuration,
    arguments: &BaseArguments,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let target = arguments.target.parse(arguments.target_action)?;
    let chosen = options.repositories(environment, configuration)?;
    let open = |repository: &&RepositoryConfiguration| open_repository(repository, Side::Reading);
    let repositories = chosen.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let loaded =
        Catalogue::load_all(&repositories, &configuration.cluster.name, arguments.system_identifier, false).await;
    let merged = loaded.context("read the repository")?;
    let archive = merged.archive();
    let request = Request { target, backup: arguments.backup.clone() };
    let plan = prove_one(&merged.catalogue, &archive, request).await?;
    let copies = archive.copies(&plan.backup);
    let mut survey = copies.survey().await.with_context(|| format!("read the backup {}", plan.backup.id))?;
    let jobs = arguments.jobs.map_or(configuration.restore.workers().get(), usize::from);
    let older = plan.chain.iter().map(|older| archive.copies(older)).collect();
    let chain = Chain::prove(&copies, older, &mut survey, jobs, ProgressDisplay::detect(options))
        .await
        .with_context(|| format!("read what {} builds on", plan.backup.id))?;
    let alone = <[_; 1]>::try_from(chosen.clone()).ok().map(|[only]| only.name.clone());
    let settings = recovery_settings(arguments, options, environment, &plan, alone)?;
    let auto_conf = settings.apply(&survey.auto_conf).context("write the recovery settings")?;
    let destination = match &arguments.to {
        None => None,
        Some(directory) => {
            let local = chosen.iter().filter(|repository| repository.scheme == Scheme::File);
            let local: Vec<_> = local.map(|local| PathBuf::from(local.url.trim_start_matches("file://"))).collect();
            let request = DestinationRequest {
                directory,
                tablespaces: &arguments.tablespaces,
                tablespace_base: arguments.tablespace_base.as_deref(),
                repositories: &local,
                delta: arguments.delta,
            };
            Some(destination::check(&request, &plan.backup, &survey.layout)?)
        }
    };
    let included_to = match &arguments.included_to {
        None => None,
        Some(directory) => Some(included::check(directory, destination.as_ref(), &plan.backup)?),
    };
    let output = Output { json: arguments.json, plan: &plan, settings: &settings };
    output.plan(destination.as_ref(), included_to.as_deref())?;
    let placed = destination.iter().flat_map(|destination| &destination.tablespaces);
    let tablespaces: Vec<_> = placed.map(|placed| TablespaceJson::new(placed, &plan)).collect();
    let Some(destination) = destination else {
        output.finish(None, tablespaces, None, false)?;
        return Ok(ExitCode::Done);
    };
    let directory = destination.directory.clone();
    let extraction = Extraction {
        copies,
        backup: plan.backup.clone(),
        chain,
        survey,
        destination,
        auto_conf,
        signal_file: settings.mode.signal_file(),
        jobs,
        progress: Arc::new(Progress::start("restore", ProgressDisplay::detect(options))),
        stop: Arc::default(),
    };
    extraction.progress.set_total(plan.raw_bytes());
    if arguments.dry_run {
        let delta = match arguments.delta {
            true => Some(look(extraction).await.with_context(|| format!("look at {}", directory.display()))?),
            false => None,
        };
        output.delta(delta.as_ref(), "would be ")?;
        output.finish(Some(directory), tablespaces, delta, false)?;
        return Ok(ExitCode::Done);
    }
    if let Some(included_to) = &included_to {
        included::restore(&extraction.copies, &plan.backup, included_to)
            .await
            .with_context(|| format!("bring back the included directories below {}", included_to.display()))?;
    }
    let figures = extract(extraction).await.with_context(|| {
        format!("restore into {} (it cannot be started; go on with --delta or remove it)", directory.display())
    })?;
    let delta = arguments.delta.then_some(figures);
    output.delta(delta.as_ref(), "")?;
    output.finish(Some(directory.clone()), tablespaces, delta, true)?;
    if !arguments.json {
        output.next_steps(&directory, started)?;
    }
    Ok(ExitCode::Done)
}

/// Plans, and where only WAL can tell which backup serves, goes back from the newest one.
pub(crate) async fn prove_one(
    catalogue: &Catalogue,
    archive: &Archive,
    mut request: Request,
) -> anyhow::Result<RestorePlan> {
    let mut planned = plan(catalogue, &request)?;
    let older = std::mem::take(&mut planned.older);
    let first = match prove(archive, &mut planned).await {
        Ok(()) => return Ok(planned),
        Err(error @ (ReachError::XidNotFound { .. } | ReachError::NameNotFound { .. })) => error,
        Err(error) => return Err(error.into()),
    };
    for id in older {
        request.backup = Some(id);
        let mut planned = plan(catalogue, &request)?;
        match prove(archive, &mut planned).await {
            Ok(()) => return Ok(planned),
            Err(ReachError::XidNotFound { .. } | ReachError::NameNotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(first.into())
}

fn recovery_settings(
    arguments: &BaseArguments,
    options: &GlobalOptions,
    environment: &Environment,
    plan: &RestorePlan,
    repository: Option<String>,
) -> anyhow::Result<RecoverySettings> {
    let mode = if arguments.standby { RecoveryMode::Standby } else { RecoveryMode::Recovery };
    let config = configuration_path(options.config.as_deref(), environment);
    let usual = if arguments.standby { Archiving::Keep } else { Archiving::Off };
    // A standby must find timelines that do not exist yet; a recovery goes where the plan says.
    let follows = arguments.standby && plan.timeline_is_latest && plan.target.stop == RecoveryTarget::EndOfArchive;
    Ok(RecoverySettings {
        target: plan.target.clone(),
        timeline: (!follows).then_some(plan.timeline),
        mode,
        archiving: arguments.archive_mode.unwrap_or(usual),
        command: RestoreCommand {
            program: std::env::current_exe().context("find out the path of this program")?,
            config: std::path::absolute(&config).with_context(|| format!("make {} absolute", config.display()))?,
            repository,
            system_identifier: plan.backup.server.system_identifier,
        },
    })
}

impl TargetArguments {
    pub(crate) fn parse(&self, action: Option<TargetAction>) -> anyhow::Result<Target> {
        let time = match &self.target_time {
            None => None,
            Some(text) => Some(TargetTime::parse(text, machine_zone).context("--target-time")?),
        };
        let options = TargetOptions {
            time,
            lsn: self.target_lsn.clone(),
            xid: self.target_xid.clone(),
            name: self.target_name.clone(),
            immediate: self.target_immediate,
            exclusive: self.target_exclusive,
            timeline: self.target_timeline.clone(),
            action,
        };
        Ok(options.parse()?)
    }
}

struct Output<'o> {
    json: bool,
    plan: &'o RestorePlan,
    settings: &'o RecoverySettings,
}

impl Output<'_> {
    fn archive_mode(&self) -> &'static str {
        match self.settings.archiving {
            Archiving::Off => "off",
            Archiving::Keep => "keep",
        }
    }

    fn plan(&self, destination: Option<&Destination>, included_to: Option<&Path>) -> anyhow::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut report = Report::to_stdout();
        write!(report, "{}", self.plan)?;
        if let Some(destination) = destination {
            writeln!(report, "into        {}", destination.directory.display())?;
            for note in &destination.notes {
                writeln!(report, "note        {}", printable(note))?;
            }
            for tablespace in destination.tablespaces.iter().map(|placed| TablespaceJson::new(placed, self.plan)) {
                let was = if tablespace.is_moved { format!(" (was {})", tablespace.original) } else { String::new() };
                if let Some(location) = &tablespace.location {
                    writeln!(report, "tablespace  {} in {}", tablespace.oid, printable(&format!("{location}{was}")))?;
                }
            }
        }
        for included in &self.plan.backup.included {
            let place = match included_to {
                None => "stays in the repository; --included-to DIR brings it back".to_owned(),
                Some(below) => format!("below {}", below.display()),
            };
            writeln!(report, "included    {} {place}", printable(&included.directory))?;
        }
        let archiving = match self.settings.archiving {
            Archiving::Off => "off in the restored cluster",
            Archiving::Keep => "as in the backup",
        };
        writeln!(report, "archiving   {archiving}")?;
        Ok(report.flush()?)
    }

    fn delta(&self, delta: Option<&DeltaFigures>, would: &str) -> anyhow::Result<()> {
        let Some(delta) = delta.filter(|_| !self.json) else { return Ok(()) };
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (kept, rewritten) = (get(&delta.kept_bytes), get(&delta.rewritten_bytes));
        let mut report = Report::to_stdout();
        writeln!(
            report,
            "delta       {} of {} files ({} of {}) {would}written, {} ({}) {would}removed",
            get(&delta.rewritten_files),
            get(&delta.rewritten_files) + get(&delta.kept_files),
            format_size(rewritten),
            format_size(rewritten + kept),
            get(&delta.removed_files),
            format_size(get(&delta.removed_bytes)),
        )?;
        if would.is_empty() {
            writeln!(report, "            {} read from the repository", format_size(get(&delta.fetched_bytes)))?;
        }
        Ok(report.flush()?)
    }

    fn finish(
        &self,
        directory: Option<PathBuf>,
        tablespaces: Vec<TablespaceJson>,
        delta: Option<DeltaFigures>,
        restored: bool,
    ) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        let body = BaseJson {
            plan: PlanJson::from(self.plan),
            directory,
            tablespaces,
            archive_mode: self.archive_mode(),
            signal_file: self.settings.mode.signal_file(),
            delta,
            restored,
        };
        Ok(Report::to_stdout().json("base", &body)?)
    }

    fn next_steps(&self, directory: &Path, started: Instant) -> anyhow::Result<()> {
        let mut report = Report::to_stdout();
        writeln!(
            report,
            "restored    in {}; start PostgreSQL {} on {} to begin recovery",
            format_duration(started.elapsed()),
            self.plan.backup.server.major(),
            directory.display()
        )?;
        let pauses = self.plan.target.stop != RecoveryTarget::EndOfArchive
            && self.plan.target.action == TargetAction::Pause
            && self.settings.mode == RecoveryMode::Recovery;
        if pauses {
            writeln!(
                report,
                "            at the target it pauses: SELECT pg_wal_replay_resume() opens it for writing, and frees the locks of \
                 transactions that were under way"
            )?;
        }
        if self.settings.archiving == Archiving::Off {
            writeln!(
                report,
                "            if it takes the place of the original: ALTER SYSTEM SET archive_mode = on, restart, and take \
                 a new backup"
            )?;
        }
        Ok(report.flush()?)
    }
}
