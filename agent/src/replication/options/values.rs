//! libpq's keywords, and their values after the environment has been taken in.

use std::collections::HashMap;
use std::time::Duration;

use crate::replication::connection_string::{ConnectionStringError, split};

/// libpq's keywords that are understood, with the variable that stands in for each.
const KEYWORDS: [(&str, &str); 34] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("fallback_application_name", ""),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("require_auth", "PGREQUIREAUTH"),
    ("requirepeer", "PGREQUIREPEER"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslsni", "PGSSLSNI"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("gssencmode", "PGGSSENCMODE"),
    ("sslpassword", ""),
];

/// libpq's keywords that change nothing here: this side decides, or they only matter with GSSAPI.
const IGNORED_KEYWORDS: [&str; 8] = [
    "client_encoding",
    "replication",
    "gsslib",
    "gssdelegation",
    "krbsrvname",
    "sslcompression",
    "min_protocol_version",
    "max_protocol_version",
];

/// libpq's keywords whose neglect could lead to the wrong server, with the variable that stands in for each.
const REFUSED_KEYWORDS: [(&str, &str, &str); 1] =
    [("service", "PGSERVICE", "write host, port and user into the connection string")];

/// Keyword values after the environment has been taken in.
pub(super) struct Values(HashMap<String, String>);

impl Values {
    pub(super) fn collect(
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConnectionStringError> {
        let mut values = HashMap::new();
        for (keyword, value) in split(text)? {
            if let Some((keyword, _, reason)) = REFUSED_KEYWORDS.iter().find(|(name, ..)| *name == keyword) {
                refuse_unless_empty(keyword, &value, reason)?;
            } else if KEYWORDS.iter().any(|(name, _)| *name == keyword) {
                // The last one counts, as in libpq.
                values.insert(keyword, value);
            } else if !IGNORED_KEYWORDS.contains(&keyword.as_str()) {
                return Err(ConnectionStringError::UnknownKeyword { keyword });
            }
        }
        for (keyword, name, reason) in REFUSED_KEYWORDS {
            if let Some(value) = variable(name) {
                refuse_unless_empty(keyword, &value, reason)?;
            }
        }
        for (keyword, name) in KEYWORDS {
            if !name.is_empty()
                && !values.contains_key(keyword)
                && let Some(value) = variable(name)
            {
                values.insert(keyword.to_owned(), value);
            }
        }
        Ok(Self(values))
    }

    /// A value that is there and not empty; an empty one stands for the default.
    pub(super) fn get_filled(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn seconds(&self, keyword: &'static str, default: Duration) -> Result<Duration, ConnectionStringError> {
        match self.number(keyword)? {
            None | Some(0) => Ok(default),
            Some(seconds) => Ok(Duration::from_secs(seconds.into())),
        }
    }

    /// One of a few words, each with its meaning.
    pub(super) fn choice<T: Copy>(
        &self,
        keyword: &'static str,
        choices: &[(&str, T)],
        default: T,
        expected: &'static str,
    ) -> Result<T, ConnectionStringError> {
        match self.get_filled(keyword) {
            None => Ok(default),
            Some(text) => choices
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, meaning)| *meaning)
                .ok_or_else(|| invalid(keyword, expected)),
        }
    }

    pub(super) fn number(&self, keyword: &'static str) -> Result<Option<u32>, ConnectionStringError> {
        self.get_filled(keyword).map(|text| text.trim().parse().map_err(|_| invalid(keyword, "a number"))).transpose()
    }
}

fn refuse_unless_empty(keyword: &'static str, value: &str, reason: &'static str) -> Result<(), ConnectionStringError> {
    if value.is_empty() { Ok(()) } else { Err(ConnectionStringError::Unsupported { keyword, reason }) }
}

pub(super) fn invalid(keyword: &'static str, expected: &'static str) -> ConnectionStringError {
    ConnectionStringError::InvalidValue { keyword, expected }
}
