//! Names and labels as the replication grammar wants them.
//!
//! The grammar knows no backslash escapes: a quote is doubled and everything else stands for itself. What the server
//! would accept but a recovery could not read is refused here, before anything is sent.

use thiserror::Error;

/// One byte less than the server accepts: `backup_label` is read back with a field of this width, and a longer label
/// would swallow the start of the next line.
const MAX_LABEL_LEN: usize = 1023;

/// NAMEDATALEN without its end.
const MAX_SLOT_NAME_LEN: usize = 63;

/// A name or label cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LiteralError {
    /// Recovery could not read the backup_label with it.
    #[error("backup label is empty")]
    EmptyLabel,
    /// The server or recovery would cut it.
    #[error("backup label has {found} bytes, expected at most {MAX_LABEL_LEN}")]
    LabelTooLong {
        /// Its length.
        found: usize,
    },
    /// A line end in backup_label makes recovery fail.
    #[error("backup label contains the control character {found:?}")]
    ControlCharacterInLabel {
        /// The character.
        found: char,
    },
    /// Not a name that the server accepts for a slot.
    #[error("slot name {found:?} is not 1 to {MAX_SLOT_NAME_LEN} of a-z, 0-9 and _")]
    SlotName {
        /// The name.
        found: String,
    },
    /// Not the name of a server setting.
    #[error("{found:?} is not the name of a setting")]
    SettingName {
        /// The name.
        found: String,
    },
}

/// Checks a backup label and quotes it.
pub(crate) fn label(text: &str) -> Result<String, LiteralError> {
    if text.trim().is_empty() {
        return Err(LiteralError::EmptyLabel);
    }
    if text.len() > MAX_LABEL_LEN {
        return Err(LiteralError::LabelTooLong { found: text.len() });
    }
    if let Some(found) = text.chars().find(|c| c.is_control()) {
        return Err(LiteralError::ControlCharacterInLabel { found });
    }
    Ok(format!("'{}'", text.replace('\'', "''")))
}

/// Checks a slot name and quotes it, so that none can be taken for a keyword.
pub(crate) fn slot_name(name: &str) -> Result<String, LiteralError> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > MAX_SLOT_NAME_LEN || !name.chars().all(valid) {
        return Err(LiteralError::SlotName { found: name.to_owned() });
    }
    Ok(format!("\"{name}\""))
}

/// Checks the name of a setting, which is sent as it is.
pub(crate) fn setting_name(name: &str) -> Result<&str, LiteralError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if name.is_empty() || !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(valid) {
        return Err(LiteralError::SettingName { found: name.to_owned() });
    }
    Ok(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a08_labels_that_break_recovery_are_refused() {
        assert_eq!(label(""), Err(LiteralError::EmptyLabel));
        assert_eq!(label(" "), Err(LiteralError::EmptyLabel));
        assert_eq!(label("a\nb"), Err(LiteralError::ControlCharacterInLabel { found: '\n' }));
        assert_eq!(label("a\0b"), Err(LiteralError::ControlCharacterInLabel { found: '\0' }));
        assert_eq!(label(&"x".repeat(1024)), Err(LiteralError::LabelTooLong { found: 1024 }));
        label(&"x".repeat(1023)).unwrap();
    }

    #[test]
    fn a08_quotes_are_doubled_and_backslashes_stay() {
        assert_eq!(label("it's \\ 🐘").unwrap(), "'it''s \\ 🐘'");
    }

    #[test]
    fn slot_names_are_those_of_the_server() {
        assert_eq!(slot_name("pgark_1").unwrap(), "\"pgark_1\"");
        for bad in ["", "Upper", "a-b", "a\"b", "ä", &"x".repeat(64)] {
            slot_name(bad).unwrap_err();
        }
    }

    #[test]
    fn setting_names_carry_no_second_command() {
        setting_name("server_version_num").unwrap();
        setting_name("pg_stat_statements.track").unwrap();
        for bad in ["", "a;b", "a b", "'a'", "1a"] {
            setting_name(bad).unwrap_err();
        }
    }
}
