//! One run of `verify`: what there is, what of it is read, and what the proof says afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use pgark_command::{ProgressDisplay, format_size};
use pgark_postgres::{SegmentName, TimelineId};
use pgark_repository::{Backup, BackupId, BackupObject, ClusterRepository, ProofKind, ProvenBackup, ReadSegments};

use super::objects::compare;
use super::sample::{Candidate, LastReads, Sample, stretches};
use super::wal::{Needed, Ways};
use super::{Fault, Findings, SampleJson, content, lost, reason, stored, wal};
use crate::catalogue::Catalogue;
use crate::proofs::Finding;

pub(super) struct Run<'r> {
    pub(super) repository: &'r ClusterRepository,
    pub(super) catalogue: &'r Catalogue,
    pub(super) backups: Vec<&'r Backup>,
    pub(super) quick: bool,
    pub(super) jobs: usize,
    pub(super) display: ProgressDisplay,
}

/// Everything that could be read.
pub(super) struct Stock {
    /// Of each backup, in their order.
    objects: Vec<Vec<BackupObject>>,
    stored_at: Vec<Timestamp>,
    ids: Vec<BackupId>,
    ways: Ways,
    /// Empty where no WAL is read.
    segments: BTreeMap<SegmentName, Needed>,
}

/// What is read.
pub(super) struct Selection {
    /// Of each backup, by the places in its list.
    objects: Vec<BTreeSet<usize>>,
    segments: BTreeSet<SegmentName>,
    /// When what is not read was read, or stored.
    oldest_left: Option<Timestamp>,
}

impl Stock {
    fn candidates<'s>(&'s self, last: &'s LastReads<'_>) -> impl Iterator<Item = Candidate> + 's {
        let backups = self.ids.iter().zip(&self.objects).zip(&self.stored_at);
        let objects = backups.flat_map(move |((id, objects), stored)| {
            objects.iter().map(move |object| Candidate {
                size: object.size,
                last_read: last.of_object(id, &object.name).unwrap_or(*stored),
            })
        });
        let segments = self.segments.iter().map(|(name, needed)| Candidate {
            size: needed.stored_size,
            last_read: last.of_segment(*name).unwrap_or(needed.stored_after),
        });
        objects.chain(segments)
    }
}

impl Selection {
    pub(super) fn everything(stock: &Stock) -> Self {
        Self {
            objects: stock.objects.iter().map(|objects| (0..objects.len()).collect()).collect(),
            segments: stock.segments.keys().copied().collect(),
            oldest_left: None,
        }
    }

    pub(super) fn sample(stock: &Stock, sample: &Sample, last: &LastReads<'_>, now: Timestamp) -> Self {
        let candidates: Vec<Candidate> = stock.candidates(last).collect();
        let chosen = sample.choose(&candidates, now);
        let left = candidates.iter().zip(&chosen).filter(|(_, chosen)| !**chosen);
        let oldest_left = left.map(|(candidate, _)| candidate.last_read).min();
        // In the order of the candidates.
        let mut chosen = chosen.into_iter();
        let mut is_next_chosen = || chosen.next() == Some(true);
        let objects = stock.objects.iter().map(|objects| (0..objects.len()).filter(|_| is_next_chosen()).collect());
        let objects = objects.collect();
        let segments = stock.segments.keys().copied().filter(|_| is_next_chosen()).collect();
        Self { objects, segments, oldest_left }
    }

    pub(super) fn report(&self, stock: &Stock, percent: f64) -> SampleJson {
        let objects = stock.objects.iter().flatten().map(|object| object.size);
        let segments = stock.segments.values().map(|needed| needed.stored_size);
        let (of_objects, of_stored_bytes) =
            objects.chain(segments).fold((0, 0), |(count, bytes), size| (count + 1, bytes + size));
        SampleJson { percent, of_objects, of_stored_bytes, oldest_read: self.oldest_left }
    }
}

impl Run<'_> {
    /// Backups whose commit mark cannot be read, among those that were asked for.
    pub(super) fn note_unreadable(&self, wanted: &[BackupId], findings: &mut Findings) {
        let is_wanted = |id: &BackupId| wanted.is_empty() || wanted.contains(id);
        for unreadable in self.catalogue.backups.unreadable.iter().filter(|unreadable| is_wanted(&unreadable.id)) {
            findings.add(Fault {
                backup: Some(unreadable.id.clone()),
                object: self.repository.keys().backup(&unreadable.id).to_string(),
                reason: reason(&unreadable.error),
                consequence: lost(&unreadable.id),
                damaged: true,
            });
        }
    }

    pub(super) fn stock(&self) -> Stock {
        let ways = Ways::new(self.catalogue, &self.backups);
        let segments = if self.quick { BTreeMap::new() } else { ways.segments(&self.backups) };
        Stock {
            objects: self.backups.iter().map(|backup| self.repository.objects_of(backup)).collect(),
            stored_at: self.backups.iter().map(|backup| backup.stop_time).collect(),
            ids: self.backups.iter().map(|backup| backup.id.clone()).collect(),
            ways,
            segments,
        }
    }

    /// Reads what is selected; what is only listed is compared for everything.
    pub(super) async fn read(&self, stock: &Stock, selection: &Selection, findings: &mut Findings) {
        for ((backup, objects), chosen) in self.backups.iter().zip(&stock.objects).zip(&selection.objects) {
            compare(self.repository, backup, objects, findings).await;
            let is_whole = |object: &&BackupObject| !findings.has_fault(Some(&backup.id), object.key.as_str());
            let read: Vec<&BackupObject> =
                chosen.iter().filter_map(|&place| objects.get(place)).filter(is_whole).collect();
            if read.is_empty() {
                continue;
            }
            if self.quick {
                stored::verify(self.repository, backup, &read, self.jobs, findings).await;
            } else {
                content::verify(self.repository, backup, &read, self.jobs, self.display, findings).await;
            }
        }
        wal::verify_lists(self.repository, self.catalogue, &self.backups, &stock.ways, findings);
        wal::verify(self.repository, &stock.ways, &selection.segments, findings).await;
        self.forget_expired(findings).await;
    }

    /// A backup that was expired while it was read is not damaged.
    async fn forget_expired(&self, findings: &mut Findings) {
        for backup in &self.backups {
            let mark = self.repository.keys().backup(&backup.id);
            if findings.faults_of(backup) > 0 && matches!(self.repository.store().size(&mark).await, Ok(None)) {
                tracing::info!(backup = %backup.id, "the backup was deleted while it was verified");
                findings.faults.retain(|fault| fault.backup.as_ref() != Some(&backup.id));
            }
        }
    }

    /// What was found, for the next run and for `list`.
    pub(super) fn proof(
        &self,
        stock: &Stock,
        selection: &Selection,
        is_sample: bool,
        took: Duration,
        findings: &Findings,
    ) -> Finding {
        let mut backups = Vec::new();
        for ((backup, objects), chosen) in self.backups.iter().zip(&stock.objects).zip(&selection.objects) {
            let passed = findings.faults_of(backup) == 0;
            if chosen.is_empty() && passed {
                continue;
            }
            let places: Vec<usize> = (0..objects.len()).collect();
            let is_proven = |place: &usize| {
                let object = objects.get(*place);
                let is_whole = |object: &BackupObject| !findings.has_fault(Some(&backup.id), object.key.as_str());
                chosen.contains(place) && object.is_some_and(is_whole)
            };
            let name = |place: &usize| objects.get(*place).map(|object| object.name.clone()).unwrap_or_default();
            let read = stretches(&places, is_proven).into_iter().map(|(first, last)| (name(first), name(last)));
            let is_all = passed && chosen.len() == objects.len();
            let read = (!is_all).then(|| read.collect());
            backups.push(ProvenBackup { id: backup.id.clone(), passed, read });
        }
        let unreadable = self.catalogue.backups.unreadable.iter().map(|unreadable| unreadable.id.clone());
        backups.extend(unreadable.map(|id| ProvenBackup { id, passed: false, read: Some(Vec::new()) }));
        let kind = match (self.quick, is_sample) {
            (true, _) => ProofKind::Quick,
            (false, true) => ProofKind::Sample,
            (false, false) => ProofKind::Full,
        };
        Finding {
            kind,
            seconds: took.as_secs_f64(),
            repository: self.catalogue.repository.clone(),
            passed: findings.faults.is_empty(),
            summary: summary(findings),
            backups,
            wal: self.proven_wal(stock, selection, findings),
        }
    }

    fn proven_wal(&self, stock: &Stock, selection: &Selection, findings: &Findings) -> Vec<ReadSegments> {
        // One that is there in pieces has not ended yet.
        let is_proven = |name: &SegmentName| {
            selection.segments.contains(name)
                && !self.catalogue.wal.open.contains_key(name)
                && !findings.has_fault(None, &name.to_string())
        };
        let mut timelines: BTreeMap<TimelineId, Vec<SegmentName>> = BTreeMap::new();
        for name in stock.segments.keys() {
            timelines.entry(name.timeline).or_default().push(*name);
        }
        let stretches = timelines.values().flat_map(|names| stretches(names, is_proven));
        stretches.map(|(first, last)| ReadSegments { first: *first, last: *last }).collect()
    }
}

fn summary(findings: &Findings) -> String {
    match findings.faults.first() {
        None => {
            let size = format_size(findings.stored_bytes);
            format!("read {} objects and {} WAL segments, {size} stored", findings.objects, findings.segments)
        }
        Some(first) => {
            let count = findings.faults.len();
            format!("{count} faults, the first: {}: {}; {}", first.object, first.reason, first.consequence)
        }
    }
}
