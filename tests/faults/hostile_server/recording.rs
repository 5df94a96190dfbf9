//! A base backup as a real server sent it, taken apart so that a test can change what it likes, and put together again.
//!
//! Only a handful of its files are kept, and the manifest is written anew with the right checksum, so that each change
//! is met by the check that is meant for it and not by the next best one.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::proxy::Answer;

/// Files that stay, besides all directories.
const KEPT: [&str; 6] =
    ["backup_label", "tablespace_map", "PG_VERSION", "postgresql.auto.conf", "base/1/PG_VERSION", "global/pg_control"];

#[derive(Clone)]
pub(crate) struct Recording {
    /// Positions, the list of tablespaces, and the beginning of the copy.
    pub(crate) head: Vec<Vec<u8>>,
    pub(crate) archives: Vec<Archive>,
    pub(crate) manifest: Manifest,
    /// The end of the copy and what follows.
    pub(crate) tail: Vec<Vec<u8>>,
}

#[derive(Clone)]
pub(crate) struct Archive {
    /// `base.tar` and the like, with what follows in the message.
    pub(crate) title: Vec<u8>,
    pub(crate) members: Vec<Member>,
    /// What follows the last member.
    pub(crate) end: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) header: Vec<u8>,
    pub(crate) content: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct Manifest {
    head: Vec<String>,
    /// A line a file, without its comma.
    pub(crate) files: Vec<String>,
    pub(crate) ranges: Vec<String>,
    /// In place of all of it.
    pub(crate) instead: Option<Vec<u8>>,
}

impl Recording {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let messages = split(bytes);
        let begin = messages.iter().position(|message| message[0] == b'H').unwrap() + 1;
        let end = messages.iter().position(|message| message[0] == b'c').unwrap();
        let (mut archives, mut manifest) = (Vec::<(Vec<u8>, Vec<u8>)>::new(), None::<Vec<u8>>);
        for message in &messages[begin..end] {
            let body = &message[6..];
            match (message[5], &mut manifest) {
                (b'n', _) => archives.push((body.to_vec(), Vec::new())),
                (b'm', _) => manifest = Some(Vec::new()),
                (b'd', Some(manifest)) => manifest.extend_from_slice(body),
                (b'd', None) => archives.last_mut().unwrap().1.extend_from_slice(body),
                (kind, _) => assert_eq!(kind, b'p'),
            }
        }
        let manifest = String::from_utf8(manifest.unwrap()).unwrap();
        let mut recording = Self {
            head: messages[..begin].to_vec(),
            archives: archives.iter().map(|(title, bytes)| Archive::new(title, bytes)).collect(),
            manifest: Manifest::new(&manifest),
            tail: messages[end..].to_vec(),
        };
        recording.keep_few();
        recording
    }

    fn keep_few(&mut self) {
        for archive in &mut self.archives {
            archive.members.retain(|member| {
                let path = member.path();
                member.header[156] == b'5' && path.split('/').count() <= 2 || KEPT.contains(&path.as_str())
            });
        }
        let is_kept = |line: &String| KEPT.iter().any(|path| line.contains(&format!("\"Path\": \"{path}\"")));
        self.manifest.files.retain(is_kept);
    }

    /// The archive of the data directory.
    pub(crate) fn base(&mut self) -> &mut Archive {
        self.archives.last_mut().unwrap()
    }

    /// Adds an archive, before that of the data directory.
    pub(crate) fn add_archive(&mut self, title: &[u8]) -> &mut Archive {
        let archive = Archive { title: title.to_vec(), members: Vec::new(), end: vec![0; 1024] };
        let at = self.archives.len() - 1;
        self.archives.insert(at, archive);
        &mut self.archives[at]
    }

    /// Adds a tablespace to the list, to the map and to the archives; returns its archive.
    pub(crate) fn add_tablespace(&mut self, oid: u32, location: &str) -> &mut Archive {
        let row = data_row(&[Some(&oid.to_string()), Some(location), Some("1")]);
        // The second result set: its rows stand before the second CommandComplete.
        let at = self.head.iter().enumerate().filter(|(_, message)| message[0] == b'C').nth(1).unwrap().0;
        self.head.insert(at, row);
        let line = format!("{oid} {location}\n").into_bytes();
        self.set_file("tablespace_map", line);
        self.add_archive(format!("{oid}.tar\0{location}\0").as_bytes())
    }

    /// Other content of a file, also in the manifest.
    pub(crate) fn set_file(&mut self, path: &str, content: Vec<u8>) {
        let entry = Manifest::entry(path, &content);
        let line = self.manifest.line(path);
        *line = entry;
        let member = self.base().member(path);
        member.content = content;
        member.set_size(member.content.len() as u64);
    }

    pub(crate) fn play(&self, output: &mut dyn Write) -> io::Result<()> {
        for message in &self.head {
            output.write_all(message)?;
        }
        for archive in &self.archives {
            output.write_all(&copy_data(b'n', &archive.title))?;
            for piece in archive.bytes().chunks(8192) {
                output.write_all(&copy_data(b'd', piece))?;
            }
        }
        output.write_all(&copy_data(b'm', b""))?;
        for piece in self.manifest.bytes().chunks(8192) {
            output.write_all(&copy_data(b'd', piece))?;
        }
        for message in &self.tail {
            output.write_all(message)?;
        }
        Ok(())
    }

    pub(crate) fn answer(self) -> Answer {
        std::sync::Arc::new(move |output| self.play(output))
    }
}

impl Archive {
    pub(crate) fn new(title: &[u8], bytes: &[u8]) -> Self {
        let mut members = Vec::new();
        let mut at = 0;
        while bytes[at..].iter().take(512).any(|byte| *byte != 0) {
            let header = bytes[at..at + 512].to_vec();
            let digits = String::from_utf8(header[124..135].to_vec()).unwrap();
            let size = usize::from_str_radix(&digits, 8).unwrap();
            members.push(Member { header, content: bytes[at + 512..at + 512 + size].to_vec() });
            at += 512 + size.next_multiple_of(512);
        }
        Self { title: title.to_vec(), members, end: bytes[at..].to_vec() }
    }

    pub(crate) fn member(&mut self, path: &str) -> &mut Member {
        self.members.iter_mut().find(|member| member.path() == path).unwrap()
    }

    pub(crate) fn add(&mut self, member: Member) {
        // After the first file, which is the label.
        let at = self.members.len().min(2);
        self.members.insert(at, member);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for member in &self.members {
            bytes.extend_from_slice(&member.header);
            bytes.extend_from_slice(&member.content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        [bytes, self.end.clone()].concat()
    }
}

impl Member {
    /// As PostgreSQL writes headers.
    pub(crate) fn new(path: &[u8], kind: u8, content: &[u8]) -> Self {
        let mut header = vec![0; 512];
        header[..path.len()].copy_from_slice(path);
        header[156] = kind;
        for (range, text) in
            [(100..107, "0000600"), (108..115, "0000000"), (116..123, "0000000"), (136..147, "15000000000")]
        {
            header[range].copy_from_slice(text.as_bytes());
        }
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        let mut member = Self { header, content: content.to_vec() };
        member.set_size(content.len() as u64);
        member
    }

    pub(crate) fn path(&self) -> String {
        self.raw_path().trim_start_matches("./").trim_end_matches('/').to_owned()
    }

    /// As it stands there.
    pub(crate) fn raw_path(&self) -> String {
        let end = self.header[..100].iter().position(|byte| *byte == 0).unwrap_or(100);
        let path = String::from_utf8_lossy(&self.header[..end]).into_owned();
        if self.header[156] == b'5' { path.trim_end_matches('/').to_owned() } else { path }
    }

    /// What the header says, whatever follows.
    pub(crate) fn set_size(&mut self, size: u64) {
        self.set(124, format!("{size:011o}").as_bytes());
    }

    /// Changes bytes of the header and makes its checksum right.
    pub(crate) fn set(&mut self, at: usize, bytes: &[u8]) {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self.header[148..156].fill(b' ');
        let sum: u32 = self.header.iter().map(|byte| u32::from(*byte)).sum();
        self.header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
}

impl Manifest {
    pub(crate) fn new(text: &str) -> Self {
        let (head, rest) = text.split_once("\"Files\": [\n").unwrap();
        let (files, rest) = rest.split_once("\n],\n\"WAL-Ranges\": [\n").unwrap();
        let (ranges, _) = rest.split_once("\n],\n").unwrap();
        let lines = |text: &str| text.split(",\n").map(str::to_owned).collect();
        let head = head.lines().map(str::to_owned).collect();
        Self { head, files: lines(files), ranges: lines(ranges), instead: None }
    }

    pub(crate) fn entry(path: &str, content: &[u8]) -> String {
        format!(
            "{{ \"Path\": {path:?}, \"Size\": {}, \"Last-Modified\": \"2026-11-21 04:00:29 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            content.len(),
            crc32c::crc32c(content).to_le_bytes().map(|byte| format!("{byte:02x}")).concat()
        )
    }

    pub(crate) fn line(&mut self, path: &str) -> &mut String {
        let start = format!("{{ \"Path\": \"{path}\"");
        self.files.iter_mut().find(|line| line.starts_with(&start)).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        if let Some(instead) = &self.instead {
            return instead.clone();
        }
        let mut text = self.head.join("\n");
        text.push_str(&format!("\n\"Files\": [\n{}\n],\n", self.files.join(",\n")));
        text.push_str(&format!("\"WAL-Ranges\": [\n{}\n],\n", self.ranges.join(",\n")));
        let digest = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        text.push_str(&format!("\"Manifest-Checksum\": \"{digest}\"}}\n"));
        text.into_bytes()
    }
}

/// A whole message.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], length.to_be_bytes().as_slice(), body].concat()
}

pub(crate) fn copy_data(kind: u8, body: &[u8]) -> Vec<u8> {
    message(b'd', &[&[kind], body].concat())
}

pub(crate) fn data_row(columns: &[Option<&str>]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for column in columns {
        match column {
            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(text) => {
                body.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                body.extend_from_slice(text.as_bytes());
            }
        }
    }
    message(b'D', &body)
}

fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let [_, a, b, c, d, ..] = *bytes {
        let length = u32::from_be_bytes([a, b, c, d]) as usize + 1;
        messages.push(bytes[..length].to_vec());
        bytes = &bytes[length..];
    }
    messages
}
