//! A backup as a server would send it, made up: files of every kind, and the manifest that belongs to them.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use pgark_postgres::{Lsn, TimelineId, crc32c_to_hex};
use pgark_repository::{
    BACKUP_FORMAT, Backup, BackupId, BackupKind, BackupWriter, BackupWriterOptions, CheckedBackup, ClusterRepository,
    Origin, RepositoryError, ServerFacts, StoredFile, TarMember, Totals, WalRange,
};
use sha2::{Digest, Sha256};

use crate::place::{SYSTEM, noise};

pub(crate) const OPTIONS: BackupWriterOptions = BackupWriterOptions { level: 1, jobs: 2, part_bytes: 3 << 20 };

/// Members in the order in which they are sent; a directory has no content.
#[derive(Clone)]
pub(crate) struct Sample(pub(crate) Vec<(TarMember, Option<Vec<u8>>)>);

impl Sample {
    /// Thousands of small files, one far larger than a part and than a frame, empty ones, and names of all kinds.
    pub(crate) fn large() -> Self {
        let mut sample = Self::small();
        sample.directory(b"base/5");
        for number in 0..3_000_u64 {
            // Pages of a small relation, and now and then a size that fills no block.
            let size = (number % 3) * 8192 + if number % 50 == 0 { number % 511 } else { 0 };
            let mut content = noise(number, usize::try_from(size).unwrap());
            content.iter_mut().skip(100).step_by(2).for_each(|byte| *byte = 7);
            sample.file(format!("base/5/{}", 16384 + number).as_bytes(), content);
        }
        sample.file(b"base/5/large", noise(99, (13 << 20) + 77));
        sample.file(b"base/5/exactly_a_frame", vec![1; 4 << 20]);
        sample.directory(b"base/6");
        sample.file(b"global/pg_control", noise(3, 8192));
        sample
    }

    /// A few files that show everything.
    pub(crate) fn small() -> Self {
        let mut sample = Self(Vec::new());
        sample.file(b"backup_label", b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n".to_vec());
        sample.file(b"tablespace_map", Vec::new());
        for folder in [&b"base"[..], b"base/1", b"global", b"pg_wal", b"pg_wal/archive_status", b"empty \xff folder"] {
            sample.directory(folder);
        }
        sample.file(b"PG_VERSION", b"15\n".to_vec());
        sample.file(b"base/1/empty", Vec::new());
        sample.file(b"base/1/one", b"1".to_vec());
        sample.file(b"base/1/block", vec![b'b'; 512]);
        sample.file(b"base/1/\xe4\xf6\xfc not utf-8", b"bytes".to_vec());
        sample.file("base/1/ü \"quoted\" \\ back".as_bytes(), b"text".to_vec());
        sample.file(&[b"base/1/".as_slice(), &[b'n'; 93]].concat(), vec![b'c'; 513]);
        sample
    }

    pub(crate) fn file(&mut self, path: &[u8], content: Vec<u8>) {
        let size = Some(content.len() as u64);
        let member = TarMember { path: path.to_vec(), mode: 0o600, mtime: 1_763_600_000, size };
        self.0.push((member, Some(content)));
    }

    pub(crate) fn directory(&mut self, path: &[u8]) {
        self.0.push((TarMember { path: path.to_vec(), mode: 0o700, mtime: 1_763_600_000, size: None }, None));
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = (&TarMember, &Vec<u8>)> {
        self.0.iter().filter_map(|(member, content)| Some((member, content.as_ref()?)))
    }

    pub(crate) fn manifest(&self) -> Manifest {
        Manifest(self.files().map(|(member, content)| entry(&member.path, content)).collect())
    }

    /// Sends everything but the manifest, in chunks of an odd size.
    pub(crate) async fn write_members(&self, writer: &mut BackupWriter) -> Result<(), RepositoryError> {
        for (member, content) in &self.0 {
            writer.begin_member(member, None).await?;
            for chunk in content.as_deref().unwrap_or_default().chunks(77_777) {
                writer.write(chunk).await?;
            }
        }
        Ok(())
    }

    /// Takes the backup up to its commit.
    pub(crate) async fn write(
        &self,
        repositories: &[ClusterRepository],
        options: BackupWriterOptions,
        manifest: &str,
    ) -> Result<CheckedBackup, RepositoryError> {
        let mut writer = begin(repositories, options).await?;
        if let Err(error) = self.write_members(&mut writer).await {
            writer.abort().await;
            return Err(error);
        }
        let mut writer = writer.begin_manifest().await?;
        for chunk in manifest.as_bytes().chunks(1_000) {
            writer.write(Bytes::copy_from_slice(chunk)).await?;
        }
        writer.finish().await.map(|(checked, _)| checked)
    }

    pub(crate) async fn commit(&self, repositories: &[ClusterRepository]) -> Backup {
        let checked = self.write(repositories, OPTIONS, &self.manifest().text()).await.unwrap();
        checked.commit(&facts).await.unwrap()
    }
}

pub(crate) async fn begin(
    repositories: &[ClusterRepository],
    options: BackupWriterOptions,
) -> Result<BackupWriter, RepositoryError> {
    let (host, program) = ("test".to_owned(), "pgark 0.1.0".to_owned());
    BackupWriter::begin(repositories.to_vec(), Origin::Server, host, program, options).await
}

/// The lines about files. A server writes them in the order in which it sends the files.
#[derive(Clone)]
pub(crate) struct Manifest(pub(crate) Vec<String>);

/// A line without its comma.
pub(crate) fn entry(path: &[u8], content: &[u8]) -> String {
    entry_with(path, content.len() as u64, &crc32c_to_hex(crc32c::crc32c(content)))
}

pub(crate) fn entry_with(path: &[u8], size: u64, checksum: &str) -> String {
    let name = match std::str::from_utf8(path) {
        Ok(path) => format!("\"Path\": {}", serde_json::to_string(path).unwrap()),
        Err(_) => format!("\"Encoded-Path\": \"{}\"", hex(path)),
    };
    format!(
        "{{ {name}, \"Size\": {size}, \"Last-Modified\": \"2026-11-20 01:53:20 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}"
    )
}

impl Manifest {
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {SYSTEM},\n");
        writeln!(text, "\"Files\": [\n{}\n],", self.0.join(",\n")).unwrap();
        text.push_str(
            "\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n",
        );
        let checksum = hex(&Sha256::digest(&text));
        writeln!(text, "\"Manifest-Checksum\": \"{checksum}\"}}").unwrap();
        text
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What an agent knows; the writer puts in what it knows itself.
pub(crate) fn facts(id: BackupId) -> Backup {
    let nothing = || StoredFile { name: String::new(), stored_size: 0, crc32: String::new(), sha256: String::new() };
    let segment = "000000010000000000000002".parse().unwrap();
    Backup {
        format: BACKUP_FORMAT,
        id,
        kind: BackupKind::Full,
        parent: None,
        consolidated: None,
        cluster: "main".to_owned(),
        server: ServerFacts {
            system_identifier: SYSTEM,
            version_num: 150_018,
            wal_segment_size: 1 << 20,
            data_directory_mode: "0700".to_owned(),
            data_directory: Some("/var/lib/postgresql/15/main".to_owned()),
            files_outside: Vec::new(),
            data_checksums: true,
            standby: false,
        },
        timeline: TimelineId::FIRST,
        start_lsn: Lsn::new(0x200_0028),
        stop_timeline: TimelineId::FIRST,
        stop_lsn: Lsn::new(0x200_0100),
        start_time: "2026-11-20T02:00:03Z".parse().unwrap(),
        stop_time: "2026-11-20T02:00:08Z".parse().unwrap(),
        wal: WalRange { first: segment, last: segment },
        tablespaces: Vec::new(),
        parts: Vec::new(),
        manifest: nothing(),
        index: nothing(),
        block_map: None,
        totals: Totals::default(),
        recipients: Vec::new(),
        included: Vec::new(),
        annotations: BTreeMap::from([("reason".to_owned(), "test \"quoted\"".to_owned())]),
        damaged_pages: None,
        damaged_files: Vec::new(),
        written_by: "pgark 0.1.0".to_owned(),
        checksum: String::new(),
    }
}
