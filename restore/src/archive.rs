//! One cluster in all repositories from which it is read: asked one after the other, until one has what is wanted.
//!
//! An absence counts only when every repository has stated it: what one that does not answer holds is not known, and a
//! server that took that for the end of the WAL would lose everything behind it. A repository that failed is asked last
//! from then on, and one that is slow does not keep the next one waiting.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pgark_postgres::SystemIdentifier;
use pgark_repository::{Backup, ClusterRepository};

use crate::copies::Copies;

/// How long a repository is waited for before the next one is asked, too.
const PATIENCE: Duration = Duration::from_secs(2);

/// The places of one cluster, the preferred one first.
#[derive(Debug)]
pub struct Archive {
    places: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    repository: ClusterRepository,
    /// Its finished backups, where they were read.
    backups: Vec<Backup>,
    has_failed: AtomicBool,
}

impl Archive {
    /// One repository alone.
    pub fn of(repository: ClusterRepository) -> Self {
        Self::new([(repository, Vec::new())])
    }

    /// Several, with the backups that are known of each.
    pub fn new(places: impl IntoIterator<Item = (ClusterRepository, Vec<Backup>)>) -> Self {
        let place = |(repository, backups)| Place { repository, backups, has_failed: AtomicBool::new(false) };
        Self { places: places.into_iter().map(place).collect() }
    }

    /// In the order of preference.
    pub(crate) fn repositories(&self) -> impl Iterator<Item = &ClusterRepository> {
        self.places.iter().map(|place| &place.repository)
    }

    /// For messages.
    pub(crate) fn names(&self) -> String {
        self.repositories().map(ClusterRepository::name).collect::<Vec<_>>().join("`, `")
    }

    pub(crate) fn system_identifier(&self) -> SystemIdentifier {
        self.places.first().map_or(SystemIdentifier::new(0), |place| place.repository.system_identifier())
    }

    /// A backup wherever it is stored.
    #[must_use]
    pub fn copies(&self, backup: &Backup) -> Copies {
        let found = self.places.iter().flat_map(|place| {
            let same = place.backups.iter().find(|other| other.id == backup.id);
            same.map(|copy| (place.repository.clone(), copy.clone()))
        });
        Copies::new(backup, found)
    }

    /// Asks until one has it; nothing, when all of them have answered that they do not. `ask` also gets a number that
    /// differs among what goes on at the same time.
    ///
    /// # Errors
    /// The first failure, when none has it and at least one did not answer.
    pub(crate) async fn first<T, E: std::error::Error + 'static>(
        &self,
        wanted: impl Display,
        ask: impl AsyncFn(&ClusterRepository, usize) -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let is_well = |place: &&Place| !place.has_failed.load(Ordering::Relaxed);
        let (well, failed): (Vec<&Place>, Vec<&Place>) = self.places.iter().partition(is_well);
        let order: Vec<&Place> = well.into_iter().chain(failed).collect();
        let mut waiting = order.into_iter().enumerate();
        let mut asked = FuturesUnordered::new();
        let mut last = None;
        let mut first_error = None;
        loop {
            if asked.is_empty() {
                let Some(next) = waiting.next() else { return first_error.map_or(Ok(None), Err) };
                last = Some(next.1);
                asked.push(question(&ask, next));
            }
            tokio::select! {
                Some((place, answer)) = asked.next() => match answer {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    Err(error) => {
                        self.note_failure(place, &wanted, &error);
                        first_error.get_or_insert(error);
                    }
                },
                () = tokio::time::sleep(PATIENCE), if waiting.len() > 0 => {
                    if let Some(slow) = last {
                        slow.has_failed.store(true, Ordering::Relaxed);
                        tracing::info!(repository = slow.repository.name(), %wanted, "is slow; asking the next one, too");
                    }
                    if let Some(next) = waiting.next() {
                        last = Some(next.1);
                        asked.push(question(&ask, next));
                    }
                }
            }
        }
    }

    fn note_failure(&self, place: &Place, wanted: &impl Display, error: &(dyn std::error::Error + 'static)) {
        place.has_failed.store(true, Ordering::Relaxed);
        // Of a single one the caller tells.
        if self.places.len() > 1 {
            tracing::warn!(
                repository = place.repository.name(),
                %wanted,
                error,
                "cannot be read here; asking the others"
            );
        }
    }
}

async fn question<'p, T, E>(
    ask: &impl AsyncFn(&ClusterRepository, usize) -> Result<Option<T>, E>,
    (number, place): (usize, &'p Place),
) -> (&'p Place, Result<Option<T>, E>) {
    (place, ask(&place.repository, number).await)
}
