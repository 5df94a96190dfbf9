//! A stored backup, taken apart and written again with every checksum right.

use std::fs;
use std::path::Path;

use harness::TestUser;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::hostile_server::{Archive, Manifest, Member};

/// What `backup.json` has in the place of its checksum while that is computed.
const BLANK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The content; everything else follows from it.
#[derive(Clone)]
pub(super) struct Forgery {
    pub(super) members: Vec<Member>,
    pub(super) manifest: Manifest,
    mark: Value,
}

/// What follows, for changes of that alone.
pub(super) struct Lists {
    pub(super) tar: Vec<u8>,
    /// The part as stored, instead of one frame with the archive.
    pub(super) part: Option<Vec<u8>>,
    /// Lines without their ends; that of the part, which names the frame, comes by itself unless it is here.
    pub(super) index: Vec<Value>,
    pub(super) index_ends: bool,
    /// The index as it is stored, instead.
    pub(super) stored_index: Option<Vec<u8>>,
    pub(super) manifest: Manifest,
    pub(super) mark: Value,
}

impl Forgery {
    /// Reads a backup of one part, of one frame, that is not encrypted.
    pub(super) fn read(backup: &Path) -> Self {
        let read = |name: &str| fs::read(backup.join(name)).unwrap();
        let unpacked = |name: &str| zstd::decode_all(read(name).as_slice()).unwrap();
        let archive = Archive::new(b"", &unpacked("parts/000001.tar.zst"));
        Self {
            members: archive.members,
            manifest: Manifest::new(&String::from_utf8(unpacked("backup_manifest.zst")).unwrap()),
            mark: serde_json::from_slice(&read("backup.json")).unwrap(),
        }
    }

    pub(super) fn add(&mut self, path: &str, kind: u8, content: &[u8]) {
        self.members.push(Member::new(path.as_bytes(), kind, content));
    }

    pub(super) fn content(&self, path: &str) -> &[u8] {
        &self.members.iter().find(|member| member.path() == path).unwrap().content
    }

    pub(super) fn set_file(&mut self, path: &str, content: &[u8]) {
        let member = self.members.iter_mut().find(|member| member.path() == path).unwrap();
        member.content = content.to_vec();
        member.set_size(content.len() as u64);
    }

    /// Index, manifest and totals of these members.
    pub(super) fn lists(&self) -> Lists {
        let (mut tar, mut index, mut files) = (Vec::new(), Vec::new(), Vec::new());
        let (mut directories, mut raw_size) = (0, 0);
        for member in &self.members {
            let path = member.raw_path();
            let mut line = json!({"path": path, "mode": 384, "part": 1, "offset": tar.len()});
            if member.header[156] == b'5' {
                directories += 1;
            } else {
                let crc = crc32c::crc32c(&member.content).to_le_bytes().map(|byte| format!("{byte:02x}")).concat();
                line["size"] = member.content.len().into();
                line["mtime"] = 1_763_600_000.into();
                line["crc32c"] = crc.into();
                files.push(Manifest::entry(&path, &member.content));
                raw_size += member.content.len();
            }
            index.push(line);
            tar.extend_from_slice(&member.header);
            tar.extend_from_slice(&member.content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        let mut mark = self.mark.clone();
        mark["totals"]["files"] = files.len().into();
        mark["totals"]["directories"] = directories.into();
        mark["totals"]["raw_size"] = raw_size.into();
        mark["parts"][0]["raw_size"] = tar.len().into();
        let mut manifest = self.manifest.clone();
        manifest.files = files;
        Lists { tar, part: None, index, index_ends: false, stored_index: None, manifest, mark }
    }
}

impl Lists {
    /// Another path in the index and the manifest than in the archive.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        self.index_line(from)["path"] = to.into();
        let line = self.manifest.line(from);
        *line = line.replacen(&format!("{from:?}"), &format!("{to:?}"), 1);
    }

    pub(super) fn index_line(&mut self, path: &str) -> &mut Value {
        self.index.iter_mut().find(|line| line["path"] == path).unwrap()
    }

    pub(super) fn write(mut self, backup: &Path) {
        let part = self.part.take().unwrap_or_else(|| packed(&self.tar));
        if !self.index_ends {
            self.index.push(json!({"part": 1, "raw_size": self.tar.len(), "frames": [part.len()]}));
        }
        let index: String = self.index.iter().map(|line| format!("{line}\n")).collect();
        let stored_index = self.stored_index.take().unwrap_or_else(|| packed(index.as_bytes()));
        let manifest = self.manifest.bytes();
        let stored_manifest = packed(&manifest);
        let mark = &mut self.mark;
        if let Some(listed) = mark["parts"].as_array_mut().and_then(|parts| parts.first_mut()) {
            listed["stored_size"] = part.len().into();
            listed["crc32"] = crc32(&part).into();
        }
        for (list, stored, raw) in
            [("index", &stored_index, index.as_bytes()), ("manifest", &stored_manifest, &manifest)]
        {
            mark[list]["stored_size"] = stored.len().into();
            mark[list]["crc32"] = crc32(stored).into();
            mark[list]["sha256"] = hex(raw).into();
        }
        mark["checksum"] = BLANK.into();
        let text = serde_json::to_string_pretty(mark).unwrap() + "\n";
        let mark = text.replacen(BLANK, &hex(text.as_bytes()), 1);
        for (name, bytes) in [
            ("parts/000001.tar.zst", part.as_slice()),
            ("index.jsonl.zst", &stored_index),
            ("backup_manifest.zst", &stored_manifest),
            ("backup.json", mark.as_bytes()),
        ] {
            let path = backup.join(name);
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
            TestUser::get().own(&path);
        }
    }
}

pub(super) fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.set_pledged_src_size(Some(bytes.len() as u64)).unwrap();
    encoder.include_contentsize(true).unwrap();
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn crc32(bytes: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(bytes))
}
