//! What mends an error: one sentence, or the statement or line itself.

use std::io;

use pgark_postgres::KNOWN_MAJOR_VERSIONS;

use super::{ReplicationError, sqlstate};

/// How many more connections or slots are proposed where all are used: enough for backups and a standby or two.
const MORE: u32 = 5;

impl ReplicationError {
    /// One sentence or statement that mends it, where there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run pgark as a user who may open the socket, or connect over TCP with host=127.0.0.1".to_owned()
            }
            Self::Connect { .. } | Self::ConnectTimeout { .. } => {
                "check that the server runs and that host and port of the connection string are its own".to_owned()
            }
            Self::NotReady { .. } => "wait until the server has started, then try again".to_owned(),
            Self::WrongTarget { .. } => {
                "name a host in the connection string that is, or remove target_session_attrs".to_owned()
            }
            Self::WrongPeer { owner, .. } => {
                format!("set requirepeer={owner} if that is right; else somebody poses as the server")
            }
            Self::TlsSettings(error) => return error.hint(),
            Self::Tls { source, .. } => return source.hint(),
            Self::TlsNotOffered { .. } => {
                "give the server a certificate, then ALTER SYSTEM SET ssl = 'on'; SELECT pg_reload_conf(); or connect over a \
                 unix socket"
                    .to_owned()
            }
            Self::AuthenticationFailed { .. } => self.login_hint()?,
            Self::LoginMethod { user, .. } => format!(
                "use scram-sha-256 for {user} in pg_hba.conf, or connect with TLS (sslmode=verify-full) or over a unix socket"
            ),
            Self::LoginForbidden { user, .. } => format!(
                "use scram-sha-256 for {user} in pg_hba.conf (with hostssl for channel binding), or relax the connection string"
            ),
            Self::ClientCertificateMissing { .. } => {
                "name the certificate and its key with sslcert and sslkey; they must come from an authority in ssl_ca_file of \
                 the server"
                    .to_owned()
            }
            Self::AuthenticationRefused { .. } => {
                "check that host and port of the connection string lead to the right server".to_owned()
            }
            Self::PasswordMissing { user } => format!(
                "put a line for {user} with database field \"*\" into ~/.pgpass (mode 0600), or set PGPASSWORD"
            ),
            Self::NotInPgHba { line, .. } => hba_hint(line),
            Self::MissingReplicationPrivilege { user, .. } => format!("ALTER ROLE {} REPLICATION;", identifier(user)),
            Self::TooManySenders { limit: 0, .. } => format!(
                "ALTER SYSTEM SET wal_level = 'replica'; ALTER SYSTEM SET max_wal_senders = '{}'; then restart the server",
                2 * MORE
            ),
            Self::TooManySenders { limit, .. } => format!(
                "ALTER SYSTEM SET max_wal_senders = '{}'; then restart the server, or end a replication connection that \
                 nobody needs",
                limit.saturating_add(MORE)
            ),
            Self::TooManyConnections { .. } => {
                "end connections that nobody needs, or raise max_connections and restart the server".to_owned()
            }
            Self::NoSlotFree { limit, .. } => format!(
                "ALTER SYSTEM SET max_replication_slots = '{}'; then restart the server, or drop a slot that nobody needs",
                limit.saturating_add(MORE)
            ),
            Self::UnknownVersion { major } if *major > *KNOWN_MAJOR_VERSIONS.end() => {
                format!("install a pgark that knows PostgreSQL {major}")
            }
            Self::UnknownVersion { .. } => "upgrade the server".to_owned(),
            Self::PagesDamaged { .. } => {
                "keep older backups, find the damaged relations with pg_amcheck and the server's log".to_owned()
            }
            Self::ConnectionClosed { .. } | Self::ConnectionLost { .. } => {
                "look for the reason in the server's log, then try again".to_owned()
            }
            Self::Server { server } if !server.hint.is_empty() => server.hint.clone(),
            _ => return None,
        };
        Some(hint)
    }

    fn login_hint(&self) -> Option<String> {
        let Self::AuthenticationFailed { user, server } = self else { return None };
        Some(if server.sqlstate == sqlstate::INVALID_PASSWORD {
            format!("check the password of {user} in ~/.pgpass (database field \"replication\" or \"*\") or PGPASSWORD")
        } else if server.routine == "InitializeSessionUserId" {
            format!("CREATE ROLE {0} LOGIN REPLICATION; or, if it exists, ALTER ROLE {0} LOGIN;", identifier(user))
        } else {
            format!("check the method and the map of the line for {user} in pg_hba.conf")
        })
    }
}

fn hba_hint(line: &str) -> String {
    let mut hint = format!("add the line \"{line}\" at the top of pg_hba.conf and run SELECT pg_reload_conf();");
    if line.contains(" replication ") {
        hint.push_str(" \"all\" does not cover replication");
    }
    if line.starts_with("host ") {
        hint.push_str("; if there is a hostssl line for it, set sslmode=verify-full");
    }
    hint
}

/// Quotes a role name for a statement that a person can paste.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
