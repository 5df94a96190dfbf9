//! The moment that a user asks for with `--target-time`.
//!
//! PostgreSQL would read such a text in the server's own time zone and guess where it is ambiguous; a wrong guess
//! restores another hour than the one that was meant. So this module accepts only what can mean one thing: date first,
//! a 24-hour clock, an offset in digits, or the machine's zone where it gives exactly one answer. What goes into the
//! server's configuration afterwards always carries `+00`.

use std::fmt;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;

/// A moment, to the microsecond as PostgreSQL keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetTime {
    unix_microseconds: i64,
}

/// A text is not a moment.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TimeInputError {
    #[error("`{text}` is not a time; write it like {EXAMPLE}")]
    NotATime { text: String },
    #[error("`{text}` changes its meaning while it is typed; write the time itself, like {EXAMPLE}")]
    Relative { text: String },
    #[error("`{text}` uses the 12-hour clock; write the hour from 00 to 23, like {EXAMPLE}")]
    TwelveHourClock { text: String },
    #[error("`{text}` has no time of day; write one, like {EXAMPLE}")]
    NoTimeOfDay { text: String },
    #[error("`{text}` names a time zone; write its offset from UTC in digits, like {EXAMPLE}")]
    NamedZone { text: String },
    #[error("`{text}`: {part} is out of range")]
    OutOfRange { text: String, part: &'static str },
    #[error("`{text}` has more than six digits of a second; PostgreSQL keeps microseconds")]
    TooPrecise { text: String },
    #[error(
        "`{text}` happened twice in the time zone {zone}, when the clocks were put back; write `{first}` or `{second}`"
    )]
    Ambiguous { text: String, zone: String, first: String, second: String },
    #[error(
        "`{text}` did not happen in the time zone {zone}, where the clocks were put forward; write `{first}` or \
         `{second}`"
    )]
    Skipped { text: String, zone: String, first: String, second: String },
    #[error("`{text}` has no offset, and the machine's time zone cannot be found out; write it like {EXAMPLE}")]
    UnknownZone { text: String },
}

const EXAMPLE: &str = "2026-11-20 02:00:03+00";

/// The machine's time zone. It reads the time-zone database, so hand it to [`TargetTime::parse`] uncalled.
pub fn machine_zone() -> Option<TimeZone> {
    TimeZone::try_system().ok()
}

impl TargetTime {
    /// Reads `2026-11-20 02:00:03.5+00`, with `T` for the blank, `Z` for `+00`, without fraction, without seconds, or
    /// without an offset: only then `zone` is called.
    pub fn parse(text: &str, zone: impl FnOnce() -> Option<TimeZone>) -> Result<Self, TimeInputError> {
        let text = text.trim();
        let own = || text.to_owned();
        refuse_words(text)?;
        let (date, rest) = parse_date(text)?;
        let rest = rest.strip_prefix(['T', 't']).unwrap_or(rest).trim_start();
        if rest.is_empty() {
            return Err(TimeInputError::NoTimeOfDay { text: own() });
        }
        let (time, rest) = parse_time(text, rest)?;
        let local = date.to_datetime(time);
        let timestamp = match rest.trim_start() {
            "" => {
                let zone = zone().ok_or_else(|| TimeInputError::UnknownZone { text: own() })?;
                in_zone(text, local, &zone)?
            }
            offset => at_offset(local, parse_offset(text, offset)?)
                .ok_or_else(|| TimeInputError::OutOfRange { text: own(), part: "the year" })?,
        };
        Ok(Self { unix_microseconds: timestamp.as_microsecond() })
    }

    pub fn from_unix_microseconds(unix_microseconds: i64) -> Result<Self, TimeInputError> {
        let out_of_range = |_| TimeInputError::OutOfRange { text: unix_microseconds.to_string(), part: "the time" };
        Timestamp::from_microsecond(unix_microseconds).map_err(out_of_range)?;
        Ok(Self { unix_microseconds })
    }

    /// Microseconds since 1970-01-01 00:00:00 UTC.
    pub fn unix_microseconds(self) -> i64 {
        self.unix_microseconds
    }

    pub fn timestamp(self) -> Timestamp {
        // Every way to make the value has been through a timestamp.
        Timestamp::from_microsecond(self.unix_microseconds).unwrap_or_default()
    }
}

impl From<Timestamp> for TargetTime {
    fn from(timestamp: Timestamp) -> Self {
        Self { unix_microseconds: timestamp.as_microsecond() }
    }
}

/// The form for `recovery_target_time`: `2026-11-20 02:00:03.500000+00`.
impl fmt::Display for TargetTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let utc = TimeZone::UTC.to_datetime(self.timestamp());
        let (date, clock) = (utc.date(), utc.time());
        let microsecond = clock.subsec_nanosecond() / 1000;
        write!(formatter, "{date} {:02}:{:02}:{:02}.{microsecond:06}+00", clock.hour(), clock.minute(), clock.second())
    }
}

/// Refuses what PostgreSQL knows and what cannot name one moment.
fn refuse_words(text: &str) -> Result<(), TimeInputError> {
    let lower = text.to_ascii_lowercase();
    const WORDS: [&str; 9] =
        ["now", "today", "tomorrow", "yesterday", "epoch", "infinity", "-infinity", "allballs", "noon"];
    let mut words = lower.split(|character: char| character.is_whitespace() || character == '(');
    if words.any(|word| WORDS.contains(&word)) || lower.ends_with("ago") {
        return Err(TimeInputError::Relative { text: text.to_owned() });
    }
    let unpointed = lower.replace('.', "");
    if let Some(before) = unpointed.strip_suffix("am").or_else(|| unpointed.strip_suffix("pm"))
        && before.trim_end().ends_with(|character: char| character.is_ascii_digit())
    {
        return Err(TimeInputError::TwelveHourClock { text: text.to_owned() });
    }
    Ok(())
}

/// Takes exactly `count` digits off the front.
fn digits(text: &str, count: usize) -> Option<(i64, &str)> {
    let (head, rest) = text.split_at_checked(count)?;
    if !head.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((head.parse().ok()?, rest))
}

fn parse_date(text: &str) -> Result<(Date, &str), TimeInputError> {
    let parts = || {
        let (year, rest) = digits(text, 4)?;
        let (month, rest) = digits(rest.strip_prefix('-')?, 2)?;
        let (day, rest) = digits(rest.strip_prefix('-')?, 2)?;
        Some((year as i16, month as i8, day as i8, rest))
    };
    let (year, month, day, rest) = parts().ok_or_else(|| TimeInputError::NotATime { text: text.to_owned() })?;
    if rest.starts_with(|next: char| next.is_ascii_digit()) {
        return Err(TimeInputError::NotATime { text: text.to_owned() });
    }
    let date = Date::new(year, month, day)
        .map_err(|_| TimeInputError::OutOfRange { text: text.to_owned(), part: "the date" })?;
    Ok((date, rest))
}

fn parse_time<'t>(text: &str, clock: &'t str) -> Result<(Time, &'t str), TimeInputError> {
    let not_a_time = || TimeInputError::NotATime { text: text.to_owned() };
    let (hour, rest) = digits(clock, 2).ok_or_else(not_a_time)?;
    let (minute, mut rest) = rest.strip_prefix(':').and_then(|rest| digits(rest, 2)).ok_or_else(not_a_time)?;
    let mut second = 0;
    let mut nanosecond = 0;
    if let Some(after) = rest.strip_prefix(':') {
        (second, rest) = digits(after, 2).ok_or_else(not_a_time)?;
        if let Some(after) = rest.strip_prefix(['.', ',']) {
            let length = after.bytes().take_while(u8::is_ascii_digit).count();
            match length {
                0 => return Err(not_a_time()),
                1..=6 => {}
                _ => {
                    return Err(TimeInputError::TooPrecise { text: text.to_owned() });
                }
            }
            let (fraction, after) = digits(after, length).ok_or_else(not_a_time)?;
            nanosecond = fraction * 10_i64.pow(9 - length as u32);
            rest = after;
        }
    }
    // A digit here belongs to a field that is too long, not to an offset.
    if rest.starts_with(|next: char| next.is_ascii_digit()) {
        return Err(not_a_time());
    }
    // Two digits each, and nine for the fraction, fit.
    let time = Time::new(hour as i8, minute as i8, second as i8, nanosecond as i32)
        .map_err(|_| TimeInputError::OutOfRange { text: text.to_owned(), part: "the time of day" })?;
    Ok((time, rest))
}

/// Reads `Z`, `UTC`, `+02`, `+0200`, `+02:00`.
fn parse_offset(text: &str, offset: &str) -> Result<Offset, TimeInputError> {
    if ["z", "utc", "gmt"].contains(&offset.to_ascii_lowercase().as_str()) {
        return Ok(Offset::UTC);
    }
    let not_a_time = || TimeInputError::NotATime { text: text.to_owned() };
    let (sign, clock) = match offset.split_at_checked(1) {
        Some(("+", clock)) => (1, clock),
        Some(("-", clock)) => (-1, clock),
        _ if offset.starts_with(char::is_alphabetic) => {
            return Err(TimeInputError::NamedZone { text: text.to_owned() });
        }
        _ => return Err(not_a_time()),
    };
    let (hours, rest) = digits(clock, 2).ok_or_else(not_a_time)?;
    let minutes = match rest {
        "" => 0,
        _ => match digits(rest.strip_prefix(':').unwrap_or(rest), 2) {
            Some((minutes, "")) => minutes,
            _ => return Err(not_a_time()),
        },
    };
    // The limits are PostgreSQL's.
    if hours > 15 || minutes > 59 {
        return Err(TimeInputError::OutOfRange { text: text.to_owned(), part: "the offset" });
    }
    Offset::from_seconds((sign * (hours * 3600 + minutes * 60)) as i32).map_err(|_| not_a_time())
}

fn at_offset(local: DateTime, offset: Offset) -> Option<Timestamp> {
    offset.to_timestamp(local).ok()
}

fn in_zone(text: &str, local: DateTime, zone: &TimeZone) -> Result<Timestamp, TimeInputError> {
    let own = || text.to_owned();
    let out_of_range = || TimeInputError::OutOfRange { text: own(), part: "the year" };
    let name = || zone.iana_name().unwrap_or("of this machine").to_owned();
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => at_offset(local, offset).ok_or_else(out_of_range),
        AmbiguousOffset::Fold { before, after } => Err(TimeInputError::Ambiguous {
            text: own(),
            zone: name(),
            first: written(local, before),
            second: written(local, after),
        }),
        // The skipped time, counted on from before the jump and counted back from after it.
        AmbiguousOffset::Gap { before, after } => {
            let jump = SignedDuration::from_secs(i64::from(after.seconds() - before.seconds()));
            let earlier = local.checked_sub(jump).map_err(|_| out_of_range())?;
            let later = local.checked_add(jump).map_err(|_| out_of_range())?;
            Err(TimeInputError::Skipped {
                text: own(),
                zone: name(),
                first: written(earlier, before),
                second: written(later, after),
            })
        }
    }
}

/// A local time with its offset, in a form that [`TargetTime::parse`] accepts.
fn written(local: DateTime, offset: Offset) -> String {
    let (clock, seconds) = (local.time(), offset.seconds());
    let sign = if seconds < 0 { '-' } else { '+' };
    let mut text = format!("{} {:02}:{:02}:{:02}", local.date(), clock.hour(), clock.minute(), clock.second());
    if clock.subsec_nanosecond() != 0 {
        let fraction = format!("{:06}", clock.subsec_nanosecond() / 1000);
        text.push('.');
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push_str(&format!("{sign}{:02}", seconds.abs() / 3600));
    if seconds % 3600 != 0 {
        text.push_str(&format!(":{:02}", seconds.abs() % 3600 / 60));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a text that must have an offset.
    fn utc(text: &str) -> Result<String, TimeInputError> {
        TargetTime::parse(text, || panic!("the zone is not needed")).map(|time| time.to_string())
    }

    /// Central European time, by its rule: no time-zone database is needed.
    fn central_european() -> Option<TimeZone> {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").ok()
    }

    fn local(text: &str) -> Result<String, TimeInputError> {
        TargetTime::parse(text, central_european).map(|time| time.to_string())
    }

    #[test]
    fn d23_forms_with_an_offset_are_normalised_to_utc() {
        for (text, expected) in [
            ("2026-11-20 02:00:03.5+00", "2026-11-20 02:00:03.500000+00"),
            ("2026-11-20 02:00:03Z", "2026-11-20 02:00:03.000000+00"),
            ("2026-11-20T02:00:03.123456z", "2026-11-20 02:00:03.123456+00"),
            ("2026-11-20 02:00 UTC", "2026-11-20 02:00:00.000000+00"),
            (" 2026-11-20 02:00:03 +02:00 ", "2026-11-20 00:00:03.000000+00"),
            ("2026-11-20 02:00:03+0530", "2026-11-19 20:30:03.000000+00"),
            ("2026-11-20 02:00:03-03", "2026-11-20 05:00:03.000000+00"),
            ("2026-12-31 23:59:59.999999-12", "2027-01-01 11:59:59.999999+00"),
            ("2024-02-29 00:00:00,25+00", "2024-02-29 00:00:00.250000+00"),
        ] {
            assert_eq!(utc(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn d23_a_time_without_an_offset_is_in_the_zone() {
        assert_eq!(local("2026-11-20 02:00:03").as_deref(), Ok("2026-11-20 01:00:03.000000+00"));
        assert_eq!(local("2026-07-20T02:00:03.5").as_deref(), Ok("2026-07-20 00:00:03.500000+00"));
        let unknown = TargetTime::parse("2026-11-20 02:00:03", || None);
        assert!(matches!(unknown, Err(TimeInputError::UnknownZone { .. })));
    }

    #[test]
    fn d23_an_hour_that_happens_twice_is_refused_with_both_candidates() {
        let error = local("2026-10-25 02:30:00").unwrap_err();
        let TimeInputError::Ambiguous { first, second, .. } = &error else { panic!("{error:?}") };
        assert_eq!((first.as_str(), second.as_str()), ("2026-10-25 02:30:00+02", "2026-10-25 02:30:00+01"));
        assert!(error.to_string().contains(first.as_str()) && error.to_string().contains(second.as_str()));
        assert_eq!(utc(first).as_deref(), Ok("2026-10-25 00:30:00.000000+00"));
        assert_eq!(utc(second).as_deref(), Ok("2026-10-25 01:30:00.000000+00"));
        assert!(local("2026-10-25 01:59:59.999999").is_ok());
        assert!(local("2026-10-25 03:00:00").is_ok());
    }

    #[test]
    fn d23_an_hour_that_does_not_happen_is_refused_with_both_candidates() {
        let error = local("2026-03-29 02:30:00.5").unwrap_err();
        let TimeInputError::Skipped { first, second, .. } = &error else { panic!("{error:?}") };
        assert_eq!((first.as_str(), second.as_str()), ("2026-03-29 01:30:00.5+01", "2026-03-29 03:30:00.5+02"));
        assert_eq!(utc(first).unwrap(), local("2026-03-29 01:30:00.5").unwrap());
        assert_eq!(utc(second).unwrap(), local("2026-03-29 03:30:00.5").unwrap());
    }

    #[test]
    fn d22_words_and_the_12_hour_clock_are_refused() {
        for text in ["now", "NOW", "today", "yesterday 12:00", "5 minutes ago", "infinity", "today 02:00+00"] {
            assert!(matches!(local(text), Err(TimeInputError::Relative { .. })), "{text}");
        }
        for text in ["2026-11-20 02:00:03 PM", "2026-11-20 02:00am", "2026-11-20 02:00:03 p.m."] {
            assert!(matches!(local(text), Err(TimeInputError::TwelveHourClock { .. })), "{text}");
        }
        for text in ["2026-11-20 02:00:03 Europe/Berlin", "2026-11-20 02:00:03 CET"] {
            assert!(matches!(local(text), Err(TimeInputError::NamedZone { .. })), "{text}");
        }
    }

    #[test]
    fn d22_other_texts_are_refused() {
        assert!(matches!(local("2026-11-20"), Err(TimeInputError::NoTimeOfDay { .. })));
        for text in ["", "20/11/2026 02:00", "11-20-2026 02:00", "2026-11-20 2:00", "2026-11-20 02", "26-11-20 02:00"] {
            assert!(matches!(local(text), Err(TimeInputError::NotATime { .. })), "{text}");
        }
        for text in
            ["2026-11-20 02:00:03+2", "2026-11-20 02:00:03+02:0", "2026-11-20 02:00:031", "2026-11-20 02:00:03."]
        {
            assert!(matches!(local(text), Err(TimeInputError::NotATime { .. })), "{text}");
        }
        for text in ["2026-02-30 02:00", "2026-11-20 24:00", "2026-11-20 23:59:60", "2026-11-20 02:00+16"] {
            assert!(matches!(local(text), Err(TimeInputError::OutOfRange { .. })), "{text}");
        }
        assert!(matches!(local("2026-11-20 02:00:03.1234567"), Err(TimeInputError::TooPrecise { .. })));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,40}") {
            drop(TargetTime::parse(&text, central_european));
        }

        #[test]
        fn near_misses_are_parsed_or_refused(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9:.,+Zapm -]{0,24}") {
            drop(TargetTime::parse(&text, central_european));
        }

        #[test]
        fn what_is_shown_is_read_back(microseconds in 0_i64..250_000_000_000_000_000) {
            let time = TargetTime::from_unix_microseconds(microseconds).unwrap();
            prop_assert_eq!(TargetTime::parse(&time.to_string(), || None), Ok(time));
        }

        #[test]
        fn both_candidates_of_a_refusal_are_accepted(minute in 0_u32..180) {
            for day in ["2026-03-29", "2026-10-25"] {
                let text = format!("{day} {:02}:{:02}", 1 + minute / 60, minute % 60);
                match TargetTime::parse(&text, central_european) {
                    Ok(_) => {}
                    Err(TimeInputError::Ambiguous { first, second, .. } | TimeInputError::Skipped { first, second, .. }) => {
                        let first = TargetTime::parse(&first, || None).unwrap();
                        let second = TargetTime::parse(&second, || None).unwrap();
                        prop_assert!(first < second);
                    }
                    Err(other) => prop_assert!(false, "{}", other),
                }
            }
        }
    }
}
