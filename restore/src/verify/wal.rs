//! The WAL behind the backups: each segment is there and whole, and the records of one go on in the next.

use std::collections::BTreeSet;

use pgark_postgres::{RecordWalker, SegmentName, WalFileName};
use pgark_repository::{Backup, ClusterRepository};

use super::{Fault, Findings, full_text, tells_of_damage};
use crate::archive::Archive;
use crate::catalogue::Catalogue;
use crate::fetch_wal::check_segment;
use crate::moments::{plan_without_target, windows};
use crate::plan::RestorePlan;
use crate::reach::{ReachError, fetch_segment};

pub(super) async fn verify(
    repository: &ClusterRepository,
    catalogue: &Catalogue,
    backups: &[&Backup],
    findings: &mut Findings,
) {
    let archive = Archive::of(repository.clone());
    let mut seen = BTreeSet::new();
    let mut served = BTreeSet::new();
    for mut plans in windows(catalogue) {
        plans.retain(|plan| backups.iter().any(|backup| backup.id == plan.backup.id));
        served.extend(plans.iter().map(|plan| plan.backup.id.clone()));
        let Some(oldest) = plans.first() else { continue };
        Walk { repository, archive: &archive, plan: oldest, findings, walker: None }.run(&mut seen).await;
    }
    for backup in backups.iter().filter(|backup| !served.contains(&backup.id)) {
        if let Err(error) = plan_without_target(catalogue, backup, backup.stop_timeline) {
            findings.faults.push(Fault {
                backup: Some(backup.id.clone()),
                object: "WAL".to_owned(),
                reason: error.to_string(),
                consequence: format!("backup {} cannot be restored", backup.id),
                damaged: true,
            });
        }
    }
}

/// One way from a backup to the end of its WAL.
struct Walk<'w> {
    repository: &'w ClusterRepository,
    archive: &'w Archive,
    plan: &'w RestorePlan,
    findings: &'w mut Findings,
    /// Nothing at the start, and behind a fault.
    walker: Option<RecordWalker>,
}

impl Walk<'_> {
    async fn run(&mut self, seen: &mut BTreeSet<SegmentName>) {
        let last = self.plan.segments.len().saturating_sub(1);
        for (index, segment) in self.plan.segments.iter().enumerate() {
            if !seen.insert(segment.name) {
                // It was on the way to the end of another timeline.
                self.walker = None;
                continue;
            }
            self.findings.segments += 1;
            self.findings.stored_bytes += segment.stored_size;
            let walked = self.segment(segment.name, index == last).await;
            let Err(error) = walked else { continue };
            self.walker = None;
            let is_damage = match &error {
                ReachError::Repository(error) => tells_of_damage(error),
                _ => true,
            };
            self.fault(segment.name, reason(&error), is_damage);
            if !is_damage {
                // The store does not answer or the key is missing: so it will be with the next one.
                return;
            }
        }
        if let Some(next) = self.plan.after_gap {
            self.fault(self.plan.missing, format!("it is missing, and {next} is there"), true);
        }
    }

    async fn segment(&mut self, name: SegmentName, is_last: bool) -> Result<(), ReachError> {
        let bytes = fetch_segment(self.archive, self.plan, name).await?;
        let place = (self.repository.name(), self.repository.system_identifier());
        if let Err(error) = check_segment(name, place.0, place.1, &bytes, bytes.len() as u64) {
            self.fault(name, full_text(&error), true);
            self.walker = None;
            return Ok(());
        }
        let (size, start) = (self.plan.segment_size, name.start(self.plan.segment_size));
        let damaged = |source| ReachError::Damaged { segment: name, source: Box::new(source) };
        let walker = match &mut self.walker {
            Some(walker) => walker,
            none => {
                let walker = RecordWalker::new(size, self.plan.backup.server.major(), start).map_err(damaged)?;
                none.insert(walker)
            }
        };
        walker.feed(start, &bytes).map_err(damaged)?;
        if let (Some(end), false) = (walker.end_of_valid(), is_last) {
            let reason = format!("its records end at {end}, before the next segment begins");
            self.fault(name, reason, true);
            self.walker = None;
        }
        Ok(())
    }

    fn fault(&mut self, segment: SegmentName, reason: String, damaged: bool) {
        let from = segment.start(self.plan.segment_size);
        self.findings.faults.push(Fault {
            backup: None,
            object: WalFileName::Segment(segment).to_string(),
            reason,
            consequence: format!(
                "restores from {} and from backups after it can go on timeline {} no further than {from}",
                self.plan.backup.id, self.plan.timeline
            ),
            damaged,
        });
    }
}

fn reason(error: &ReachError) -> String {
    match error {
        ReachError::Repository(error) => super::reason(error),
        ReachError::Damaged { source, .. } => source.to_string(),
        ReachError::Vanished { .. } => "it is missing".to_owned(),
        other => other.to_string(),
    }
}
