//! One table of the file together with the variables and options that override it.
//!
//! This is where the precedence is written: [`Section::find`] asks the command line, then the environment, then the
//! file. A section remembers each key that it was asked for, so the keys that exist and the keys that the code reads
//! cannot drift apart, and [`Section::finish`] turns every other key of the file into a fault.

use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::environment::{Environment, Overrides};
use super::fault::{ConfigurationError, Fault, Origin};
use super::nearest::nearest;
use super::quantity::{QuantityError, parse_duration, parse_size};
use super::secret::{Secret, SecretSource};

/// A parsed file and what overrides it.
pub(super) struct Document<'d> {
    path: &'d Path,
    text: &'d str,
    table: DeTable<'d>,
    environment: &'d Environment,
    overrides: &'d Overrides,
}

/// A table of the document and the line of its header.
#[derive(Clone, Copy)]
pub(super) struct Table<'s> {
    table: &'s DeTable<'s>,
    line: usize,
}

/// A setting that was found, before its type is known.
struct Found<'s> {
    value: Value<'s>,
    origin: Origin,
}

enum Value<'s> {
    /// From an option or a variable, where everything is text.
    Untyped(String),
    Typed(&'s DeValue<'s>),
}

impl<'d> Document<'d> {
    pub(super) fn parse(
        text: &'d str,
        path: &'d Path,
        environment: &'d Environment,
        overrides: &'d Overrides,
    ) -> Result<Self, ConfigurationError> {
        // Only the parser's message is kept: its long form repeats the line, which may hold a secret.
        let table = DeTable::parse(text).map_err(|error| ConfigurationError::Syntax {
            path: path.to_path_buf(),
            line: line_of(text, error.span()),
            message: error.message().replace('\n', ", "),
        })?;
        Ok(Self { path, text, table: table.into_inner(), environment, overrides })
    }

    /// The keys outside of any table.
    pub(super) fn top(&'d self) -> Section<'d> {
        let table = Table { table: &self.table, line: 1 };
        Section::new(self, Some(table), "", "at the top of the file".to_owned(), "PGARK_".to_owned())
    }

    /// `[name]`, which may be absent from the file.
    pub(super) fn section(&'d self, name: &'static str, table: Option<Table<'d>>) -> Section<'d> {
        Section::new(self, table, name, format!("in [{name}]"), format!("PGARK_{}_", name.to_ascii_uppercase()))
    }

    /// One of the tables `[[name]]`; its variables carry its number, from 1.
    pub(super) fn numbered(&'d self, name: &'static str, number: u32, table: Option<Table<'d>>) -> Section<'d> {
        let variable = name.to_ascii_uppercase().replace('.', "_");
        Section::new(self, table, name, format!("in [[{name}]] number {number}"), format!("PGARK_{variable}_{number}_"))
    }

    /// One `[[repository]]`; its variables carry its name.
    pub(super) fn repository(&'d self, table: Table<'d>) -> Section<'d> {
        let name = table.table.get("name").and_then(|name| name.get_ref().as_str()).unwrap_or_default();
        Section::new(
            self,
            Some(table),
            "repository",
            if name.is_empty() { "in [[repository]]".to_owned() } else { format!("in repository `{name}`") },
            format!("PGARK_REPOSITORY_{}_", variable_name(name)),
        )
    }

    pub(super) fn environment(&self) -> &Environment {
        self.environment
    }

    pub(super) fn at_line(&self, line: usize) -> Origin {
        Origin::File { path: self.path.to_path_buf(), line }
    }

    fn line(&self, span: Range<usize>) -> usize {
        line_of(self.text, Some(span))
    }
}

/// How a repository's name appears inside a variable's: upper case, with `_` for everything that is not a letter or
/// a digit.
pub(super) fn variable_name(name: &str) -> String {
    name.chars()
        .map(|character| if character.is_ascii_alphanumeric() { character.to_ascii_uppercase() } else { '_' })
        .collect()
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start).min(text.len());
    1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count()
}

/// One table that is being read.
pub(super) struct Section<'s> {
    document: &'s Document<'s>,
    table: Option<Table<'s>>,
    name: &'static str,
    /// "in [cluster]", for messages.
    place: String,
    variable_prefix: String,
    asked: Vec<&'static str>,
    faults: Vec<Fault>,
}

impl<'s> Section<'s> {
    fn new(
        document: &'s Document<'s>,
        table: Option<Table<'s>>,
        name: &'static str,
        place: String,
        variable_prefix: String,
    ) -> Self {
        Self { document, table, name, place, variable_prefix, asked: Vec::new(), faults: Vec::new() }
    }

    /// The precedence: command line, environment, file.
    fn find(&mut self, key: &'static str) -> Option<Found<'s>> {
        self.asked.push(key);
        let setting = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        if let Some((option, value)) = self.document.overrides.get(&setting) {
            return Some(Found { value: Value::Untyped(value.to_owned()), origin: Origin::CommandLine { option } });
        }
        let variable = self.variable(key);
        if let Some(value) = self.document.environment.get(&variable) {
            return Some(Found { value: Value::Untyped(value), origin: Origin::Environment { variable } });
        }
        let value = self.table?.table.get(key)?;
        let origin = self.document.at_line(self.document.line(value.span()));
        Some(Found { value: Value::Typed(value.get_ref()), origin })
    }

    /// The variable that overrides `key`.
    pub(super) fn variable(&self, key: &str) -> String {
        format!("{}{}", self.variable_prefix, key.to_ascii_uppercase())
    }

    /// Notes a fault of the section as a whole: it points at the section's header.
    pub(super) fn fault(&mut self, sentence: String) {
        let origin = self.document.at_line(self.table.map_or(1, |table| table.line));
        self.faults.push(Fault { origin, sentence: format!("{sentence} ({})", self.place) });
    }

    fn fault_at(&mut self, origin: Origin, sentence: String) {
        self.faults.push(Fault { origin, sentence });
    }

    fn wrong_type(&mut self, key: &str, expected: &str, origin: Origin, found: &DeValue<'_>) {
        let sentence = format!("`{key}` {} must be {expected}, not {}", self.place, found.type_str());
        self.fault_at(origin, sentence);
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        self.text_at(key).map(|(text, _)| text)
    }

    fn text_at(&mut self, key: &'static str) -> Option<(String, Origin)> {
        let Found { value, origin } = self.find(key)?;
        let text = match value {
            Value::Untyped(text) => text,
            Value::Typed(DeValue::String(text)) => text.clone().into_owned(),
            Value::Typed(other) => {
                self.wrong_type(key, "a text in quotes", origin, other);
                return None;
            }
        };
        if text.is_empty() { None } else { Some((text, origin)) }
    }

    /// A text that `parse` turns into a value; an absent, empty or wrong one gives the default.
    pub(super) fn parsed<T, E: Display>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    /// A text that `parse` turns into a value.
    pub(super) fn optional<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (text, origin) = self.text_at(key)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(problem) => {
                let sentence = format!("`{key}` {} is \"{}\": {problem}", self.place, text.escape_debug());
                self.fault_at(origin, sentence);
                None
            }
        }
    }

    /// A text of which a message may say only what is wrong with it.
    pub(super) fn optional_hidden<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let (text, origin) = self.text_at(key)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(problem) => {
                let sentence = format!("`{key}` {}: {problem}", self.place);
                self.fault_at(origin, sentence);
                None
            }
        }
    }

    /// A text that must be there.
    pub(super) fn required<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let before = self.faults.len();
        let value = self.optional(key, parse);
        self.missing(key, value.is_none() && self.faults.len() == before);
        value
    }

    /// A text that must be there, and that no message repeats.
    pub(super) fn required_hidden<T, E: Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let before = self.faults.len();
        let value = self.optional_hidden(key, parse);
        self.missing(key, value.is_none() && self.faults.len() == before);
        value
    }

    fn missing(&mut self, key: &str, is_missing: bool) {
        if is_missing {
            self.fault(format!("`{key}` is missing"));
        }
    }

    pub(super) fn integer(&mut self, key: &'static str, default: u32, least: u32, most: u32) -> u32 {
        let Some(Found { value, origin }) = self.find(key) else {
            return default;
        };
        let digits = match value {
            Value::Untyped(text) => text,
            Value::Typed(DeValue::Integer(integer)) => integer.to_string(),
            Value::Typed(other) => {
                self.wrong_type(key, "a whole number without quotes", origin, other);
                return default;
            }
        };
        match digits.parse::<u32>() {
            Ok(number) if (least..=most).contains(&number) => number,
            _ => {
                let digits = digits.escape_debug();
                let sentence = format!("`{key}` {} is {digits}: expected a number from {least} to {most}", self.place);
                self.fault_at(origin, sentence);
                default
            }
        }
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let Found { value, origin } = self.find(key)?;
        match value {
            Value::Typed(DeValue::Boolean(value)) => Some(*value),
            Value::Typed(other) => {
                self.wrong_type(key, "true or false without quotes", origin, other);
                None
            }
            Value::Untyped(text) => match text.as_str() {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => {
                    self.fault_at(origin, format!("`{key}` {} must be true or false", self.place));
                    None
                }
            },
        }
    }

    /// A list of texts; in a variable they stand side by side, with commas or blanks between them.
    pub(super) fn list(&mut self, key: &'static str) -> Vec<String> {
        let Some(Found { value, origin }) = self.find(key) else {
            return Vec::new();
        };
        let array = match value {
            Value::Untyped(text) => {
                let words = text.split(|character: char| character == ',' || character.is_whitespace());
                return words.filter(|word| !word.is_empty()).map(str::to_owned).collect();
            }
            Value::Typed(DeValue::Array(array)) => array,
            Value::Typed(other) => {
                self.wrong_type(key, "a list of texts, [\"…\", \"…\"]", origin, other);
                return Vec::new();
            }
        };
        let mut list = Vec::new();
        for element in array.iter() {
            let origin = self.document.at_line(self.document.line(element.span()));
            match element.get_ref().as_str() {
                Some(text) => list.push(text.to_owned()),
                None => self.wrong_type(key, "a list of texts, [\"…\", \"…\"]", origin, element.get_ref()),
            }
        }
        list
    }

    /// An absolute path. PostgreSQL runs commands in its data directory, where a relative path means another place
    /// than it does in a shell.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.optional(key, |text| {
            let path = PathBuf::from(text);
            if path.is_absolute() { Ok(path) } else { Err("expected an absolute path, beginning with `/`") }
        })
    }

    pub(super) fn size(&mut self, key: &'static str, default: u64, least: u64, most: u64) -> u64 {
        self.parsed(key, default, |text| {
            let size = parse_size(text).map_err(|error| error.to_string())?;
            if (least..=most).contains(&size) {
                Ok(size)
            } else {
                Err(format!("expected {} MiB to {} MiB", least >> 20, most >> 20))
            }
        })
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        least: Duration,
        most: Duration,
    ) -> Duration {
        self.parsed(key, default, |text| {
            let duration = parse_duration(text).map_err(|error: QuantityError| error.to_string())?;
            if (least..=most).contains(&duration) {
                Ok(duration)
            } else {
                Err(format!("expected {} s to {} h", least.as_secs(), most.as_secs() / 3600))
            }
        })
    }

    /// A secret: its value from the variable of `key`, or the file that `file_key` names. There is no key that holds
    /// the value itself.
    pub(super) fn secret(&mut self, key: &str, file_key: &'static str) -> Option<SecretSource> {
        let file = self.path(file_key).map(SecretSource::File);
        let value = self.document.environment.get(&self.variable(key));
        value.map(|value| SecretSource::Value(Secret::new(value))).or(file)
    }

    /// The table `[key]` inside this one.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'s>> {
        self.asked.push(key);
        let (header, value) = self.table?.table.get_key_value(key)?;
        let line = self.document.line(header.span());
        match value.get_ref() {
            DeValue::Table(table) => Some(Table { table, line }),
            other => {
                self.wrong_type(key, &format!("a table, [{key}]"), self.document.at_line(line), other);
                None
            }
        }
    }

    /// The tables `[[key]]` inside this one.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Table<'s>> {
        self.asked.push(key);
        let Some((header, value)) = self.table.and_then(|table| table.table.get_key_value(key)) else {
            return Vec::new();
        };
        let mut tables = Vec::new();
        let expected = format!("a list of tables, each under [[{key}]] in double brackets");
        match value.get_ref() {
            DeValue::Array(array) => {
                for element in array.iter() {
                    let line = self.document.line(element.span());
                    match element.get_ref() {
                        DeValue::Table(table) => tables.push(Table { table, line }),
                        other => self.wrong_type(key, &expected, self.document.at_line(line), other),
                    }
                }
            }
            other => {
                let origin = self.document.at_line(self.document.line(header.span()));
                self.wrong_type(key, &expected, origin, other);
            }
        }
        tables
    }

    /// Refuses every key of the file that was not asked for, and hands over what was found.
    pub(super) fn finish(mut self, known: &mut Vec<String>, faults: &mut Vec<Fault>) {
        let unknown = self.table.into_iter().flat_map(|table| table.table.keys());
        for key in unknown.filter(|key| !self.asked.contains(&key.get_ref().as_ref())) {
            let written = key.get_ref().escape_debug();
            let mut sentence = format!("unknown key `{written}` {}", self.place);
            if let Some(meant) = nearest(key.get_ref(), self.asked.iter().copied()) {
                sentence.push_str(&format!(", did you mean `{meant}`?"));
            }
            self.faults.push(Fault { origin: self.document.at_line(self.document.line(key.span())), sentence });
        }
        for key in self.asked {
            let setting = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
            if !known.contains(&setting) {
                known.push(setting);
            }
        }
        self.faults.sort_by_key(|fault| match fault.origin {
            Origin::File { line, .. } => line,
            _ => 0,
        });
        faults.append(&mut self.faults);
    }
}
