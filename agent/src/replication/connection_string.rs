//! libpq's connection strings: `host=… user=…` and `postgresql://…`.
//!
//! This module only takes the text apart into keyword and value; [`super::options`] gives them a meaning. No error
//! repeats a value, since any of them may be part of a password.

use thiserror::Error;

/// The connection string, or a variable that completes it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConnectionStringError {
    /// A keyword without a value.
    #[error("connection string: expected \"=\" after the keyword at byte {position}")]
    MissingEquals {
        /// Where the keyword starts.
        position: usize,
    },
    /// A quoted value without an end.
    #[error("connection string: the quote at byte {position} is not closed")]
    UnclosedQuote {
        /// Where it opens.
        position: usize,
    },
    /// No such keyword.
    #[error("connection string: unknown keyword {keyword:?}")]
    UnknownKeyword {
        /// The keyword.
        keyword: String,
    },
    /// libpq has it, pgark does not.
    #[error("connection string: {keyword} is not supported: {reason}")]
    Unsupported {
        /// The keyword.
        keyword: &'static str,
        /// Why, or what to do.
        reason: &'static str,
    },
    /// A value that makes no sense.
    #[error("connection string: {keyword} is not {expected}")]
    InvalidValue {
        /// The keyword.
        keyword: &'static str,
        /// What would be.
        expected: &'static str,
    },
    /// The URL is malformed.
    #[error("connection URL: {problem}")]
    InvalidUrl {
        /// What is wrong.
        problem: &'static str,
    },
    /// Lists of hosts, addresses and ports that do not match.
    #[error("connection string: {found} values for {keyword} do not match {hosts} hosts")]
    ListMismatch {
        /// `hostaddr` or `port`.
        keyword: &'static str,
        /// How many were given.
        found: usize,
        /// How many hosts there are.
        hosts: usize,
    },
    /// Neither the string nor the environment names a user.
    #[error("connection string: no user is named; add user=…")]
    NoUser,
}

/// Takes a connection string apart, in either form.
pub(crate) fn split(text: &str) -> Result<Vec<(String, String)>, ConnectionStringError> {
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => split_url(rest),
        None => split_keywords(text),
    }
}

/// `keyword = value` pairs: values end at a blank, or stand in single quotes; a backslash takes the next character
/// as it is, in both.
fn split_keywords(text: &str) -> Result<Vec<(String, String)>, ConnectionStringError> {
    let mut pairs = Vec::new();
    let mut chars = text.char_indices().peekable();
    loop {
        while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
        let Some(&(position, _)) = chars.peek() else {
            return Ok(pairs);
        };
        let mut keyword = String::new();
        while let Some((_, c)) = chars.next_if(|(_, c)| *c != '=' && !c.is_ascii_whitespace()) {
            keyword.push(c);
        }
        while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
        if chars.next_if(|(_, c)| *c == '=').is_none() {
            return Err(ConnectionStringError::MissingEquals { position });
        }
        while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
        let mut value = String::new();
        if let Some((opened, _)) = chars.next_if(|(_, c)| *c == '\'') {
            loop {
                match chars.next() {
                    Some((_, '\'')) => break,
                    Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
                    Some((_, c)) => value.push(c),
                    None => return Err(ConnectionStringError::UnclosedQuote { position: opened }),
                }
            }
        } else {
            while let Some((_, c)) = chars.next_if(|(_, c)| !c.is_ascii_whitespace()) {
                if c == '\\' {
                    value.extend(chars.next().map(|(_, c)| c));
                } else {
                    value.push(c);
                }
            }
        }
        pairs.push((keyword, value));
    }
}

/// `user:password@host:port,host:port/database?keyword=value&…`, every part optional and percent-encoded.
fn split_url(rest: &str) -> Result<Vec<(String, String)>, ConnectionStringError> {
    let mut pairs = Vec::new();
    let mut put = |keyword: &str, value: String| {
        if !value.is_empty() {
            pairs.push((keyword.to_owned(), value));
        }
    };

    let user_end = rest.find(['@', '/']).filter(|&end| rest[end..].starts_with('@'));
    let rest = match user_end {
        Some(end) => {
            let (user, password) = rest[..end].split_once(':').unwrap_or((&rest[..end], ""));
            put("user", decode(user)?);
            put("password", decode(password)?);
            &rest[end + 1..]
        }
        None => rest,
    };

    let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = before_query.split_once('/').unwrap_or((before_query, ""));
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for entry in authority.split(',') {
        let (host, port) = split_authority(entry)?;
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    // A list keeps its empty places, so that hosts and ports still stand side by side.
    if hosts.iter().any(|host| !host.is_empty()) || hosts.len() > 1 {
        put("host", hosts.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        put("port", ports.join(","));
    }
    put("dbname", decode(database)?);

    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let Some((keyword, value)) = parameter.split_once('=') else {
            return Err(ConnectionStringError::InvalidUrl { problem: "a parameter after \"?\" has no \"=\"" });
        };
        let (keyword, value) = (decode(keyword)?, decode(value)?);
        // The form that JDBC made common; libpq reads it too.
        if keyword == "ssl" && value == "true" {
            pairs.push(("sslmode".to_owned(), "require".to_owned()));
        } else {
            pairs.push((keyword, value));
        }
    }
    Ok(pairs)
}

fn split_authority(entry: &str) -> Result<(&str, &str), ConnectionStringError> {
    if let Some(rest) = entry.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else {
            return Err(ConnectionStringError::InvalidUrl { problem: "an IPv6 address has no closing bracket" });
        };
        return match after.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if after.is_empty() => Ok((address, "")),
            None => Err(ConnectionStringError::InvalidUrl { problem: "text follows the bracket of an IPv6 address" }),
        };
    }
    Ok(entry.split_once(':').unwrap_or((entry, "")))
}

fn decode(text: &str) -> Result<String, ConnectionStringError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |c: u8| (c as char).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let decoded = (rest.next().and_then(digit)).zip(rest.next().and_then(digit));
        match decoded.map(|(high, low)| high * 16 + low) {
            Some(0) => {
                return Err(ConnectionStringError::InvalidUrl { problem: "it contains %00" });
            }
            Some(byte) => bytes.push(byte),
            None => {
                return Err(ConnectionStringError::InvalidUrl { problem: "\"%\" is not followed by two hex digits" });
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| ConnectionStringError::InvalidUrl { problem: "it is not UTF-8" })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        split(text).unwrap()
    }

    fn expect(text: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(pairs(text), expected, "{text}");
    }

    #[test]
    fn keywords_with_quotes_blanks_and_backslashes() {
        expect("", &[]);
        expect("  host = /run  port=5433 ", &[("host", "/run"), ("port", "5433")]);
        expect(r"password='a b\'c\\d' user=x", &[("password", r"a b'c\d"), ("user", "x")]);
        expect(r"password=a\ b\'c host=''", &[("password", "a b'c"), ("host", "")]);
        expect("user=a=b", &[("user", "a=b")]);
        expect("password= user=x", &[("password", "user=x")]);
    }

    #[test]
    fn malformed_keywords_are_placed_but_not_repeated() {
        assert_eq!(split("host=a secret"), Err(ConnectionStringError::MissingEquals { position: 7 }));
        assert_eq!(split("password='secret"), Err(ConnectionStringError::UnclosedQuote { position: 9 }));
        assert!(!split("host=a secret").unwrap_err().to_string().contains("secret"));
    }

    #[test]
    fn urls_in_all_their_forms() {
        expect("postgresql://", &[]);
        expect("postgres://localhost", &[("host", "localhost")]);
        expect("postgresql://localhost:5433", &[("host", "localhost"), ("port", "5433")]);
        expect("postgresql://u@h/db", &[("user", "u"), ("host", "h"), ("dbname", "db")]);
        expect(
            "postgresql://u%40x:p%3A%2F@h/d?application_name=my%20app&connect_timeout=10",
            &[
                ("user", "u@x"),
                ("password", "p:/"),
                ("host", "h"),
                ("dbname", "d"),
                ("application_name", "my app"),
                ("connect_timeout", "10"),
            ],
        );
        expect("postgresql://a:1,b/d", &[("host", "a,b"), ("port", "1,"), ("dbname", "d")]);
        expect("postgresql://[2001:db8::1]:5433/", &[("host", "2001:db8::1"), ("port", "5433")]);
        expect("postgresql:///d?host=/run/pg", &[("dbname", "d"), ("host", "/run/pg")]);
        expect("postgresql://%2Frun%2Fpg/d", &[("host", "/run/pg"), ("dbname", "d")]);
        expect("postgresql://h?ssl=true", &[("host", "h"), ("sslmode", "require")]);
    }

    #[test]
    fn malformed_urls_are_refused() {
        for bad in ["%0", "%zz", "%00", "[::1", "[::1]x", "h?a", "%ff"] {
            split(&format!("postgresql://{bad}")).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "\\PC{0,60}") {
            let _unused = split(&text);
            let _unused = split(&format!("postgresql://{text}"));
        }

        #[test]
        fn any_quoted_value_comes_back(value in "\\PC{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            prop_assert_eq!(pairs(&format!("password='{quoted}'")), vec![("password".to_owned(), value)]);
        }

        #[test]
        fn any_encoded_password_comes_back(value in "\\PC{1,40}") {
            let encoded: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let expected = vec![("user".to_owned(), "u".to_owned()), ("password".to_owned(), value)];
            prop_assert_eq!(pairs(&format!("postgresql://u:{encoded}@")), expected);
        }
    }
}
