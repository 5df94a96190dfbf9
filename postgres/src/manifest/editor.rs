//! Other names, sizes and checksums for some files of a manifest, line by line, and the checksum that follows from them.

use sha2::{Digest, Sha256};

use super::ManifestChecksum;

const ENTRY: &[u8] = b"{ \"Path\": \"";
const CHECKSUM: &[u8] = b"\"Manifest-Checksum\": \"";

/// Rewrites a manifest in the server's layout, a line at a time; what is not rewritten stays byte for byte.
#[derive(Debug, Default)]
pub struct ManifestEditor {
    digest: Sha256,
}

/// What stands in the place of a file. Its path needs no escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestReplacement {
    /// The path below the data directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// CRC-32C of the content.
    pub crc32c: u32,
}

impl ManifestEditor {
    /// Returns the path of the file that a line tells of, unless it has to be escaped.
    pub fn path_of(line: &[u8]) -> Option<&[u8]> {
        let path = line.strip_prefix(ENTRY)?.split(|&byte| byte == b'"').next()?;
        (!path.contains(&b'\\')).then_some(path)
    }

    /// Takes the next line, newline included, and changes it. Fails if a line that is to be replaced has no size or
    /// checksum.
    pub fn edit(&mut self, line: &mut Vec<u8>, replacement: Option<ManifestReplacement>) -> Result<(), String> {
        if line.starts_with(CHECKSUM) {
            let digest: String = self.digest.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            *line = [CHECKSUM, digest.as_bytes(), b"\"}\n"].concat();
            return Ok(());
        }
        if let Some(ManifestReplacement { path, size, crc32c }) = replacement {
            let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
            let checksum = ManifestChecksum::crc32c(crc32c).to_string();
            let edited = replace_value(text, "\"Path\": \"", '"', &path)
                .and_then(|text| replace_value(&text, "\"Size\": ", ',', &size.to_string()))
                .and_then(|text| replace_value(&text, "\"Checksum\": \"", '"', &checksum))
                .ok_or_else(|| format!("the line of {path} has no size or checksum"))?;
            *line = edited.into_bytes();
        }
        self.digest.update(&line);
        Ok(())
    }
}

fn replace_value(line: &str, before: &str, after: char, value: &str) -> Option<String> {
    let (head, rest) = line.split_once(before)?;
    let (_, tail) = rest.split_once(after)?;
    Some(format!("{head}{before}{value}{after}{tail}"))
}
