//! From the server's stream to the writer: archives are taken apart, paths made relative to the data directory.

use anyhow::{Context, bail};
use pgark_command::Progress;
use pgark_postgres::{BackupLabel, ControlFile};
use pgark_repository::{BackupWriter, TarMember};

use super::changes::{Changes, OpenFile, RewrittenManifest};
use super::limit_blocks::LimitBlocks;
use super::parent::KeptManifest;
use super::tar_stream::{TarPiece, TarStream};
use super::writing::Writing;
use crate::replication::{ArchiveName, BackupMessage, BaseBackupStream};

/// Files that are looked at on the way are small: the map has a line of at most a KiB or two for each tablespace.
const LOOK_LIMIT: u64 = 16 << 20;

/// What no server sends: its own state while it runs, and the manifest, which comes by itself.
const NEVER_SENT: [&[u8]; 3] = [b"backup_manifest", b"postmaster.pid", b"postmaster.opts"];

/// What arrived besides the stored bytes.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) label: BackupLabel,
    pub(super) control: ControlFile,
    /// The content of tablespace_map; empty where there are no tablespaces.
    pub(super) map: Vec<u8>,
}

/// What becomes of the stream besides that it is stored.
#[derive(Default)]
pub(super) struct Handling {
    /// Where relations were cut, for the index.
    pub(super) limits: LimitBlocks,
    /// Gets the manifest, unless it cannot be kept.
    pub(super) kept: Option<KeptManifest>,
    /// Compares the stream with the parent's map, where the server does not.
    pub(super) changes: Option<Changes>,
}

/// Reads the whole stream into the writer.
pub(super) async fn receive(
    stream: &mut BaseBackupStream<'_>,
    writing: &mut Writing,
    handling: &mut Handling,
    progress: &Progress,
) -> anyhow::Result<Received> {
    let mut manifest: Option<RewrittenManifest> = None;
    let mut archive: Option<OpenArchive> = None;
    let (mut label, mut control, mut map) = (None, None, None);
    while let Some(message) = stream.next().await? {
        match (message, &mut *writing) {
            (BackupMessage::Progress(bytes), _) => progress.set(bytes),
            (BackupMessage::Archive { name, .. }, Writing::Parts(writer)) => {
                end_archive(archive.take())?;
                archive = Some(OpenArchive::begin(name, writer).await?);
            }
            (BackupMessage::Data(bytes), Writing::Parts(writer)) => {
                let Some(archive) = &mut archive else { bail!("the server sent data before an archive") };
                let mut seen = |seen| match seen {
                    Seen::Label(read) => label = Some(read),
                    Seen::Control(read) => control = Some(read),
                    Seen::Map(read) => map = Some(read),
                };
                archive.take(&bytes, writer, handling, &mut seen).await?;
            }
            (BackupMessage::ManifestStart, Writing::Parts(_)) => {
                end_archive(archive.take())?;
                manifest = handling.changes.take().map(Changes::end).transpose()?;
                writing.begin_manifest().await?;
            }
            (BackupMessage::ManifestData(bytes), Writing::Manifest(writer)) => {
                if let Some(Err(error)) = handling.kept.as_mut().map(|kept| kept.write(&bytes)) {
                    tracing::warn!(%error, "the manifest cannot be kept in state_dir: the next backup will be a full one");
                    handling.kept = None;
                }
                let bytes = match &mut manifest {
                    Some(manifest) => manifest.take(&bytes)?.into(),
                    None => bytes,
                };
                writer.write(bytes).await?;
            }
            (_, _) => bail!("the server sent archives and manifest in the wrong order"),
        }
    }
    match (label, control) {
        (Some(label), Some(control)) => Ok(Received { label, control, map: map.unwrap_or_default() }),
        (None, _) => bail!("the server sent no backup_label"),
        (_, None) => bail!("the server sent no global/pg_control"),
    }
}

fn end_archive(archive: Option<OpenArchive>) -> anyhow::Result<()> {
    match archive {
        None => Ok(()),
        Some(archive) => archive.tar.finish().with_context(|| format!("read {}", archive.title)),
    }
}

struct OpenArchive {
    tar: TarStream,
    title: String,
    /// Where the archive's root lies below the data directory.
    prefix: Vec<u8>,
    look: Option<Look>,
    /// The file that is being compared with the parent's.
    open: Option<OpenFile>,
}

/// A file that is looked at while it passes.
struct Look {
    file: Looked,
    remaining: u64,
    content: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Looked {
    Label,
    Control,
    Map,
}

enum Seen {
    Label(BackupLabel),
    Control(ControlFile),
    Map(Vec<u8>),
}

impl OpenArchive {
    async fn begin(name: ArchiveName, writer: &mut BackupWriter) -> anyhow::Result<Self> {
        let (title, prefix) = match name {
            ArchiveName::Base => ("base.tar".to_owned(), Vec::new()),
            ArchiveName::Tablespace(oid) => {
                let path = format!("pg_tblspc/{oid}").into_bytes();
                // The archive of a tablespace has no entry for its root.
                let root = TarMember { path: path.clone(), mode: 0o700, mtime: 0, size: None };
                writer.begin_member(&root, None).await?;
                (format!("{oid}.tar"), [path, b"/".to_vec()].concat())
            }
        };
        Ok(Self { tar: TarStream::default(), title, prefix, look: None, open: None })
    }

    async fn take(
        &mut self,
        mut bytes: &[u8],
        writer: &mut BackupWriter,
        handling: &mut Handling,
        seen: &mut (impl FnMut(Seen) + Send),
    ) -> anyhow::Result<()> {
        while let Some(piece) =
            self.tar.next(&mut bytes).with_context(|| format!("read {} of the server", self.title))?
        {
            match piece {
                // The root directory itself.
                TarPiece::Member(member) if member.path.is_empty() => {}
                TarPiece::Member(mut member) => {
                    self.check_place(&member)?;
                    self.look = self.looked(&member)?;
                    if !self.prefix.is_empty() {
                        member.path = [&self.prefix, member.path.as_slice()].concat();
                    }
                    match &mut handling.changes {
                        Some(changes) => self.open = changes.begin(member, writer).await?,
                        None => writer.begin_member(&member, handling.limits.of(&member.path)).await?,
                    }
                }
                TarPiece::Content(content) => {
                    match (&mut self.open, &mut handling.changes) {
                        (Some(open), Some(changes)) => changes.write(open, content, writer).await?,
                        _ => writer.write(content).await?,
                    }
                    if let Some(look) = &mut self.look {
                        look.content.extend_from_slice(content);
                        look.remaining -= content.len() as u64;
                    }
                }
            }
            if let Some(changes) = &mut handling.changes
                && let Some(open) = self.open.take_if(|open| open.is_complete())
            {
                changes.finish(open, writer).await?;
            }
            if let Some(look) = self.look.take_if(|look| look.remaining == 0) {
                seen(look.parse()?);
            }
        }
        Ok(())
    }

    /// Tablespaces have archives of their own, in which everything lies below the directory of a catalogue version.
    fn check_place(&self, member: &TarMember) -> anyhow::Result<()> {
        let path = member.path.as_slice();
        let is_own = if self.prefix.is_empty() {
            !path.starts_with(b"pg_tblspc/") && !NEVER_SENT.contains(&path)
        } else {
            path.starts_with(b"PG_") && (path.contains(&b'/') || member.size.is_none())
        };
        if !is_own {
            bail!("`{}` is in {} of the server, where no server puts it", String::from_utf8_lossy(path), self.title);
        }
        Ok(())
    }

    fn looked(&self, member: &TarMember) -> anyhow::Result<Option<Look>> {
        let file = match member.path.as_slice() {
            _ if !self.prefix.is_empty() => return Ok(None),
            b"backup_label" => Looked::Label,
            b"global/pg_control" => Looked::Control,
            b"tablespace_map" => Looked::Map,
            _ => return Ok(None),
        };
        match member.size {
            Some(remaining @ ..=LOOK_LIMIT) => Ok(Some(Look { file, remaining, content: Vec::new() })),
            size => {
                let name = String::from_utf8_lossy(&member.path);
                bail!("the server sent `{name}` with {} bytes, expected at most {LOOK_LIMIT}", size.unwrap_or(0))
            }
        }
    }
}

impl Look {
    fn parse(self) -> anyhow::Result<Seen> {
        Ok(match self.file {
            Looked::Label => Seen::Label(BackupLabel::parse(&self.content).context("read the server's backup_label")?),
            Looked::Control => {
                Seen::Control(ControlFile::parse(&self.content).context("read the server's pg_control")?)
            }
            Looked::Map => Seen::Map(self.content),
        })
    }
}
