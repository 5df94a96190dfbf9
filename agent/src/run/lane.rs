//! The way into a repository that is not required. Nobody waits for it: it takes what it can, in order, and what finds
//! no room is left to the catching up that follows (`catch_up`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pgark_postgres::{SegmentName, WalFileName};
use pgark_repository::{ClusterRepository, ErrorKind, RepositoryError, WalPiece};
use tokio::sync::{Notify, mpsc};

use super::backoff::Backoff;
use super::destination::{Prepared, store_once};
use crate::catch_up::delete_pieces;

/// Stored bytes that may wait. A larger segment waits alone.
const ROOM: u64 = 8 << 20;
/// Pieces are small, and many may wait while one request hangs.
const MOST_WAITING: usize = 256;
/// How long one object may take, besides the time for its bytes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Slower than this, it is as good as away.
const SLOWEST_BYTES_PER_SECOND: u64 = 256 << 10;

/// Which pieces are of no use any more.
pub(crate) type Obsolete = Arc<dyn Fn(WalPiece) -> bool + Send + Sync>;

enum Work {
    Store(SegmentName, Arc<Prepared>),
    DeletePieces(SegmentName, Obsolete),
}

/// The queue in front of a repository.
#[derive(Debug)]
pub(crate) struct Lane {
    queue: mpsc::Sender<Work>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting_bytes: u64,
    waiting: usize,
    away_since: Option<Instant>,
    /// The last segment of which something was left out, since everything was made up for.
    incomplete: Option<SegmentName>,
    /// How often something was left out.
    left_out: u64,
}

impl Lane {
    /// `back` is notified when the repository lacks something and has time for it.
    pub(crate) fn new(repository: ClusterRepository, back: Arc<Notify>) -> Self {
        let (queue, waiting) = mpsc::channel(MOST_WAITING);
        let state = Arc::default();
        let worker = Worker { repository, state: Arc::clone(&state), back, backoff: Backoff::default(), again: None };
        // It ends with the queue.
        tokio::spawn(worker.run(waiting));
        Self { queue, state }
    }

    /// Takes a segment or a piece, if there is room.
    pub(crate) fn store(&self, segment: SegmentName, prepared: &Arc<Prepared>) {
        let bytes = prepared.stored_bytes();
        let has_room = {
            let state = lock(&self.state);
            state.waiting_bytes == 0 || state.waiting_bytes + bytes <= ROOM
        };
        if !has_room || !self.send(Work::Store(segment, Arc::clone(prepared)), bytes) {
            lock(&self.state).leave_out(segment);
        }
    }

    pub(crate) fn delete_pieces(&self, segment: SegmentName, is_obsolete: Obsolete) {
        self.send(Work::DeletePieces(segment, is_obsolete), 0);
    }

    fn send(&self, work: Work, bytes: u64) -> bool {
        // Counted first: the worker may be done before this returns.
        lock(&self.state).add(bytes);
        let is_sent = self.queue.try_send(work).is_ok();
        if !is_sent {
            lock(&self.state).subtract(bytes);
        }
        is_sent
    }

    /// Whether it lacks something, or may.
    pub(crate) fn is_behind(&self) -> bool {
        let state = lock(&self.state);
        state.away_since.is_some() || state.incomplete.is_some()
    }

    /// How often something was left out, for [`Self::caught_up`].
    pub(crate) fn left_out(&self) -> u64 {
        lock(&self.state).left_out
    }

    /// Notes that everything was made up for that had been left out by then.
    pub(crate) fn caught_up(&self, left_out: u64) {
        let mut state = lock(&self.state);
        if state.left_out == left_out {
            state.incomplete = None;
        }
    }

    /// Whether nothing waits that could be stored now.
    pub(crate) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.waiting == 0 || state.away_since.is_some()
    }
}

impl State {
    fn leave_out(&mut self, segment: SegmentName) {
        self.incomplete = Some(segment);
        self.left_out += 1;
    }

    fn add(&mut self, bytes: u64) {
        self.waiting += 1;
        self.waiting_bytes += bytes;
    }

    fn subtract(&mut self, bytes: u64) {
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker {
    repository: ClusterRepository,
    state: Arc<Mutex<State>>,
    back: Arc<Notify>,
    backoff: Backoff,
    /// When it is asked again after it was away.
    again: Option<Instant>,
}

impl Worker {
    async fn run(mut self, mut waiting: mpsc::Receiver<Work>) {
        while let Some(work) = waiting.recv().await {
            match work {
                Work::Store(segment, prepared) => {
                    let bytes = prepared.stored_bytes();
                    if !self.store(segment, &prepared).await {
                        lock(&self.state).leave_out(segment);
                    }
                    drop(prepared);
                    lock(&self.state).subtract(bytes);
                }
                Work::DeletePieces(segment, is_obsolete) => {
                    if self.again.is_none() {
                        self.delete_pieces(segment, is_obsolete).await;
                    }
                    lock(&self.state).subtract(0);
                }
            }
            let state = lock(&self.state);
            if state.waiting == 0 && state.away_since.is_none() && state.incomplete.is_some() {
                self.back.notify_one();
            }
        }
    }

    async fn store(&mut self, segment: SegmentName, prepared: &Prepared) -> bool {
        if self.again.is_some_and(|again| Instant::now() < again) {
            return false;
        }
        let patience = PATIENCE + Duration::from_secs(prepared.stored_bytes() / SLOWEST_BYTES_PER_SECOND);
        match within(patience, store_once(&self.repository, prepared)).await {
            Ok(_) => {
                self.is_there();
                return true;
            }
            Err(failure) if failure.kind() == ErrorKind::Conflict => {
                let (repository, error) = (self.repository.name(), &failure as &dyn std::error::Error);
                tracing::error!(repository, %segment, error, "holds other WAL under this name; do two servers archive here?");
            }
            Err(failure) => self.is_away(&failure),
        }
        false
    }

    fn is_away(&mut self, failure: &RepositoryError) {
        let (repository, error) = (self.repository.name(), failure as &dyn std::error::Error);
        self.again = Some(Instant::now() + self.backoff.next());
        let is_news = {
            let mut state = lock(&self.state);
            let is_news = state.away_since.is_none();
            state.away_since.get_or_insert_with(Instant::now);
            is_news
        };
        if is_news {
            tracing::warn!(repository, error, "is away; going on without it, and filling it up when it is back");
        } else {
            tracing::debug!(repository, error, "is still away");
        }
    }

    fn is_there(&mut self) {
        (self.again, self.backoff) = (None, Backoff::default());
        if lock(&self.state).away_since.take().is_some() {
            tracing::warn!(repository = self.repository.name(), "is back");
            self.back.notify_one();
        }
    }

    /// The pieces of a segment of which something was left out may hold what nothing else here does.
    async fn delete_pieces(&mut self, segment: SegmentName, is_obsolete: Obsolete) {
        let is_incomplete = lock(&self.state).incomplete == Some(segment);
        let deleted = within(PATIENCE, async {
            if is_incomplete && !self.repository.has_wal_file(&WalFileName::Segment(segment)).await? {
                return Ok(());
            }
            delete_pieces(&self.repository, segment, &*is_obsolete).await
        });
        match deleted.await {
            Ok(()) => {}
            // Perhaps nobody may.
            Err(error @ RepositoryError::Denied { .. }) => {
                tracing::debug!(%segment, error = &error as &dyn std::error::Error, "pieces were not deleted");
            }
            Err(error) => self.is_away(&error),
        }
    }
}

async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, RepositoryError>>,
) -> Result<T, RepositoryError> {
    let no_answer = |_| RepositoryError::Input(format!("no answer within {} s", patience.as_secs()));
    tokio::time::timeout(patience, work).await.map_err(no_answer)?
}
