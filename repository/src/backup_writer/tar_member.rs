//! Headers of tar members (ustar, POSIX.1-1988), as pgark writes them.

use std::os::unix::ffi::OsStrExt;

use super::Member;

/// Size of a header, and the unit to which content is padded.
pub(super) const HEADER_BYTES: usize = 512;
/// Two blocks of zeros end an archive.
pub(super) const END_OF_ARCHIVE: [u8; 2 * HEADER_BYTES] = [0; 2 * HEADER_BYTES];

/// Bytes of zeros behind a file's content.
pub(super) fn padding(size: u64) -> usize {
    (HEADER_BYTES - (size % HEADER_BYTES as u64) as usize) % HEADER_BYTES
}

/// The header of a member; owner and group are left out, since the restored files belong to whoever
/// runs the server.
pub(super) fn tar_header(member: &Member<'_>) -> Result<[u8; HEADER_BYTES], String> {
    let mut header = tar::Header::new_ustar();
    let mut path = member.path.to_vec();
    if member.size.is_none() {
        path.push(b'/');
        header.set_entry_type(tar::EntryType::Directory);
    } else {
        header.set_entry_type(tar::EntryType::Regular);
    }
    header.set_path(std::ffi::OsStr::from_bytes(&path)).map_err(|error| {
        format!("the path `{}` does not fit into a tar header: {error}", String::from_utf8_lossy(&path))
    })?;
    header.set_size(member.size.unwrap_or(0));
    header.set_mode(member.mode & 0o7777);
    header.set_mtime(member.mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    Ok(*header.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a19_sizes_over_8_gib_and_long_paths_fit() {
        let name = [b"pg_tblspc/16385/".as_slice(), &[b'x'; 99]].concat();
        let member = Member { path: &name, mode: 0o600, mtime: 1, size: Some(9 << 30) };
        let bytes = tar_header(&member).unwrap();
        let header = tar::Header::from_byte_slice(&bytes);
        assert_eq!(header.entry_size().unwrap(), 9 << 30);
        assert_eq!(header.path_bytes().as_ref(), name);
    }

    #[test]
    fn content_is_padded_to_whole_blocks() {
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }
}
