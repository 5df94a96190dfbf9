//! `--include DIR`: directories of this host that a backup takes along, for configuration that lies outside of the data
//! directory. They are read before the server is asked for anything, so that a mistake costs nothing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pgark_command::{ExitCode, Failure, format_size};
use pgark_repository::{IncludedDirectory, TarMember};

/// Configuration is small; what is larger is data, and kept in memory here.
const LIMIT: u64 = 64 << 20;

/// Reads all directories. One that lies below another is taken once.
pub(super) fn read(directories: &[String]) -> anyhow::Result<Vec<IncludedDirectory>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for directory in directories {
        let refused = |reason: &str| {
            Failure::new(ExitCode::Usage, format!("the directory `{directory}` cannot be included: {reason}"))
                .with_hint("name the absolute path of a directory with configuration on this host")
        };
        let path = Path::new(directory);
        if !path.is_absolute() || path.parent().is_none() {
            return Err(refused("it is not an absolute path below /").into());
        }
        let metadata = fs::metadata(path).map_err(|error| refused(&error.to_string()))?;
        if !metadata.is_dir() {
            return Err(refused("it is not a directory").into());
        }
        // Without a slash at its end, and without dots.
        let path: PathBuf = path.components().collect();
        paths.push(path);
    }
    paths.sort();
    // What lies below another one is in that one.
    paths.dedup_by(|later, earlier| later.starts_with(earlier));
    let mut left = LIMIT;
    paths.iter().map(|path| read_one(path, &mut left).with_context(|| format!("include {}", path.display()))).collect()
}

fn read_one(directory: &Path, left: &mut u64) -> anyhow::Result<IncludedDirectory> {
    let name = directory.to_str().context("its path is not UTF-8")?;
    let mut included = IncludedDirectory::new(name.to_owned());
    let mut waiting = vec![PathBuf::new()];
    while let Some(folder) = waiting.pop() {
        let path = directory.join(&folder);
        if path.join("PG_VERSION").exists() {
            let sentence = format!("{} is a data directory, which the base backup itself is for", path.display());
            return Err(Failure::new(ExitCode::Usage, sentence).with_hint("include configuration only").into());
        }
        let entries = fs::read_dir(&path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.with_context(|| format!("read {}", path.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let relative = folder.join(entry.file_name());
            let is_link =
                entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?.is_symlink();
            // A link to a file, such as to a certificate, counts as the file; one to a directory could lead anywhere.
            let metadata = match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() || metadata.is_dir() && !is_link => metadata,
                Ok(_) => {
                    tracing::warn!(path = %entry.path().display(), "is neither file nor directory and is not included");
                    continue;
                }
                Err(error) if is_link && error.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!(path = %entry.path().display(), "is a link to nothing and is not included");
                    continue;
                }
                Err(error) => return Err(error).with_context(|| format!("look at {}", entry.path().display())),
            };
            let content = if metadata.is_dir() { None } else { Some(read_file(&entry.path(), left)?) };
            let member = TarMember {
                path: relative.as_os_str().as_bytes().to_vec(),
                mode: metadata.mode() & 0o777,
                mtime: u64::try_from(metadata.mtime()).unwrap_or(0),
                size: content.as_ref().map(|content| content.len() as u64),
            };
            included.add(&member, &content.unwrap_or_default())?;
            if metadata.is_dir() {
                waiting.push(relative);
            }
        }
    }
    Ok(included)
}

fn read_file(path: &Path, left: &mut u64) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(*left + 1).read_to_end(&mut content))
        .with_context(|| format!("read {}", path.display()))?;
    let Some(rest) = left.checked_sub(content.len() as u64) else {
        let sentence =
            format!("with {} the included directories hold more than {}", path.display(), format_size(LIMIT));
        return Err(Failure::new(ExitCode::Usage, sentence).with_hint("include configuration only").into());
    };
    *left = rest;
    Ok(content)
}
