//! `pgark-restore list`: backups, and the WAL that continues them.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use pgark_command::{
    Align, Configuration, Environment, ExitCode, GlobalOptions, Report, Side, Table, format_size, format_time,
    open_repository, printable,
};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{Backup, BackupId, Hold, Proof, RepositoryError};
use serde::Serialize;

use crate::catalogue::Catalogue;
use crate::moments::{RestorePoint, Window, reachable, restore_points};
use crate::plan::BackupJson;
use crate::proofs::{LastProof, read_or_warn};
use crate::shares::{Share, shares, write_shares};
use crate::windows::{TimelineWal, timelines};

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct ListArguments {
    /// List the cluster with this system identifier [default: the one with the newest backup]
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,

    /// List the named restore points, too; this reads all archived WAL
    #[arg(long)]
    restore_points: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ListJson {
    repository: String,
    /// What each of them has; the rest of this is what all of them have together.
    repositories: Vec<Share>,
    /// Why others could not be read.
    unread: Vec<String>,
    cluster: String,
    system_identifier: SystemIdentifier,
    other_system_identifiers: Vec<SystemIdentifier>,
    backups: Vec<ListedJson>,
    unfinished: Vec<UnfinishedJson>,
    /// Those whose backup.json cannot be read.
    unreadable: Vec<UnreadableJson>,
    /// From which moment to which the cluster can be restored.
    windows: Vec<Window>,
    /// Only where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    restore_points: Option<Vec<RestorePoint>>,
    timelines: Vec<TimelineWal>,
}

#[derive(Serialize)]
struct ListedJson {
    #[serde(flatten)]
    backup: BackupJson,
    /// Why it is kept whatever retention says.
    hold: Option<Hold>,
    /// When it was last proven, and by what.
    proof: Option<LastProof>,
}

#[derive(Serialize)]
struct UnreadableJson {
    id: BackupId,
    reason: String,
}

#[derive(Serialize)]
struct UnfinishedJson {
    id: BackupId,
    host: Option<String>,
    started: Option<Timestamp>,
}

/// Runs the command.
pub async fn list(
    options: &GlobalOptions,
    environment: &Environment,
    configuration: &Configuration,
    arguments: &ListArguments,
) -> anyhow::Result<ExitCode> {
    let chosen = options.repositories(environment, configuration)?;
    let open = |repository| open_repository(repository, Side::Reading);
    let repositories = chosen.into_iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let loaded =
        Catalogue::load_all(&repositories, &configuration.cluster.name, arguments.system_identifier, true).await;
    let merged = loaded.context("read the repository")?;
    let (catalogue, archive) = (&merged.catalogue, merged.archive());
    let holds = merged.holds().await;
    let shares = shares(&merged);
    let reachable = reachable(catalogue, &archive).await;
    let restore_points = match arguments.restore_points {
        true => Some(restore_points(&archive, &reachable).await.context("search the archived WAL")?),
        false => None,
    };
    let proofs = read_or_warn(configuration, catalogue.system_identifier).await;
    let windows = reachable.into_iter().map(|way| way.window).collect();
    let mut report = Report::to_stdout();
    if arguments.json {
        report.json("list", &json(catalogue, &proofs, &holds, shares, windows, restore_points))?;
    } else {
        write_text(&mut report, catalogue, &proofs, &holds)?;
        write_shares(&mut report, &shares, &catalogue.unread)?;
        write_windows(&mut report, &windows)?;
        if let Some(points) = &restore_points {
            write_restore_points(&mut report, points)?;
        }
        writeln!(report)?;
        write_wal(&mut report, &timelines(catalogue))?;
        report.flush()?;
    }
    Ok(ExitCode::Done)
}

fn json(
    catalogue: &Catalogue,
    proofs: &[Proof],
    holds: &[Hold],
    repositories: Vec<Share>,
    windows: Vec<Window>,
    restore_points: Option<Vec<RestorePoint>>,
) -> ListJson {
    let listed = |backup: &Backup| ListedJson {
        backup: BackupJson::from(backup),
        hold: holds.iter().find(|hold| hold.id == backup.id).cloned(),
        proof: LastProof::of(&backup.id, proofs),
    };
    ListJson {
        repository: catalogue.repository.clone(),
        repositories,
        unread: catalogue.unread.clone(),
        cluster: catalogue.cluster.clone(),
        system_identifier: catalogue.system_identifier,
        other_system_identifiers: catalogue.others.clone(),
        backups: catalogue.backups.finished.iter().map(listed).collect(),
        unfinished: catalogue
            .backups
            .unfinished
            .iter()
            .map(|backup| UnfinishedJson {
                id: backup.id.clone(),
                host: backup.started.as_ref().map(|started| started.host.clone()),
                started: backup.started.as_ref().map(|started| started.time),
            })
            .collect(),
        unreadable: catalogue
            .backups
            .unreadable
            .iter()
            .map(|backup| UnreadableJson { id: backup.id.clone(), reason: backup.error.to_string() })
            .collect(),
        windows,
        restore_points,
        timelines: timelines(catalogue),
    }
}

fn write_text(report: &mut impl Write, catalogue: &Catalogue, proofs: &[Proof], holds: &[Hold]) -> std::io::Result<()> {
    writeln!(report, "cluster {}, system {}", catalogue.cluster, catalogue.system_identifier)?;
    for other in &catalogue.others {
        writeln!(report, "also stored: system {other} (--system-identifier {other})")?;
    }
    writeln!(report)?;
    if catalogue.backups.finished.is_empty() {
        writeln!(report, "no finished backup")?;
    } else {
        write!(report, "{}", backup_table(catalogue, proofs, holds))?;
    }
    for unfinished in &catalogue.backups.unfinished {
        let by = match &unfinished.started {
            Some(started) => format!("started {} on {}", format_time(started.time), printable(&started.host)),
            None => "its claim cannot be read".to_owned(),
        };
        writeln!(report, "{}  not finished: it is running or was interrupted ({by})", unfinished.id)?;
    }
    for unreadable in &catalogue.backups.unreadable {
        writeln!(report, "{}  CANNOT BE USED: {}", unreadable.id, printable(&unreadable.error.to_string()))?;
    }
    for (timeline, error) in &catalogue.unreadable_histories {
        if matches!(**error, RepositoryError::Damaged { .. }) {
            writeln!(report, "{}.history  CANNOT BE USED: {}", timeline.hex(), printable(&error.to_string()))?;
        }
    }
    writeln!(report)
}

fn write_windows(report: &mut impl Write, windows: &[Window]) -> std::io::Result<()> {
    if windows.is_empty() {
        return writeln!(report, "no moment can be restored");
    }
    let mut table = Table::new(&[
        ("timeline", Align::Right),
        ("can be restored from", Align::Left),
        ("to", Align::Left),
        ("positions", Align::Left),
        ("backups", Align::Right),
        ("then", Align::Left),
    ]);
    for window in windows {
        let to = match (window.last_transaction, &window.unreadable) {
            (Some(time), _) => format_time(time),
            (None, None) => "no transaction of late".to_owned(),
            (None, Some(_)) => "unknown".to_owned(),
        };
        let then = window.gap_at.map_or("the archive ends".to_owned(), |segment| format!("{segment} is missing"));
        table.row([
            window.timeline.to_string(),
            format_time(window.from),
            to,
            format!("{} … {}", window.from_lsn, window.to_lsn),
            window.backups.len().to_string(),
            then,
        ]);
    }
    write!(report, "{table}")?;
    let reasons: BTreeSet<&String> = windows.iter().filter_map(|window| window.unreadable.as_ref()).collect();
    reasons.into_iter().try_for_each(|reason| writeln!(report, "the last transaction is unknown: {reason}"))
}

fn write_restore_points(report: &mut impl Write, points: &[RestorePoint]) -> std::io::Result<()> {
    if points.is_empty() {
        return writeln!(report, "\nno restore points");
    }
    let mut table = Table::new(&[
        ("restore point", Align::Left),
        ("made", Align::Left),
        ("timeline", Align::Right),
        ("position", Align::Left),
    ]);
    for point in points {
        let time = point.time.map(format_time).unwrap_or_default();
        table.row([printable(&point.name), time, point.timeline.to_string(), point.lsn.to_string()]);
    }
    write!(report, "\n{table}")
}

fn backup_table(catalogue: &Catalogue, proofs: &[Proof], holds: &[Hold]) -> Table {
    let mut table = Table::new(&[
        ("backup", Align::Left),
        ("ended", Align::Left),
        ("size", Align::Right),
        ("stored", Align::Right),
        ("ratio", Align::Right),
        ("timeline", Align::Right),
        ("positions", Align::Left),
        ("version", Align::Right),
        ("tablespaces", Align::Right),
        ("last proof", Align::Left),
        ("notes", Align::Left),
    ]);
    let mut above: Option<&BackupId> = None;
    for backup in &catalogue.backups.finished {
        let broken = catalogue.chain_below(backup).err().map(|missing| format!("CANNOT BE USED: {missing} is missing"));
        // A chain is drawn below its full backup; what leads elsewhere than to the line above says so.
        let elsewhere = backup.parent.as_ref().filter(|parent| above != Some(*parent) && broken.is_none());
        let elsewhere = elsewhere.map(|parent| format!("on {parent}"));
        let id = if backup.parent.is_some() { format!("└ {}", backup.id) } else { backup.id.to_string() };
        above = Some(&backup.id);
        let made = backup.consolidated.as_ref().map(|made| format!("made from the chain of {}", made.from));
        let damaged = backup.damaged_pages.is_some().then(|| "damaged pages in the source".to_owned());
        let annotations = backup.annotations.iter().map(|(key, value)| format!("{key}={value}"));
        let held = holds.iter().find(|hold| hold.id == backup.id).map(|hold| format!("held: {}", hold.reason));
        let notes: Vec<String> =
            broken.into_iter().chain(elsewhere).chain(made).chain(held).chain(damaged).chain(annotations).collect();
        table.row([
            id,
            format_time(backup.stop_time),
            format_size(backup.totals.raw_size),
            format_size(backup.totals.stored_size),
            ratio(backup.totals.raw_size, backup.totals.stored_size),
            backup.timeline.to_string(),
            format!("{} … {}", backup.start_lsn, backup.stop_lsn),
            format!("{}.{}", backup.server.major(), backup.server.version_num % 10_000),
            backup.tablespaces.len().to_string(),
            LastProof::short(LastProof::of(&backup.id, proofs).as_ref()),
            notes.join(" "),
        ]);
    }
    table
}

pub(crate) fn ratio(raw: u64, stored: u64) -> String {
    if stored == 0 { "-".to_owned() } else { format!("{:.1}", raw as f64 / stored as f64) }
}

pub(crate) fn write_wal(report: &mut impl Write, timelines: &[TimelineWal]) -> std::io::Result<()> {
    if timelines.is_empty() {
        return writeln!(report, "no archived WAL");
    }
    for wal in timelines {
        let origin = match (wal.parent, wal.begin_lsn) {
            (Some(parent), Some(begin)) => format!(", from timeline {parent} at {begin}"),
            _ if wal.timeline.get() == 1 => String::new(),
            _ => format!(", whose history {}.history is missing or needs the private key", wal.timeline.hex()),
        };
        writeln!(report, "WAL of timeline {}{origin}", wal.timeline)?;
        for (index, stretch) in wal.stretches.iter().enumerate() {
            if index > 0 {
                writeln!(report, "  (gap)")?;
            }
            let open = if stretch.open_segment.is_some() { ", and pieces of the next one" } else { "" };
            writeln!(
                report,
                "  {} … {}  {} segments{open}, {} stored, up to {}",
                stretch.first,
                stretch.last,
                stretch.segments,
                format_size(stretch.stored_size),
                stretch.end_lsn
            )?;
        }
    }
    Ok(())
}
