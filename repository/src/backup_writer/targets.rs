//! Where a backup goes. From its first failure on, a repository that is not required is left out: the backup goes on, and
//! is copied into it later.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::cluster::ClusterRepository;
use crate::error::{RepositoryError, Result};

/// How long a repository that is not required may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(20);

/// The repositories of a backup. Cheap to clone; all clones know the same.
#[derive(Debug, Clone)]
pub struct BackupTargets(Arc<[Target]>);

#[derive(Debug)]
pub(super) struct Target {
    pub(super) repository: ClusterRepository,
    lost: OnceLock<RepositoryError>,
}

impl BackupTargets {
    pub(super) fn new(repositories: Vec<ClusterRepository>) -> Self {
        let target = |repository| Target { repository, lost: OnceLock::new() };
        Self(repositories.into_iter().map(target).collect())
    }

    /// Those that the backup still goes to, each with its place among all.
    pub(super) fn there(&self) -> impl Iterator<Item = (usize, &Target)> {
        self.0.iter().enumerate().filter(|(_, target)| target.lost.get().is_none())
    }

    pub(super) fn target(&self, place: usize) -> Option<&Target> {
        self.0.get(place)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The repositories that the backup still goes to.
    #[must_use]
    pub fn repositories(&self) -> Vec<ClusterRepository> {
        self.there().map(|(_, target)| target.repository.clone()).collect()
    }

    /// Leaves a repository out that is not required.
    pub fn give_up(&self, repository: &ClusterRepository, error: RepositoryError) {
        if let Some(target) = self.0.iter().find(|target| target.repository.name() == repository.name()) {
            target.give_up(error);
        }
    }

    /// The repositories that were left out, and why.
    pub fn left_out(&self) -> impl Iterator<Item = (&ClusterRepository, &RepositoryError)> {
        self.0.iter().filter_map(|target| Some((&target.repository, target.lost.get()?)))
    }
}

impl Target {
    /// Does something in the repository. Nothing, where it failed and is not required: then it is left out from now on.
    ///
    /// # Errors
    /// When a repository that is required fails.
    pub(super) async fn attempt<T>(&self, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        if !self.repository.is_optional() {
            return work.await.map(Some);
        }
        let done = tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(self.no_answer()));
        match done {
            Ok(done) => Ok(Some(done)),
            Err(error) => {
                self.give_up(error);
                Ok(None)
            }
        }
    }

    fn give_up(&self, error: RepositoryError) {
        tracing::warn!(
            repository = self.repository.name(),
            error = &error as &dyn std::error::Error,
            "cannot take the backup; going on without it"
        );
        // Of several failures the first one tells.
        drop(self.lost.set(error));
    }

    fn no_answer(&self) -> RepositoryError {
        RepositoryError::Unavailable {
            repository: self.repository.name().to_owned(),
            operation: "write",
            key: self.repository.keys().backups(),
            source: format!("no answer within {} s", PATIENCE.as_secs()).into(),
        }
    }
}
