//! The one check that every path from outside goes through.
//!
//! Paths come from a server, a tar archive, a manifest or stored data, and end up as files in somebody's data
//! directory. They are bytes, since a PostgreSQL host need not speak UTF-8.

use thiserror::Error;

/// PostgreSQL's own limit for a path, less its terminating NUL.
const MAX_PATH_BYTES: usize = 1023;
/// What file systems take as one name.
const MAX_COMPONENT_BYTES: usize = 255;

/// The path must not be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("path {path:?} {problem}")]
pub struct PathError {
    path: String,
    problem: &'static str,
}

/// Checks that a path stays below the directory it is joined to, and is written in its one normal form.
///
/// Refused are: the empty path, absolute paths, drive letters, NUL, the components `.` and `..`, empty components
/// (so also a slash at the end), and paths or components that are longer than PostgreSQL or a file system takes.
/// Tar archives end the names of directories with a slash and begin some with `./`: remove those first.
pub fn check_relative_path(path: &[u8]) -> Result<(), PathError> {
    match problem(path) {
        None => Ok(()),
        Some(problem) => Err(PathError { path: String::from_utf8_lossy(path).chars().take(200).collect(), problem }),
    }
}

fn problem(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() {
        return Some("is empty");
    }
    if path.len() > MAX_PATH_BYTES {
        return Some("is longer than 1023 bytes");
    }
    if path.contains(&0) {
        return Some("contains a NUL");
    }
    if path.starts_with(b"/") {
        return Some("is absolute");
    }
    if let [letter, b':', b'\\' | b'/', ..] = path
        && letter.is_ascii_alphabetic()
    {
        return Some("begins with a drive letter");
    }
    path.split(|&b| b == b'/').find_map(|component| match component {
        b"" => Some("has an empty component"),
        b"." | b".." => Some("has a component that is . or .."),
        _ if component.len() > MAX_COMPONENT_BYTES => Some("has a component longer than 255 bytes"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::{Component, Path};

    #[test]
    fn ordinary_paths_pass() {
        for path in
            ["PG_VERSION", "base/1/1259_fsm", "pg_tblspc/16388/PG_15_202209061/5/1", "...", "a b", "é", "a\\b", "c:x"]
        {
            assert_eq!(check_relative_path(path.as_bytes()), Ok(()), "{path}");
        }
        assert_eq!(check_relative_path(b"log/\xff\n"), Ok(()));
    }

    #[test]
    fn f01_paths_that_leave_the_directory_are_refused() {
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            ".",
            "../x",
            "a/../../b",
            "a/..",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            "a\0b",
            "C:\\x",
            "c:/x",
        ] {
            assert!(check_relative_path(path.as_bytes()).is_err(), "{path:?}");
        }
        assert!(check_relative_path(&[b'a'; 256]).is_err());
        assert!(check_relative_path(&b"a/".repeat(600)).is_err());
    }

    proptest! {
        #[test]
        fn f01_what_passes_has_only_normal_components(path in "[a./\\x00]{0,12}") {
            let normal = Path::new(&path).components().all(|c| matches!(c, Component::Normal(_)));
            let joined: Vec<_> = Path::new(&path).components().map(|c| c.as_os_str().to_string_lossy()).collect();
            let expected = !path.is_empty() && normal && joined.join("/") == path && !path.contains('\0');
            prop_assert_eq!(check_relative_path(path.as_bytes()).is_ok(), expected);
        }
    }
}
