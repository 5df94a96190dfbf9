//! Sizes, rates and durations as people write them.
//!
//! One rule for sizes: a whole number and a unit, and every unit is a power of 1024, as in PostgreSQL's own settings.
//! `256MiB`, `256MB` and `256M` are the same size. A number without a unit is refused, because tools disagree about
//! what it counts (bytes here, kilobytes there).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// A text is not a size, a rate or a duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QuantityError {
    #[error("expected a whole number and a unit, like {example}")]
    NotANumber { example: &'static str },
    #[error("the unit is missing; write it as in {example}")]
    NoUnit { example: &'static str },
    #[error("`{unit}` is not a unit; known: {known}")]
    UnknownUnit { unit: String, known: &'static str },
    #[error("`m` could mean minutes or milliseconds; write `min` or `ms`")]
    AmbiguousMinutes,
    #[error("the number is too large")]
    TooLarge,
    #[error("a rate must be between 32 kB and 1 GB per second, as PostgreSQL asks")]
    RateOutOfRange,
}

/// Parses a size in bytes: `512kB`, `256MiB`, `1 GB`.
pub fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = split(text, "256MiB")?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => {
            return Err(QuantityError::UnknownUnit {
                unit: unit.to_owned(),
                known: "B, kB, MB, GB, TB (= KiB, MiB, …)",
            });
        }
    };
    number.checked_mul(factor).ok_or(QuantityError::TooLarge)
}

/// Parses a duration with PostgreSQL's units: `500ms`, `60s`, `5min`, `2h`, `1d`.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let (number, unit) = split(text, "60s")?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "min" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        "m" => return Err(QuantityError::AmbiguousMinutes),
        _ => {
            return Err(QuantityError::UnknownUnit { unit: unit.to_owned(), known: "ms, s, min, h, d" });
        }
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or(QuantityError::TooLarge)
}

fn split<'t>(text: &'t str, example: &'static str) -> Result<(u64, &'t str), QuantityError> {
    let text = text.trim();
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.trim_start();
    if digits.is_empty() || unit.starts_with(|character: char| !character.is_ascii_alphabetic()) {
        return Err(QuantityError::NotANumber { example });
    }
    if unit.is_empty() {
        return Err(QuantityError::NoUnit { example });
    }
    let number = digits.parse().map_err(|_| QuantityError::TooLarge)?;
    Ok((number, unit))
}

/// How fast the server may send a backup, within the limits of its `MAX_RATE` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxRate {
    kilobytes_per_second: u32,
}

impl MaxRate {
    /// The number that `BASE_BACKUP (MAX_RATE n)` takes, in units of 1024 bytes.
    pub fn kilobytes_per_second(self) -> u32 {
        self.kilobytes_per_second
    }
}

impl FromStr for MaxRate {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let per_second = text.trim().strip_suffix("/s").unwrap_or(text);
        match parse_size(per_second)? {
            bytes @ 32_768..=GIB => Ok(Self { kilobytes_per_second: (bytes / KIB) as u32 }),
            _ => Err(QuantityError::RateOutOfRange),
        }
    }
}

impl fmt::Display for MaxRate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}kB", self.kilobytes_per_second)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_however_they_are_spelt() {
        for text in ["256MiB", "256MB", "256M", "256 mib", " 256MB "] {
            assert_eq!(parse_size(text), Ok(256 << 20), "{text}");
        }
        assert_eq!(parse_size("8kB"), Ok(8192));
        assert_eq!(parse_size("0B"), Ok(0));
        assert_eq!(parse_size("1TiB"), Ok(1 << 40));
    }

    #[test]
    fn sizes_without_a_clear_meaning_are_refused() {
        assert!(matches!(parse_size("256"), Err(QuantityError::NoUnit { .. })));
        for text in ["", "MiB", "-1MiB", "1.5GiB", "1,5GiB", "+1MiB"] {
            assert!(matches!(parse_size(text), Err(QuantityError::NotANumber { .. })), "{text}");
        }
        assert!(matches!(parse_size("1Mbit"), Err(QuantityError::UnknownUnit { .. })));
        assert_eq!(parse_size("99999999999999999999MiB"), Err(QuantityError::TooLarge));
        assert_eq!(parse_size("99999999999TiB"), Err(QuantityError::TooLarge));
    }

    #[test]
    fn durations_use_the_units_of_postgresql() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("5min"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("2 h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse_duration("1d"), Ok(Duration::from_secs(86400)));
        assert_eq!(parse_duration("5m"), Err(QuantityError::AmbiguousMinutes));
        assert!(matches!(parse_duration("60"), Err(QuantityError::NoUnit { .. })));
        assert!(matches!(parse_duration("5 years"), Err(QuantityError::UnknownUnit { .. })));
    }

    #[test]
    fn rates_stay_within_the_limits_of_the_server() {
        let rate = |text: &str| text.parse::<MaxRate>().map(MaxRate::kilobytes_per_second);
        assert_eq!(rate("100MiB"), Ok(102_400));
        assert_eq!(rate("100MiB/s"), Ok(102_400));
        assert_eq!(rate("32kB"), Ok(32));
        assert_eq!(rate("1GB"), Ok(1_048_576));
        assert_eq!(rate("31kB"), Err(QuantityError::RateOutOfRange));
        assert_eq!(rate("1025MB"), Err(QuantityError::RateOutOfRange));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,20}") {
            drop(parse_size(&text));
            drop(parse_duration(&text));
            drop(text.parse::<MaxRate>());
        }

        #[test]
        fn rates_are_read_back_as_they_are_shown(kilobytes in 32u32..=1_048_576) {
            let rate: MaxRate = format!("{kilobytes}kB").parse().unwrap();
            prop_assert_eq!(rate.to_string().parse::<MaxRate>(), Ok(rate));
        }
    }
}
