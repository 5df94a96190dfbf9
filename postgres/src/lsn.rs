//! Positions in the write-ahead log.
//!
//! PostgreSQL prints a position as two hexadecimal halves, without leading zeros up to 18 and with an eight-digit low
//! half from 19 on. Both forms are read; positions are compared as numbers and never as text.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::text_serde::serde_as_text;

/// A byte position in the write-ahead log.
///
/// Positions are ordered within one history path only: the same number on two branches names different bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

/// The text is not a WAL position.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a WAL position: expected two hexadecimal numbers like 16/B374D848")]
pub struct LsnParseError {
    text: String,
}

impl Lsn {
    /// The position zero, which PostgreSQL uses for "none".
    pub const ZERO: Self = Self(0);

    /// The last position that can be written down.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a position of its number of bytes since the beginning of the log.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes since the beginning of the log.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Tells whether this is [`Lsn::ZERO`].
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Moves forward, or returns nothing past the end of the number space.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Moves forward and stays at [`Lsn::MAX`] at the end of the number space.
    pub const fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// Moves back and stays at [`Lsn::ZERO`] at the beginning of the log.
    pub const fn saturating_sub(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }

    /// Returns how many bytes this position lies after `earlier`, or nothing if it lies before it.
    pub fn bytes_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl From<u64> for Lsn {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl From<Lsn> for u64 {
    fn from(lsn: Lsn) -> Self {
        lsn.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| LsnParseError { text: text.to_owned() })
    }
}

serde_as_text!(Lsn);

/// Reads one to eight hexadecimal digits; `from_str_radix` alone would take a sign as well.
fn half(digits: &str) -> Option<u64> {
    let hex = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a53_zero_padded_and_large_positions_are_read_as_numbers() {
        assert_eq!("0/0".parse(), Ok(Lsn::ZERO));
        assert_eq!("0/01000028".parse::<Lsn>(), "0/1000028".parse());
        assert_eq!("100/170B54B0".parse(), Ok(Lsn::new(0x100_170B_54B0)));
        assert_eq!("FFFFFFFF/FFFFFFFF".parse(), Ok(Lsn::MAX));
        assert_eq!("a/b".parse(), Ok(Lsn::new(0xA_0000_000B)));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "/",
            "0",
            "0/",
            "/0",
            "0/0/0",
            "000000001/0",
            "0/000000001",
            "+1/0",
            "0/-1",
            "0x1/0",
            " 0/0",
            "0/0 ",
            "g/0",
            "é/é",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn json_carries_text() {
        let json = serde_json::to_string(&Lsn::new(0x1_0200_0000)).unwrap();
        assert_eq!(json, "\"1/2000000\"");
        assert_eq!(serde_json::from_str::<Lsn>(&json).unwrap(), Lsn::new(0x1_0200_0000));
        assert!(serde_json::from_str::<Lsn>("\"1\"").is_err());
        assert!(serde_json::from_str::<Lsn>("17").is_err());
    }

    #[test]
    fn arithmetic_stays_in_range() {
        assert_eq!(Lsn::MAX.checked_add(1), None);
        assert_eq!(Lsn::MAX.saturating_add(1), Lsn::MAX);
        assert_eq!(Lsn::new(5).saturating_sub(7), Lsn::ZERO);
        assert_eq!(Lsn::new(5).bytes_since(Lsn::new(7)), None);
        assert_eq!(Lsn::new(7).bytes_since(Lsn::new(5)), Some(2));
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes: u64) {
            let lsn = Lsn::new(bytes);
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            if let Ok(lsn) = text.parse::<Lsn>() {
                prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
            }
        }
    }
}
