//! Headers of tar members (ustar, POSIX.1-1988): as pgark writes them, and as it reads what a server sends.
//!
//! Only plain files and directories exist. Links, devices and every extension that could say a name or a size twice
//! (PAX, GNU) are refused, since a reader that believes the other one writes somewhere else.

use std::os::unix::ffi::OsStrExt;

use pgark_postgres::{PathError, check_relative_path};

/// Size of a header, and the unit to which content is padded.
pub const TAR_BLOCK: usize = 512;
/// Two blocks of zeros end an archive.
pub(crate) const END_OF_ARCHIVE: [u8; 2 * TAR_BLOCK] = [0; 2 * TAR_BLOCK];

/// A file or directory in a tar archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarMember {
    /// The path, relative, without `.` and `..` and without a slash at its end.
    pub path: Vec<u8>,
    /// Permission bits; none that change the user or group of a program.
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// A file's size in bytes; `None` for a directory.
    pub size: Option<u64>,
}

/// Why a tar header is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TarHeaderError {
    /// The header's own checksum is wrong, or it is no ustar header.
    #[error("the block is not a ustar header")]
    NoHeader,
    /// A number cannot be read.
    #[error("`{path}` has no readable {field}")]
    Number {
        /// The member.
        path: String,
        /// Which number.
        field: &'static str,
    },
    /// Something stands behind the zero that ends a name: another reader may take it for the name.
    #[error("behind the end of the name `{path}` stands something else")]
    HiddenName {
        /// The name up to its end.
        path: String,
    },
    /// A link, device or extension.
    #[error("`{path}` is of type `{kind}`; only plain files and directories are allowed")]
    Kind {
        /// The member.
        path: String,
        /// The type byte.
        kind: char,
    },
    /// A path that leads out of the directory, or that cannot be stored.
    #[error("the path `{path}` is not allowed")]
    Path {
        /// The path.
        path: String,
        /// Why.
        source: PathError,
    },
    /// A directory with content.
    #[error("the directory `{path}` has content")]
    DirectoryContent {
        /// The member.
        path: String,
    },
    /// The path does not fit.
    #[error("the path `{path}` does not fit into a tar header")]
    TooLong {
        /// The path.
        path: String,
    },
}

/// Bytes of zeros behind a file's content.
#[must_use]
pub fn tar_padding(size: u64) -> usize {
    (TAR_BLOCK - (size % TAR_BLOCK as u64) as usize) % TAR_BLOCK
}

/// Octal digits that end in blanks or zeros, or with the first bit set a number of 64 bits, high byte first. Readers
/// differ on signs, letters and negative numbers; a server writes none.
fn read_number(field: &[u8]) -> Option<u64> {
    if let [0x80, high @ .., _, _, _, _, _, _, _, _] = field {
        let (_, low) = field.split_last_chunk::<8>()?;
        return high.iter().all(|byte| *byte == 0).then_some(u64::from_be_bytes(*low));
    }
    let end = field.iter().rposition(|byte| !matches!(byte, 0 | b' '))?;
    let start = field.iter().position(|byte| *byte != b' ')?;
    field[start..=end].iter().try_fold(0_u64, |number, byte| match byte {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn ends_in_zeros(name: &[u8]) -> bool {
    name.iter().skip_while(|byte| **byte != 0).all(|byte| *byte == 0)
}

impl TarMember {
    /// Reads a header; `None` for a block of zeros, which ends the archive. The root directory itself (`./`) has an
    /// empty path.
    ///
    /// # Errors
    /// For everything that is not a plain file or directory with a path inside.
    pub fn read(block: &[u8; TAR_BLOCK]) -> Result<Option<Self>, TarHeaderError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(block);
        let sum = block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>();
        if header.as_ustar().is_none() || header.cksum().ok() != Some(sum) {
            return Err(TarHeaderError::NoHeader);
        }
        let raw = header.path_bytes();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        if ![&block[..100], &block[345..500]].into_iter().all(ends_in_zeros) {
            return Err(TarHeaderError::HiddenName { path: shown });
        }
        let number = |field, bytes: &[u8]| {
            read_number(bytes).ok_or_else(|| TarHeaderError::Number { path: shown.clone(), field })
        };
        let size = number("size", &block[124..136])?;
        if size > i64::MAX as u64 {
            return Err(TarHeaderError::Number { path: shown, field: "size" });
        }
        let mode = number("mode", &block[100..108])? as u32 & 0o777;
        let mtime = number("modification time", &block[136..148])?;
        let is_directory = match block[156] {
            b'0' | 0 => false,
            b'5' => true,
            kind => return Err(TarHeaderError::Kind { path: shown, kind: char::from(kind) }),
        };
        let mut path = raw.as_ref();
        if let Some(rest) = path.strip_prefix(b"./") {
            path = rest;
        }
        if is_directory {
            path = path.strip_suffix(b"/").unwrap_or(path);
        }
        if is_directory && size > 0 {
            return Err(TarHeaderError::DirectoryContent { path: shown });
        }
        if !(is_directory && (path.is_empty() || path == b".")) {
            check_relative_path(path).map_err(|source| TarHeaderError::Path { path: shown, source })?;
        } else {
            path = b"";
        }
        Ok(Some(Self { path: path.to_vec(), mode, mtime, size: (!is_directory).then_some(size) }))
    }

    /// Writes the header. Owner and group are left out, since the restored files belong to whoever runs the server.
    ///
    /// # Errors
    /// `TooLong` when the path cannot be split into 155 and 100 bytes at a slash; `Path` when it leads out.
    pub fn header(&self) -> Result<[u8; TAR_BLOCK], TarHeaderError> {
        let shown = || String::from_utf8_lossy(&self.path).into_owned();
        check_relative_path(&self.path).map_err(|source| TarHeaderError::Path { path: shown(), source })?;
        let mut header = tar::Header::new_ustar();
        let mut path = self.path.clone();
        if self.size.is_none() {
            path.push(b'/');
            header.set_entry_type(tar::EntryType::Directory);
        } else {
            header.set_entry_type(tar::EntryType::Regular);
        }
        header.set_path(std::ffi::OsStr::from_bytes(&path)).map_err(|_| TarHeaderError::TooLong { path: shown() })?;
        header.set_size(self.size.unwrap_or(0));
        header.set_mode(self.mode & 0o7777);
        header.set_mtime(self.mtime);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        Ok(*header.as_bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(path: &[u8], size: Option<u64>) -> TarMember {
        TarMember { path: path.to_vec(), mode: 0o600, mtime: 1_763_600_000, size }
    }

    fn with_path(path: &str, kind: u8) -> [u8; TAR_BLOCK] {
        let mut block = member(b"x", Some(0)).header().unwrap();
        block[..100].fill(0);
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[156] = kind;
        let header = tar::Header::from_byte_slice(&block);
        let mut header = header.clone();
        header.set_cksum();
        *header.as_bytes()
    }

    #[test]
    fn a19_sizes_over_8_gib_and_long_paths_fit() {
        let name = [b"pg_tblspc/16385/".as_slice(), &[b'x'; 99]].concat();
        let member = member(&name, Some(9 << 30));
        assert_eq!(TarMember::read(&member.header().unwrap()).unwrap(), Some(member));
    }

    #[test]
    fn a_leading_dot_and_a_trailing_slash_are_taken_off() {
        let read = TarMember::read(&with_path("./pg_wal/summaries/", b'5')).unwrap().unwrap();
        assert_eq!(read.path, b"pg_wal/summaries");
        assert_eq!(TarMember::read(&with_path("./", b'5')).unwrap().unwrap().path, b"");
    }

    #[test]
    fn f01_paths_that_lead_out_are_refused() {
        for path in ["../x", "/etc/passwd", "a/../../b", "a//b", "", ".", "..", "a/."] {
            let refused = TarMember::read(&with_path(path, b'0'));
            assert!(matches!(refused, Err(TarHeaderError::Path { .. })), "{path}: {refused:?}");
        }
    }

    #[test]
    fn f02_f03_f06_links_devices_and_extensions_are_refused() {
        for kind in *b"12346xgLKVS7" {
            let refused = TarMember::read(&with_path("base/1", kind));
            assert!(matches!(refused, Err(TarHeaderError::Kind { .. })), "{}", char::from(kind));
        }
    }

    #[test]
    fn f04_a_changed_header_is_refused() {
        let block = member(b"base/1", Some(8192)).header().unwrap();
        for at in 0..500 {
            let mut damaged = block;
            damaged[at] ^= 4;
            assert!(TarMember::read(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn f04_a_size_that_readers_could_read_differently_is_refused() {
        let with_size = |size: &[u8; 12]| {
            let mut block = member(b"base/1", Some(8192)).header().unwrap();
            block[124..136].copy_from_slice(size);
            let mut header = tar::Header::from_byte_slice(&block).clone();
            header.set_cksum();
            TarMember::read(header.as_bytes()).map(|read| read.unwrap().size.unwrap())
        };
        assert_eq!(with_size(b"00000020000\0").unwrap(), 8192);
        assert_eq!(with_size(b"00000020000 ").unwrap(), 8192);
        assert_eq!(with_size(b"\x80\0\0\0\0\0\0\x02\0\0\0\x01").unwrap(), (8 << 30) + 1);
        for lie in [
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x05",
            b"\x80\0\0\x01\0\0\0\0\0\0\0\x05",
            b"\x80\0\0\0\xff\0\0\0\0\0\0\x05",
            b"\x81\0\0\0\0\0\0\0\0\0\0\x05",
            b"+0000020000\0",
            b"-0000020000\0",
            b"00000029000\0",
            b"0x000020000\0",
            b"00000\x0020000\0",
            b"            ",
            &[0; 12],
        ] {
            let refused = with_size(lie);
            let expected = TarHeaderError::Number { path: "base/1".to_owned(), field: "size" };
            assert_eq!(refused, Err(expected), "{}", lie.escape_ascii());
        }
    }

    #[test]
    fn f01_a_second_name_behind_the_first_is_refused() {
        let mut block = with_path("base/1", b'0');
        block[7..20].copy_from_slice(b"../etc/passwd");
        let mut header = tar::Header::from_byte_slice(&block).clone();
        header.set_cksum();
        let refused = TarMember::read(header.as_bytes());
        assert_eq!(refused, Err(TarHeaderError::HiddenName { path: "base/1".to_owned() }));
    }

    #[test]
    fn content_is_padded_to_whole_blocks() {
        assert_eq!([0, 1, 511, 512, 513].map(tar_padding), [0, 511, 1, 0, 511]);
    }

    proptest! {
        #[test]
        fn random_blocks_never_panic(bytes in proptest::collection::vec(any::<u8>(), TAR_BLOCK)) {
            let block: [u8; TAR_BLOCK] = bytes.try_into().unwrap();
            drop(TarMember::read(&block));
        }
    }
}
