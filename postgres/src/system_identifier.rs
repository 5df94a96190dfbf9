//! The number that tells clusters apart.
//!
//! `initdb` draws it once; standbys and restored copies keep it, `pg_upgrade` makes a new one.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::text_serde::serde_as_text;

/// The identifier of a cluster, stored in `pg_control` and in the first page of each WAL segment.
///
/// JSON carries it as a string, since it exceeds what other readers keep exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(u64);

/// The text is not a system identifier.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a system identifier: expected a decimal number of at most 64 bits")]
pub struct SystemIdentifierParseError {
    text: String,
}

impl SystemIdentifier {
    /// Makes an identifier of its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl From<u64> for SystemIdentifier {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SystemIdentifier {
    type Err = SystemIdentifierParseError;

    /// Reads the one decimal form that `Display` writes: names of folders are made of it, so there must be no second.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let number = if canonical { text.parse().ok() } else { None };
        number.map(Self).ok_or_else(|| SystemIdentifierParseError { text: text.to_owned() })
    }
}

serde_as_text!(SystemIdentifier);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_forms_are_refused() {
        for text in ["", "+1", "-1", "01", "1 ", "0x10", "18446744073709551616"] {
            assert!(text.parse::<SystemIdentifier>().is_err(), "{text:?}");
        }
        assert_eq!("18446744073709551615".parse(), Ok(SystemIdentifier::new(u64::MAX)));
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(number: u64) {
            let identifier = SystemIdentifier::new(number);
            prop_assert_eq!(identifier.to_string().parse(), Ok(identifier));
            let json = serde_json::to_string(&identifier).unwrap();
            prop_assert_eq!(&json, &format!("\"{number}\""));
            prop_assert_eq!(serde_json::from_str::<SystemIdentifier>(&json).unwrap(), identifier);
        }
    }
}
