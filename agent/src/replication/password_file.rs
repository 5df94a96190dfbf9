//! `.pgpass`: lines of `host:port:database:user:password`.
//!
//! As in libpq, a file that others may read is ignored, with a warning, and the first line that matches decides. For a
//! replication connection the database field is `replication`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::options::Password;

/// Nobody writes so many passwords; a larger file is a mistake.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Finds the password for a connection. Whatever prevents reading the file is a warning at most: the server may not
/// even ask for a password.
pub(crate) fn find(path: &Path, host: &str, port: u16, database: &str, user: &str) -> Option<Password> {
    let content = read(path)?;
    let port = port.to_string();
    content.split(|&byte| byte == b'\n').find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match_line(line, [host, &port, database, user])
    })
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let ignore = |why: &str| tracing::warn!(path = %path.display(), "password file is ignored: {why}");
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                ignore(&error.to_string());
            }
            return None;
        }
    };
    // Asked of the open file, so that it cannot be exchanged in between.
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() {
        ignore("it is not a plain file");
        return None;
    }
    if metadata.mode() & 0o077 != 0 {
        ignore("others may read it; its mode must be 0600");
        return None;
    }
    let mut content = Vec::new();
    match file.take(MAX_FILE_LEN).read_to_end(&mut content) {
        Ok(_) => Some(content),
        Err(error) => {
            ignore(&error.to_string());
            None
        }
    }
}

fn match_line(line: &[u8], wanted: [&str; 4]) -> Option<Password> {
    if line.starts_with(b"#") {
        return None;
    }
    let mut rest = line;
    for wanted in wanted {
        let (field, after) = take_field(rest)?;
        // An escaped asterisk is a name, a bare one is every name.
        if rest.strip_prefix(b"*:").is_none() && field != wanted.as_bytes() {
            return None;
        }
        rest = after;
    }
    // The password ends with the line, or at a colon that is not escaped.
    let password = take_field(rest).map_or_else(|| unescape(rest), |(password, _)| password);
    (!password.is_empty()).then(|| Password::from(password))
}

/// Splits at the first colon that is not escaped.
fn take_field(line: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut escaped = false;
    for (index, &byte) in line.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b':' => return Some((unescape(&line[..index]), &line[index + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        text.push(if byte == b'\\' { *bytes.next().unwrap_or(&byte) } else { byte });
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn password(line: &str, wanted: [&str; 4]) -> Option<String> {
        match_line(line.as_bytes(), wanted).map(|p| String::from_utf8(p.as_bytes().to_vec()).unwrap())
    }

    const WANTED: [&str; 4] = ["db:1", "5432", "replication", "ada"];

    #[test]
    fn fields_match_with_wildcards_and_escapes() {
        assert_eq!(password(r"db\:1:5432:replication:ada:pw", WANTED).as_deref(), Some("pw"));
        assert_eq!(password(r"*:*:*:ada:p\:w\\x", WANTED).as_deref(), Some(r"p:w\x"));
        assert_eq!(password(r"*:*:*:ada:pw:rest", WANTED).as_deref(), Some("pw"));
        assert_eq!(password(r"\*:*:*:ada:pw", WANTED), None);
        assert_eq!(password(r"*:*:postgres:ada:pw", WANTED), None);
        assert_eq!(password(r"#*:*:*:ada:pw", WANTED), None);
        assert_eq!(password(r"*:*:*:ada", WANTED), None);
        assert_eq!(password(r"*:*:*:ada:", WANTED), None);
    }

    #[test]
    fn the_file_counts_only_when_it_is_private() {
        let path = std::env::temp_dir().join(format!("pgark-pgpass-{}", std::process::id()));
        fs::write(&path, "other:*:*:*:no\n*:*:replication:ada:yes\r\n*:*:*:ada:late\n").unwrap();
        let find = || find(&path, "h", 5432, "replication", "ada").map(|p| p.as_bytes().to_vec());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(find(), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(find().as_deref(), Some(&b"yes"[..]));
        fs::remove_file(&path).unwrap();
        assert_eq!(find(), None);
    }

    proptest! {
        #[test]
        fn random_lines_never_panic(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _unused = match_line(&line, WANTED);
        }
    }
}
