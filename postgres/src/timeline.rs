//! Timeline numbers.
//!
//! They are decimal in messages, settings and history files, and eight hexadecimal digits in file names; mixing the
//! two up is a classic fault, so the forms have different methods. Timeline zero does not exist.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The number of a timeline, a branch of a cluster's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

/// The text is not a timeline number.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a timeline number: expected {expected}")]
pub struct TimelineParseError {
    text: String,
    expected: &'static str,
}

impl TimelineId {
    /// The timeline every new cluster starts on.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// Makes a timeline of its number; there is no timeline zero.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Returns the eight upper-case hexadecimal digits that file names carry.
    pub fn hex(self) -> String {
        format!("{:08X}", self.get())
    }

    /// Reads the eight upper-case hexadecimal digits that file names carry.
    pub fn from_hex(digits: &str) -> Result<Self, TimelineParseError> {
        hex_u32(digits).and_then(Self::new).ok_or_else(|| TimelineParseError {
            text: digits.to_owned(),
            expected: "eight upper-case hexadecimal digits, not all zero",
        })
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for TimelineId {
    type Err = TimelineParseError;

    /// Reads the decimal form.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { text.parse().ok().and_then(Self::new) } else { None };
        number.ok_or_else(|| TimelineParseError { text: text.to_owned(), expected: "a decimal number from 1 on" })
    }
}

/// Reads exactly eight upper-case hexadecimal digits, as PostgreSQL's file names have them.
pub(crate) fn hex_u32(digits: &str) -> Option<u32> {
    let valid = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if valid { u32::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hexadecimal_and_decimal_are_kept_apart() {
        let timeline = TimelineId::new(16).unwrap();
        assert_eq!(timeline.hex(), "00000010");
        assert_eq!(timeline.to_string(), "16");
        assert_eq!(TimelineId::from_hex("00000010"), Ok(timeline));
        assert_eq!("16".parse(), Ok(timeline));
    }

    #[test]
    fn zero_and_other_forms_are_refused() {
        assert_eq!(TimelineId::new(0), None);
        for text in ["", "0", "00000000", "0000000a", "+0000001", "1", "000000001"] {
            assert!(TimelineId::from_hex(text).is_err(), "{text:?}");
        }
        for text in ["", "0", "+1", "-1", "0x1", "1 ", "4294967296"] {
            assert!(text.parse::<TimelineId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn json_carries_a_number_and_refuses_zero() {
        assert_eq!(serde_json::to_string(&TimelineId::FIRST).unwrap(), "1");
        assert_eq!(serde_json::from_str::<TimelineId>("7").unwrap().get(), 7);
        assert!(serde_json::from_str::<TimelineId>("0").is_err());
    }

    proptest! {
        #[test]
        fn both_forms_round_trip(number in 1u32..) {
            let timeline = TimelineId::new(number).unwrap();
            prop_assert_eq!(TimelineId::from_hex(&timeline.hex()), Ok(timeline));
            prop_assert_eq!(timeline.to_string().parse(), Ok(timeline));
        }
    }
}
