//! Editing `postgresql.auto.conf`.
//!
//! A restore clears the recovery settings that the source left behind and writes its own at the end, where the last
//! assignment wins. Everything else, comments included, stays as it is, byte for byte. One line is one assignment:
//! the server allows no newline inside a quoted value.

use thiserror::Error;

/// The content of a configuration file in PostgreSQL's own syntax.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AutoConf {
    content: Vec<u8>,
}

/// The setting cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AutoConfError {
    /// The name is not one that the server reads.
    #[error("{name:?} is not the name of a setting")]
    Name {
        /// The name.
        name: String,
    },
    /// The value has a byte that cannot stand in a configuration file. The value itself may be a secret.
    #[error("value of {name} contains {byte}, which cannot be written in a configuration file")]
    Value {
        /// The name of the setting.
        name: String,
        /// The byte, in words.
        byte: &'static str,
    },
}

impl AutoConf {
    /// Takes the content of a file; an absent file is an empty one.
    pub fn new(content: impl Into<Vec<u8>>) -> Self {
        Self { content: content.into() }
    }

    /// Removes every assignment of the settings named, whatever the case of their letters.
    pub fn clear(&mut self, names: &[&str]) {
        let keep = |line: &&[u8]| {
            !assignment(line)
                .is_some_and(|(found, _)| names.iter().any(|name| found.eq_ignore_ascii_case(name.as_bytes())))
        };
        self.content = self.content.split_inclusive(|&b| b == b'\n').filter(keep).collect::<Vec<_>>().concat();
    }

    /// Adds an assignment at the end, where it overrides all earlier ones.
    pub fn append(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), AutoConfError> {
        if name_bytes(name.as_bytes()) != name.len() || name.is_empty() {
            return Err(AutoConfError::Name { name: name.to_owned() });
        }
        let value = value.as_ref();
        let unwritable = |byte| AutoConfError::Value { name: name.to_owned(), byte };
        if value.contains(&b'\n') {
            return Err(unwritable("a newline"));
        }
        if value.contains(&0) {
            return Err(unwritable("a NUL"));
        }
        if !self.content.is_empty() && !self.content.ends_with(b"\n") {
            self.content.push(b'\n');
        }
        self.content.extend_from_slice(name.as_bytes());
        self.content.extend_from_slice(b" = '");
        for &byte in value {
            if matches!(byte, b'\'' | b'\\') {
                self.content.push(byte);
            }
            self.content.push(byte);
        }
        self.content.extend_from_slice(b"'\n");
        Ok(())
    }

    /// Returns the value that a setting has from this file: the last assignment, without its quotes.
    ///
    /// Nothing is returned for a setting that is not assigned, or whose line the server would refuse.
    pub fn value(&self, name: &str) -> Option<Vec<u8>> {
        let last = self
            .content
            .split(|&b| b == b'\n')
            .rev()
            .find_map(|line| assignment(line).filter(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes())));
        unquoted(last?.1)
    }

    /// Returns the content as it is now.
    pub fn as_bytes(&self) -> &[u8] {
        &self.content
    }

    /// Returns the content to be written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.content
    }
}

/// Splits a line into the name of its setting and all that follows the name.
fn assignment(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = without_blanks(line);
    match line.split_at(name_bytes(line)) {
        (b"", _) => None,
        parts => Some(parts),
    }
}

/// Returns how many bytes at the beginning are the name of a setting: identifiers, at most two, with a dot between.
fn name_bytes(text: &[u8]) -> usize {
    let first = identifier_bytes(text);
    match text.get(first..) {
        Some([b'.', rest @ ..]) if first > 0 && identifier_bytes(rest) > 0 => first + 1 + identifier_bytes(rest),
        _ => first,
    }
}

fn identifier_bytes(text: &[u8]) -> usize {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_' || b >= 0x80;
    if !text.first().is_some_and(|&b| letter(b)) {
        return 0;
    }
    text.iter().position(|&b| !(letter(b) || b.is_ascii_digit() || b == b'$')).unwrap_or(text.len())
}

fn without_blanks(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r')).count();
    text.get(blanks..).unwrap_or_default()
}

/// Reads the value behind a name, with or without an equals sign and quotes.
fn unquoted(rest: &[u8]) -> Option<Vec<u8>> {
    let rest = without_blanks(rest);
    let rest = without_blanks(rest.strip_prefix(b"=").unwrap_or(rest));
    let Some(quoted) = rest.strip_prefix(b"'") else {
        let end = rest.iter().position(|b| b" \t\r\n#".contains(b)).unwrap_or(rest.len());
        return rest.get(..end).filter(|value| !value.is_empty()).map(<[u8]>::to_vec);
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\'' if bytes.next_if_eq(&b'\'').is_some() => value.push(b'\''),
            b'\'' => return Some(value),
            b'\\' => {
                let escaped = bytes.next()?;
                value.push(match escaped {
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'0'..=b'7' => {
                        let mut number = u32::from(escaped - b'0');
                        for _ in 0..2 {
                            let Some(digit) = bytes.next_if(|b| matches!(b, b'0'..=b'7')) else {
                                break;
                            };
                            number = number * 8 + u32::from(digit - b'0');
                        }
                        // The server keeps the low eight bits of an octal number above 377.
                        (number & 0xFF) as u8
                    }
                    other => other,
                });
            }
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SOURCE: &[u8] = b"# Do not edit this file manually!\n# restore_command = 'a comment stays'\n\
        archive_command = 'cp %p /a/%f'\nRestore_Command = 'old'\n\trestore_command='x' # why\nrestore_command_x = 1\n\
        primary_conninfo 'host=a password=''b\\\\c'''\npg_x.restore_command = 'keep'\nwork_mem=4MB\r\n\xffname = 1\n=\n\
        restore_command";

    #[test]
    fn settings_are_cleared_and_the_rest_stays() {
        let mut conf = AutoConf::new(SOURCE);
        conf.clear(&["restore_command", "PRIMARY_CONNINFO"]);
        assert_eq!(
            conf.as_bytes(),
            b"# Do not edit this file manually!\n# restore_command = 'a comment stays'\narchive_command = 'cp %p /a/%f'\n\
            restore_command_x = 1\npg_x.restore_command = 'keep'\nwork_mem=4MB\r\n\xffname = 1\n=\n"
        );
    }

    #[test]
    fn clearing_nothing_changes_nothing() {
        let mut conf = AutoConf::new(SOURCE);
        conf.clear(&["archive_mode"]);
        conf.clear(&[]);
        assert_eq!(conf.into_bytes(), SOURCE);
    }

    #[test]
    fn values_are_quoted_as_the_server_reads_them() {
        let mut conf = AutoConf::new("work_mem = 1MB");
        conf.append("restore_command", r"'/opt/a b/tool' wal %f \ %%p").unwrap();
        conf.append("recovery_target_time", "2026-11-21 04:00:29+00").unwrap();
        conf.append("my.setting", b"\xff").unwrap();
        assert_eq!(
            conf.as_bytes(),
            &[
                &b"work_mem = 1MB\nrestore_command = '''/opt/a b/tool'' wal %f \\\\ %%p'\n"[..],
                b"recovery_target_time = '2026-11-21 04:00:29+00'\nmy.setting = '\xff'\n"
            ]
            .concat()
        );
        assert_eq!(conf.value("RESTORE_COMMAND").unwrap(), br"'/opt/a b/tool' wal %f \ %%p");
    }

    #[test]
    fn the_last_assignment_counts() {
        let conf = AutoConf::new(SOURCE);
        assert_eq!(conf.value("primary_conninfo").unwrap(), br"host=a password='b\c'");
        assert_eq!(conf.value("work_mem").unwrap(), b"4MB");
        assert_eq!(conf.value("pg_x.restore_command").unwrap(), b"keep");
        assert_eq!(conf.value("pg_x"), None);
        // The file ends in a name alone, which the server refuses.
        assert_eq!(conf.value("restore_command"), None);
        assert_eq!(AutoConf::new(r"a = 'x\t\101\8\'y' # z").value("a").unwrap(), b"x\tA8'y");
        assert_eq!(AutoConf::new("a = 'open").value("a"), None);
    }

    #[test]
    fn what_cannot_be_written_is_refused_without_showing_it() {
        let mut conf = AutoConf::default();
        let error = conf.append("primary_conninfo", "password=secret\nx = 1").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(matches!(conf.append("a", "x\0"), Err(AutoConfError::Value { byte: "a NUL", .. })));
        for name in ["", "a b", "a=", "1a", "a.", ".a", "a.b.c", "a\nb", "#a", "a'"] {
            assert!(matches!(conf.append(name, "x"), Err(AutoConfError::Name { .. })), "{name:?}");
        }
        assert_eq!(conf, AutoConf::default());
    }

    proptest! {
        #[test]
        fn values_round_trip(before: Vec<u8>, value in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assume!(!value.contains(&b'\n') && !value.contains(&0));
            let mut conf = AutoConf::new(before.clone());
            conf.append("recovery_target_name", &value).unwrap();
            prop_assert_eq!(conf.value("recovery_target_name"), Some(value));
            prop_assert!(conf.as_bytes().starts_with(&before));
            conf.clear(&["Recovery_Target_Name"]);
            prop_assert_eq!(conf.value("recovery_target_name"), None);
            prop_assert!(before.is_empty() || conf.as_bytes().starts_with(&before));
        }

        #[test]
        fn any_content_is_edited_without_harm(content in "(([a-z]{1,3}|'|\\\\|=| |#|\\.|[0-8])*\n){0,4}", name in "[a-z]{1,2}") {
            let mut conf = AutoConf::new(content.as_bytes());
            let _unused = conf.value(&name);
            conf.clear(&[&name]);
            prop_assert_eq!(conf.value(&name), None);
            let kept = std::str::from_utf8(conf.as_bytes()).unwrap();
            let mut lines = content.split_inclusive('\n');
            prop_assert!(kept.split_inclusive('\n').all(|line| lines.any(|before| before == line)));
        }
    }
}
