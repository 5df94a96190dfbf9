//! What has arrived and is not stored yet, and the uploads that are under way.
//!
//! It outlives the connection: what was received is stored also when the server is gone. At any time one piece of the
//! newest segment and one whole segment are under way; the memory for them is all that is needed, since the bytes
//! themselves lie in files.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use pgark_postgres::{Lsn, SegmentName, SegmentSize, TimelineId};
use pgark_repository::WalPiece;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::destination::{Destination, Settings};
use super::open_segment::{NextPiece, OpenSegment};

/// So many whole segments may wait in files; then nothing more is received, and the server keeps the rest.
const MOST_WAITING: usize = 4;

/// An upload has ended.
enum Done {
    Piece {
        number: u64,
        next: NextPiece,
    },
    Segment {
        number: u64,
    },
    /// Something that nobody waits for.
    Cleaned,
}

/// The segments on their way from the server into the repositories.
pub(crate) struct Pipeline {
    destination: Arc<Destination>,
    settings: Arc<Settings>,
    size: SegmentSize,
    /// Oldest first, each with a number of its own; the last one is being written.
    segments: VecDeque<(u64, OpenSegment)>,
    next_number: u64,
    jobs: JoinSet<anyhow::Result<Done>>,
    /// Everything that has been received is stored at once.
    pub(crate) is_urgent: bool,
    /// Where the stream goes on.
    end: Lsn,
    /// The start of what is not in every repository, for others.
    reached: watch::Sender<Lsn>,
}

impl Pipeline {
    pub(crate) fn new(
        destination: Arc<Destination>,
        settings: Arc<Settings>,
        size: SegmentSize,
    ) -> anyhow::Result<Self> {
        let spool = &settings.spool;
        // What an earlier run left is not trusted.
        if let Err(error) = std::fs::remove_dir_all(spool)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("empty {}", spool.display()));
        }
        std::fs::create_dir_all(spool).with_context(|| format!("create {}", spool.display()))?;
        Ok(Self {
            destination,
            settings,
            size,
            segments: VecDeque::new(),
            next_number: 0,
            jobs: JoinSet::new(),
            is_urgent: false,
            end: Lsn::ZERO,
            reached: watch::Sender::new(Lsn::ZERO),
        })
    }

    /// The newest segment that was received, and whether all of it was.
    pub(crate) fn newest(&self) -> Option<(SegmentName, bool)> {
        self.segments.back().map(|(_, segment)| (segment.name, segment.is_complete()))
    }

    /// Gets ready for a stream that begins with this segment: what is incomplete comes once more.
    pub(crate) fn begin(&mut self, first: SegmentName) {
        self.segments.retain(|(_, segment)| segment.is_complete());
        self.is_urgent = false;
        self.end = first.start(self.size);
        self.reached.send_replace(self.durable());
    }

    /// What others can see of [`Self::durable`].
    pub(crate) fn watch_durable(&self) -> watch::Receiver<Lsn> {
        self.reached.subscribe()
    }

    /// Takes what arrived.
    pub(crate) fn append(&mut self, timeline: TimelineId, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            let name = SegmentName::containing(timeline, self.end, self.size);
            if self.segments.back().is_none_or(|(_, segment)| segment.name != name) {
                let segment = OpenSegment::begin(name, self.size, &self.settings.spool)?;
                self.segments.push_back((self.next_number, segment));
                self.next_number += 1;
            }
            let Some((_, segment)) = self.segments.back_mut() else { break };
            let taken = segment.append(bytes)?;
            bytes = bytes.get(taken..).unwrap_or_default();
            self.end = self.end.saturating_add(taken as u64);
        }
        Ok(())
    }

    /// Notes that the timeline ended: what is incomplete stays so.
    pub(crate) fn timeline_ended(&mut self) {
        if let Some((_, segment)) = self.segments.back_mut() {
            segment.has_ended = !segment.is_complete();
        }
    }

    /// Everything below is in every repository.
    pub(crate) fn durable(&self) -> Lsn {
        let first = self.segments.iter().find(|(_, segment)| !segment.is_done());
        // A stream that was begun again may be below what is still on its way.
        first.map_or(self.end, |(_, first)| first.durable_lsn().min(self.end))
    }

    /// How far the stream has been received.
    pub(crate) fn received(&self) -> Lsn {
        self.end
    }

    pub(crate) fn has_room(&self) -> bool {
        self.segments.len() <= MOST_WAITING
    }

    /// Starts what is due, and returns when to look again.
    pub(crate) fn start_due(&mut self) -> Option<Instant> {
        let stream = &self.settings.stream;
        let at_once = self.is_urgent || stream.synchronous;
        let interval = if at_once { Duration::ZERO } else { stream.partial_interval };
        let now = Instant::now();
        let mut next_look = None;
        for (number, segment) in &mut self.segments {
            if segment.is_complete() && !segment.segment_under_way {
                segment.segment_under_way = true;
                let (number, name, bytes, size) = (*number, segment.name, segment.bytes_from(0), self.size);
                let destination = Arc::clone(&self.destination);
                self.jobs.spawn(async move {
                    destination.store_segment(name, bytes, size).await?;
                    Ok(Done::Segment { number })
                });
            }
            match segment.piece_due(interval, stream.partial_bytes, now) {
                Some(due) if due <= now => {
                    let next = segment.next_piece();
                    let (number, name, bytes) = (*number, segment.name, segment.bytes_from(next.piece.start));
                    let destination = Arc::clone(&self.destination);
                    self.jobs.spawn(async move {
                        destination.store_piece(name, next.piece, bytes).await?;
                        Ok(Done::Piece { number, next })
                    });
                }
                due => next_look = due.into_iter().chain(next_look).min(),
            }
        }
        next_look
    }

    /// Waits for the end of any upload; forever when there is none. Cancel-safe.
    pub(crate) async fn next_done(&mut self) -> anyhow::Result<()> {
        match self.jobs.join_next().await {
            Some(done) => self.done(done??),
            None => std::future::pending().await,
        }
    }

    fn done(&mut self, done: Done) -> anyhow::Result<()> {
        match done {
            Done::Piece { number, next } => {
                let Some((_, segment)) = self.segments.iter_mut().find(|(other, _)| *other == number) else {
                    return Ok(());
                };
                let is_first = segment.durable == 0;
                let replaces = segment.piece_stored(next);
                let (name, durable, own) = (segment.name, segment.durable, segment.pieces());
                if segment.is_stored {
                    self.delete_pieces(name, |_| true);
                } else if (replaces || is_first || next.piece.start == 0) && !segment.segment_under_way {
                    // An earlier run may have left some, too.
                    self.delete_pieces(name, move |piece| piece.end <= durable && !own.contains(&piece));
                }
            }
            Done::Segment { number } => {
                let found = self.segments.iter_mut().find(|(other, _)| *other == number);
                if let Some((_, segment)) = found {
                    segment.is_stored = true;
                    let name = segment.name;
                    if !segment.piece_under_way {
                        self.delete_pieces(name, |_| true);
                    }
                }
            }
            Done::Cleaned => {}
        }
        let is_over = |(_, segment): &(u64, OpenSegment)| segment.is_done() && !segment.piece_under_way;
        while self.segments.len() > 1 && self.segments.front().is_some_and(is_over) {
            self.segments.pop_front();
        }
        self.reached.send_replace(self.durable());
        Ok(())
    }

    fn delete_pieces(&mut self, segment: SegmentName, is_obsolete: impl Fn(WalPiece) -> bool + Send + Sync + 'static) {
        let destination = Arc::clone(&self.destination);
        self.jobs.spawn(async move {
            destination.delete_pieces(segment, is_obsolete).await;
            Ok(Done::Cleaned)
        });
    }

    /// Stores everything that has arrived, for as long as `patience` lasts; tells whether that was enough.
    pub(crate) async fn drain(&mut self, patience: Duration) -> anyhow::Result<bool> {
        self.is_urgent = true;
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            self.start_due();
            if self.jobs.is_empty() {
                return Ok(self.durable() >= self.received());
            }
            match tokio::time::timeout_at(deadline, self.next_done()).await {
                Ok(done) => done?,
                Err(_) => return Ok(self.durable() >= self.received()),
            }
        }
    }
}
