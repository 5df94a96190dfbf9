//! Segments that are fetched before a server in recovery asks for them.
//!
//! They lie in `pg_wal/pgark-prefetch` as `<segment>.<CRC-32>`, where a rename gives them to the server. A call that
//! delivers a segment notes its name there, and starts a process that fetches the next ones, for as long as the server
//! goes on asking; a lock keeps it the only one. A segment is checked again before it is used, and every doubt means that
//! it is fetched as if nobody had done so before. Absence is never noted, and history files are asked for each time. The
//! server asks for one before it ends recovery: then the directory goes away.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use pgark_command::{data_directory_of_wal_file, read_control_file};
use pgark_postgres::{SegmentName, SegmentSize, SystemIdentifier, WalFileName};

use crate::archive::Archive;
use crate::fetch_wal::{CheckedWriter, FetchError, check_segment, fetch_first};

/// What PostgreSQL calls the file that a restore command makes. A person who fetches a segment gives another name.
const SERVERS_SEGMENT: &str = "RECOVERYXLOG";
const SERVERS_HISTORY: &str = "RECOVERYHISTORY";

const DIRECTORY: &str = "pgark-prefetch";
/// Locked by the process that fetches ahead; holds the name of the segment that the server was given last.
const LOCK: &str = "lock";
const UNFINISHED: &str = "fetching";

/// What may lie in the directory, so that large segments do not fill the disk.
const MOST_BYTES: u64 = 512 << 20;

/// Fetched at once: enough to hide the answers' delay, and no more than a server may miss.
const AT_ONCE: usize = 8;
/// Each one that is there allows one more: the server waits for the first, which would share the processor with all.
const AT_ONCE_FIRST: usize = 2;

/// How long the process that fetches ahead waits for the server to ask again, and how often it looks. A start, a new
/// connection and the first answer take longer than a server needs for the segments that it has in store.
const IDLE: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(10);

/// How far the server's work goes before that of the process that fetches ahead.
const NICE: i32 = 10;

/// How long a call waits for a segment that is under way.
const PATIENCE: Duration = Duration::from_secs(20);

/// Few calls, and little enough for the processor's cache.
const READ_LEN: usize = 256 << 10;

/// The option that makes a call fetch what comes behind its segment.
pub(crate) const OPTION: &str = "prefetch";

/// The directory beside a file that a server in recovery asked for.
#[derive(Debug)]
pub(crate) struct Prefetch {
    directory: PathBuf,
    destination: PathBuf,
    asked: SegmentName,
    /// How many segments are kept.
    most: usize,
}

impl Prefetch {
    /// Nothing where no server in recovery asks for a segment, or `most` is zero. A server that asks for a history
    /// file begins, ends or changes its way: what was fetched for it is removed.
    pub(crate) fn for_call(name: WalFileName, destination: &Path, most: usize) -> Option<Self> {
        let directory = destination.with_file_name(DIRECTORY);
        match (name, destination.file_name()?.to_str()?) {
            (WalFileName::Segment(asked), SERVERS_SEGMENT) if most > 0 => {
                Some(Self { directory, destination: destination.to_owned(), asked, most })
            }
            (WalFileName::History(_), SERVERS_HISTORY) => {
                // What cannot be removed is checked before it is used.
                drop(remove(&directory));
                None
            }
            _ => None,
        }
    }

    /// Gives the server its segment, if it is there or on its way and passes every check.
    pub(crate) async fn deliver(&self, expected: SystemIdentifier) -> bool {
        let begun = Instant::now();
        loop {
            // In this order: between the two it may be finished.
            let is_under_way = self.is_under_way();
            if let Some((_, path, crc)) = self.ready().find(|(segment, ..)| *segment == self.asked) {
                let delivered = self.hand_over(&path, crc, expected);
                if let Err(error) = &delivered {
                    tracing::debug!(segment = %self.asked, %error, "what was fetched ahead is of no use");
                    drop(fs::remove_file(path));
                }
                return delivered.is_ok();
            }
            if !is_under_way || begun.elapsed() > PATIENCE {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn hand_over(&self, path: &Path, crc: u32, expected: SystemIdentifier) -> anyhow::Result<()> {
        let mut output = CheckedWriter::new(io::sink());
        io::copy(&mut BufReader::with_capacity(READ_LEN, File::open(path)?), &mut output)?;
        anyhow::ensure!(output.crc() == crc, "its CRC-32 is not {crc:08x}");
        check_segment(self.asked, "ahead", expected, &output.head, output.size)?;
        Ok(fs::rename(path, &self.destination)?)
    }

    /// Notes what the server was given, and starts a process that fetches what comes next, unless enough is there or one
    /// is at it.
    ///
    /// It is this very call again with one more option, in a process group of its own, since PostgreSQL ends the whole
    /// group of a command that it no longer waits for.
    pub(crate) fn start(&self) {
        let Ok(size) = fs::metadata(&self.destination) else { return };
        let Ok(size) = SegmentSize::new(size.len()) else { return };
        let started = self.note_given().and_then(|()| {
            let wanted = self.wanted(self.asked, size);
            let ready = self.ready().filter(|(segment, ..)| wanted.contains(segment)).count();
            if ready > wanted.len() / 2 || self.is_locked() {
                return Ok(());
            }
            Command::new(std::env::current_exe()?)
                .args(std::env::args_os().skip(1))
                .arg(format!("--{OPTION}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .map(drop)
        });
        if let Err(error) = started {
            tracing::info!(%error, "segments are fetched one by one");
        }
    }

    fn note_given(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // All names are of one length, and what is read in between is only of no use.
        self.open_lock()?.write_all_at(self.asked.to_string().as_bytes(), 0)
    }

    /// What the server was given last; nothing when the directory of this lock has gone away.
    fn given_last(&self, lock: &File) -> Option<SegmentName> {
        let path = self.directory.join(LOCK);
        let is_there = fs::metadata(&path).ok()?.ino() == lock.metadata().ok()?.ino();
        fs::read_to_string(path).ok()?.parse().ok().filter(|_| is_there)
    }

    fn open_lock(&self) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).open(self.directory.join(LOCK))
    }

    /// Fetches what comes behind the segment that the server was given last, until it no longer asks or one is missing.
    pub(crate) async fn run(&self, archive: &Archive) -> anyhow::Result<()> {
        // The server that replays comes first. Where this is not allowed, it is fast enough, too.
        let _ignored = rustix::process::nice(NICE);
        let size = read_control_file(&data_directory_of_wal_file(&self.destination))?.segment_size;
        // The lock ends with this process. Without the directory the server has no more use for all this.
        let lock = self.open_lock()?;
        if lock.try_lock().is_err() {
            return Ok(());
        }
        let (mut given, mut given_at) = (None, Instant::now());
        let mut at_once = AT_ONCE_FIRST;
        let mut under_way = BTreeSet::new();
        let mut fetches = FuturesOrdered::new();
        while let Some(last) = self.given_last(&lock) {
            let mut wanted = self.wanted(last, size);
            if given.replace(last) != Some(last) {
                given_at = Instant::now();
                self.remove_all_but(|segment| wanted.contains(&segment), |segment| under_way.contains(&segment))?;
            }
            let ready: Vec<SegmentName> = self.ready().map(|(segment, ..)| segment).collect();
            wanted.retain(|segment| !ready.contains(segment) && !under_way.contains(segment));
            for segment in wanted.into_iter().take(at_once.saturating_sub(under_way.len())) {
                under_way.insert(segment);
                fetches.push_back(async move { (segment, self.fetch(archive, segment).await) });
            }
            tokio::select! {
                Some((segment, fetched)) = fetches.next() => {
                    under_way.remove(&segment);
                    at_once = AT_ONCE.min(at_once + 1);
                    if !fetched? {
                        break;
                    }
                }
                () = tokio::time::sleep(INTERVAL), if !under_way.is_empty() || given_at.elapsed() < IDLE => {}
                else => break,
            }
        }
        Ok(())
    }

    async fn fetch(&self, archive: &Archive, segment: SegmentName) -> Result<bool, FetchError> {
        let temporary = self.unfinished(segment);
        let Some(whole) = fetch_first(archive, WalFileName::Segment(segment), &temporary).await? else {
            return Ok(false);
        };
        let path = self.directory.join(format!("{segment}.{:08x}", whole.crc()));
        whole.publish(path).await?;
        Ok(true)
    }

    /// The segments behind the one that was given, on its timeline.
    fn wanted(&self, given: SegmentName, size: SegmentSize) -> Vec<SegmentName> {
        let most = self.most.min(usize::try_from(MOST_BYTES / size.bytes()).unwrap_or(usize::MAX));
        let next = |segment: &SegmentName| Some(segment.next(size)).filter(|next| next > segment);
        std::iter::successors(next(&given), next).take(most).collect()
    }

    fn remove_all_but(
        &self,
        is_wanted: impl Fn(SegmentName) -> bool,
        is_under_way: impl Fn(SegmentName) -> bool,
    ) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let unfinished = |name: &str| name.strip_suffix(UNFINISHED)?.strip_suffix('.')?.parse().ok();
            let stays = |name: &str| {
                name == LOCK
                    || split(name).is_some_and(|(segment, _)| is_wanted(segment))
                    || unfinished(name).is_some_and(&is_under_way)
            };
            if !entry.file_name().to_str().is_some_and(stays) {
                // A segment may just be on its way to the server.
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(())
    }

    /// What lies there, each with its CRC-32.
    fn ready(&self) -> impl Iterator<Item = (SegmentName, PathBuf, u32)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| {
            let (segment, crc) = split(entry.file_name().to_str()?)?;
            Some((segment, entry.path(), crc))
        })
    }

    fn is_under_way(&self) -> bool {
        self.unfinished(self.asked).exists() && self.is_locked()
    }

    fn unfinished(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(format!("{segment}.{UNFINISHED}"))
    }

    fn is_locked(&self) -> bool {
        File::open(self.directory.join(LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_err())
    }
}

/// Removes the directory under another name: a process that fetches ahead may be writing to it, and makes no files in a
/// directory that it no longer finds.
fn remove(directory: &Path) -> io::Result<()> {
    let removed = directory.with_extension("removed");
    // One that a call left behind when it was killed; where there is none, that is as well.
    drop(fs::remove_dir_all(&removed));
    fs::rename(directory, &removed)?;
    fs::remove_dir_all(removed)
}

/// Takes the name of a segment that is ready apart.
fn split(name: &str) -> Option<(SegmentName, u32)> {
    let (segment, crc) = name.split_once('.')?;
    let is_crc = crc.len() == 8 && crc.bytes().all(|byte| byte.is_ascii_hexdigit());
    let crc = is_crc.then(|| u32::from_str_radix(crc, 16).ok())??;
    Some((segment.parse().ok()?, crc))
}
