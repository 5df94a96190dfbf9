//! Reports on standard output: tables for people, versioned JSON for programs, and how quantities are written.
//!
//! A reader that went away (`pgark-restore list | head -1`) is not an error: the rest of the report is dropped, and
//! the command's exit code still tells of its work alone.

use std::fmt::{self, Write as _};
use std::io::{self, Stdout, Write};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

/// The version of the JSON shapes; it grows when a field changes its meaning or goes away, not when one is added.
const JSON_VERSION: u32 = 1;

/// A writer for reports that survives a reader who leaves early.
#[derive(Debug)]
pub struct Report<W> {
    writer: W,
    is_closed: bool,
}

impl Report<Stdout> {
    pub fn to_stdout() -> Self {
        Self::new(io::stdout())
    }
}

impl<W: Write> Report<W> {
    pub fn new(writer: W) -> Self {
        Self { writer, is_closed: false }
    }

    /// Writes `{"version":1,"command":"list",…}` with the fields of `body`, which must be a struct or a map.
    pub fn json(&mut self, command: &str, body: &impl Serialize) -> io::Result<()> {
        #[derive(Serialize)]
        struct Envelope<'e, T: Serialize> {
            version: u32,
            command: &'e str,
            #[serde(flatten)]
            body: &'e T,
        }
        let mut line = serde_json::to_string(&Envelope { version: JSON_VERSION, command, body })?;
        line.push('\n');
        self.write_all(line.as_bytes())?;
        self.flush()
    }

    fn unless_closed<T>(&mut self, result: io::Result<T>, instead: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(instead)
            }
            other => other,
        }
    }
}

impl<W: Write> Write for Report<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_closed {
            return Ok(bytes.len());
        }
        let written = self.writer.write(bytes);
        self.unless_closed(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_closed {
            return Ok(());
        }
        let flushed = self.writer.flush();
        self.unless_closed(flushed, ())
    }
}

/// A size for people: `1.2 GiB`, exact below one KiB.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0 of a unit: that is 1.0 of the next one.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration for people, by its two largest units: `350 ms`, `3.2 s`, `5 min 03 s`, `2 h 05 min`, `3 d 04 h`.
pub fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 {
        return format!("{milliseconds} ms");
    }
    // Tenths are cut off and not rounded, so that 59.99 s never becomes 60.0 s.
    if milliseconds < 60_000 {
        return format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100);
    }
    let seconds = duration.as_secs();
    match seconds {
        0..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A time in UTC with its offset, to the second: `2026-11-20 02:00:03+00`. A fraction is cut off.
pub fn format_time(time: Timestamp) -> String {
    let utc = TimeZone::UTC.to_datetime(time);
    let (date, clock) = (utc.date(), utc.time());
    format!("{date} {:02}:{:02}:{:02}+00", clock.hour(), clock.minute(), clock.second())
}

/// A table with aligned columns and two blanks between them.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

/// On which side a column's values stand; numbers on the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

impl Table {
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Missing cells are empty, surplus ones are dropped. Control characters are shown escaped, because
    /// names and annotations come from elsewhere and must not command the terminal.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell.into())).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// The text with its control characters escaped.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header: Vec<String> = self.columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        let width = |column: usize| {
            let cells = std::iter::once(&header).chain(&self.rows);
            cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                match align {
                    Align::Left => write!(line, "{cell:<width$}  ")?,
                    Align::Right => write!(line, "{cell:>width$}  ")?,
                }
            }
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fails every write with `kind`, and counts the attempts.
    struct Failing {
        kind: io::ErrorKind,
        writes: usize,
    }

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.writes += 1;
            Err(self.kind.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.kind.into())
        }
    }

    #[test]
    fn a_reader_that_leaves_is_no_error_and_a_full_disk_is_one() {
        let mut gone = Report::new(Failing { kind: io::ErrorKind::BrokenPipe, writes: 0 });
        writeln!(gone, "one").unwrap();
        writeln!(gone, "two").unwrap();
        gone.flush().unwrap();
        assert_eq!(gone.writer.writes, 1);
        let mut full = Report::new(Failing { kind: io::ErrorKind::StorageFull, writes: 0 });
        assert!(writeln!(full, "one").is_err());
    }

    #[test]
    fn json_has_an_envelope() {
        #[derive(Serialize)]
        struct List {
            backups: Vec<&'static str>,
        }
        let mut bytes = Vec::new();
        Report::new(&mut bytes).json("list", &List { backups: vec!["a"] }).unwrap();
        assert_eq!(bytes, b"{\"version\":1,\"command\":\"list\",\"backups\":[\"a\"]}\n");
    }

    #[test]
    fn sizes_read_well() {
        let shown = [0, 1023, 1024, 1_048_575, 1_048_576, 1_288_490_189, u64::MAX].map(format_size);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "1.2 GiB", "16.0 EiB"]);
    }

    #[test]
    fn durations_read_well() {
        let shown = [0, 350, 3_250, 59_999, 60_000, 303_000, 7_500_000, 273_600_000]
            .map(|milliseconds| format_duration(Duration::from_millis(milliseconds)));
        assert_eq!(shown, ["0 ms", "350 ms", "3.2 s", "59.9 s", "1 min 00 s", "5 min 03 s", "2 h 05 min", "3 d 04 h"]);
    }

    #[test]
    fn times_are_utc_with_an_offset() {
        let time: Timestamp = "2026-11-20T03:00:03.9+01:00".parse().unwrap();
        assert_eq!(format_time(time), "2026-11-20 02:00:03+00");
    }

    #[test]
    fn tables_are_aligned_and_harmless() {
        let mut table = Table::new(&[("id", Align::Left), ("size", Align::Right), ("note", Align::Left)]);
        table.row(["20261120T020003Z-full", "1.2 GiB", ""]);
        table.row(["x", "12 B", "red\u{1b}[31m"]);
        assert_eq!(
            table.to_string(),
            "id                        size  note\n\
             20261120T020003Z-full  1.2 GiB\n\
             x                         12 B  red\\u{1b}[31m\n"
        );
    }

    proptest! {
        #[test]
        fn any_quantity_can_be_shown(bytes: u64, milliseconds: u64) {
            prop_assert!(format_size(bytes).len() <= 10);
            prop_assert!(!format_duration(Duration::from_millis(milliseconds)).is_empty());
        }
    }
}
