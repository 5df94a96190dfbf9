//! Gives the server's refusals their names.

use std::net::IpAddr;

use super::{ReplicationError, ServerError, sqlstate};
use crate::replication::options::{ConnectionOptions, Host, Purpose, os_user_name};
use crate::replication::transport::Protection;

impl ReplicationError {
    /// What an error of the start-up phase means.
    pub(crate) fn from_login(
        server: ServerError,
        options: &ConnectionOptions,
        purpose: Purpose,
        host: &Host,
        protection: &Protection,
    ) -> Self {
        let user = options.user.clone();
        match server.sqlstate.as_str() {
            // One code for "no line matches", "no certificate", "unknown role" and "peer failed". The function tells the
            // first two apart from the rest, and of these only the first names the user, in every language.
            sqlstate::INVALID_AUTHORIZATION if server.routine == "ClientAuthentication" => {
                if server.message.contains(&user) {
                    let line = hba_line(options, purpose, protection, &server.message);
                    Self::NotInPgHba { user, line, server: Box::new(server) }
                } else {
                    Self::ClientCertificateMissing { user, server: Box::new(server) }
                }
            }
            sqlstate::INVALID_AUTHORIZATION | sqlstate::INVALID_PASSWORD => {
                Self::AuthenticationFailed { user, server: Box::new(server) }
            }
            sqlstate::INSUFFICIENT_PRIVILEGE if purpose == Purpose::Replication => {
                Self::MissingReplicationPrivilege { user, server: Box::new(server) }
            }
            sqlstate::TOO_MANY_CONNECTIONS => match sender_limit(&server.message) {
                Some(limit) => Self::TooManySenders { limit, server: Box::new(server) },
                None => Self::TooManyConnections { server: Box::new(server) },
            },
            sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN | sqlstate::CANNOT_CONNECT_NOW => {
                Self::NotReady { endpoint: host.to_string(), server: Box::new(server) }
            }
            _ => Self::server(server),
        }
    }
}

/// The line that `pg_hba.conf` lacks. The server's message names the address that it sees, in every language.
fn hba_line(options: &ConnectionOptions, purpose: Purpose, protection: &Protection, message: &str) -> String {
    let database = match purpose {
        Purpose::Replication => options.database_of(purpose).to_owned(),
        Purpose::Sql => hba_name(options.database_of(purpose)),
    };
    let user = hba_name(&options.user);
    let kind = match protection {
        Protection::Local => {
            let peer = os_user_name().is_some_and(|name| name == options.user);
            return format!("local {database} {user} {}", if peer { "peer" } else { "scram-sha-256" });
        }
        Protection::None => "host",
        Protection::Tls { .. } => "hostssl",
    };
    let mut words = message.split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':'));
    let address = match words.find_map(|word| word.parse::<IpAddr>().ok()) {
        Some(address @ IpAddr::V4(_)) => format!("{address}/32"),
        Some(address @ IpAddr::V6(_)) => format!("{address}/128"),
        None => "samenet".to_owned(),
    };
    format!("{kind} {database} {user} {address} scram-sha-256")
}

/// In quotes unless it is plain, since words such as `all` have a meaning there.
fn hba_name(name: &str) -> String {
    const WORDS: [&str; 5] = ["all", "replication", "samegroup", "samerole", "sameuser"];
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if plain && !WORDS.contains(&name) { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// `max_wal_senders`, if that is what is used up: names of settings and numbers are not translated.
fn sender_limit(message: &str) -> Option<u32> {
    let (_, rest) = message.split_once("max_wal_senders")?;
    rest.split(|c: char| !c.is_ascii_digit()).find_map(|word| word.parse().ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn line(text: &str, purpose: Purpose, protection: Protection, message: &str) -> String {
        let options = ConnectionOptions::parse(text, &|_| None, None).unwrap();
        hba_line(&options, purpose, &protection, message)
    }

    #[test]
    fn the_line_names_the_address_that_the_server_sees() {
        let message =
            "no pg_hba.conf entry for replication connection from host \"192.0.2.7\", user \"ada\", no encryption";
        assert_eq!(
            line("user=ada", Purpose::Replication, Protection::None, message),
            "host replication ada 192.0.2.7/32 scram-sha-256"
        );
        let tls = Protection::Tls { end_point: None };
        assert_eq!(
            line("user=all dbname='my db'", Purpose::Sql, tls.clone(), "kein Eintrag für Host »2001:db8::7«"),
            "hostssl \"my db\" \"all\" 2001:db8::7/128 scram-sha-256"
        );
        assert_eq!(
            line("user=ada", Purpose::Replication, tls, "no address here: cafe"),
            "hostssl replication ada samenet scram-sha-256"
        );
        assert_eq!(
            line("user=nobody.here", Purpose::Replication, Protection::Local, "[local]"),
            "local replication \"nobody.here\" scram-sha-256"
        );
    }

    #[test]
    fn the_limit_of_senders_is_read_from_the_message() {
        let message = "number of requested standby connections exceeds \"max_wal_senders\" (currently 10)";
        assert_eq!(sender_limit(message), Some(10));
        assert_eq!(sender_limit("number … exceeds max_wal_senders (currently 0)"), Some(0));
        assert_eq!(sender_limit("sorry, too many clients already"), None);
    }
}
