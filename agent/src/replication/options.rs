//! Where and as whom to connect: a connection string, completed by `PG*` variables and defaults, as libpq does it.
//!
//! Precedence is libpq's: the string, then the environment, then the default. Differences are deliberate: without
//! `dbname` ordinary SQL goes to `postgres` (a role for backups has no database of its own), and connecting gives up
//! after 30 seconds unless `connect_timeout` says otherwise.

mod host;
mod keepalive;
mod login;
mod password;
mod target;
mod tls;
mod values;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::values::{Values, invalid};
use super::connection_string::ConnectionStringError;
use super::password_file;

pub use self::host::{Endpoint, Host};
pub use self::keepalive::Keepalive;
pub use self::login::{AllowedLogins, ChannelBindingMode, LoginMethod};
pub use self::password::Password;
pub use self::target::TargetSession;
pub use self::tls::{
    ClientCertificateMode, FilePath, RootCertificates, SslMode, SslNegotiation, TlsOptions, TlsVersion,
};

const DEFAULT_DATABASE: &str = "postgres";
const DEFAULT_APPLICATION_NAME: &str = "pgark";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that is needed to connect, for replication and for ordinary SQL.
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    /// Tried in order.
    pub hosts: Vec<Host>,
    /// Tried in random order instead.
    pub load_balance: bool,
    /// Which of them is wanted.
    pub target: TargetSession,
    /// The role.
    pub user: String,
    /// From the string or the environment; else the password file is asked.
    pub password: Option<Password>,
    /// Where passwords may stand.
    pub password_file: Option<PathBuf>,
    /// The ways to log in that are allowed.
    pub allowed_logins: AllowedLogins,
    /// Whether a login is tied to the TLS connection.
    pub channel_binding: ChannelBindingMode,
    /// Whom the server behind a unix socket must run as.
    pub required_peer: Option<String>,
    /// For ordinary SQL only.
    pub database: String,
    /// Shown in `pg_stat_activity` and `pg_stat_replication`.
    pub application_name: String,
    /// Command-line options for the server process.
    pub options: Option<String>,
    /// For each address, up to the end of the login.
    pub connect_timeout: Option<Duration>,
    /// For TCP.
    pub tls: TlsOptions,
    /// For TCP.
    pub keepalive: Keepalive,
}

impl ConnectionOptions {
    /// Reads a connection string with the environment and the user of this process.
    pub fn from_process(text: &str) -> Result<Self, ConnectionStringError> {
        Self::parse(text, &|name| std::env::var(name).ok(), os_user_name().as_deref())
    }

    /// Reads a connection string; `variable` looks up an environment variable.
    pub fn parse(
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
        os_user: Option<&str>,
    ) -> Result<Self, ConnectionStringError> {
        let values = Values::collect(text, variable)?;
        let user = values.get_filled("user").or(os_user).ok_or(ConnectionStringError::NoUser)?;
        let application_name =
            values.get_filled("application_name").or_else(|| values.get_filled("fallback_application_name"));
        let connect_timeout = match values.get_filled("connect_timeout") {
            None => Some(DEFAULT_CONNECT_TIMEOUT),
            Some(text) => match text.trim().parse::<i32>() {
                Ok(seconds) => u64::try_from(seconds).ok().filter(|&s| s > 0).map(Duration::from_secs),
                Err(_) => return Err(invalid("connect_timeout", "a number of seconds")),
            },
        };
        let password_file = match values.get_filled("passfile") {
            Some(path) => Some(PathBuf::from(path)),
            None => variable("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(".pgpass")),
        };
        Ok(Self {
            hosts: host::parse_hosts(&values)?,
            load_balance: target::parse_load_balance(&values)?,
            target: TargetSession::parse(&values)?,
            user: user.to_owned(),
            password: values.get_filled("password").map(Password::from),
            password_file,
            allowed_logins: AllowedLogins::parse(&values)?,
            channel_binding: ChannelBindingMode::parse(&values)?,
            required_peer: values.get_filled("requirepeer").map(str::to_owned),
            database: values.get_filled("dbname").unwrap_or(DEFAULT_DATABASE).to_owned(),
            application_name: application_name.unwrap_or(DEFAULT_APPLICATION_NAME).to_owned(),
            options: values.get_filled("options").map(str::to_owned),
            connect_timeout,
            tls: TlsOptions::parse(&values, variable)?,
            keepalive: keepalive::parse_keepalive(&values)?,
        })
    }

    /// The same for this host alone, so that further connections reach the server that the first one has chosen.
    #[must_use]
    pub fn only(&self, host: &Host) -> Self {
        Self { hosts: vec![host.clone()], load_balance: false, target: TargetSession::Any, ..self.clone() }
    }

    /// The password for this host. In the password file the database of a replication connection is `replication`.
    pub(crate) fn password_for(&self, host: &Host, purpose: Purpose) -> Option<Password> {
        let database = self.database_of(purpose);
        self.password.clone().or_else(|| {
            let path = self.password_file.as_deref()?;
            password_file::find(path, &host.password_file_name(), host.port, database, &self.user)
        })
    }

    /// How `.pgpass` and `pg_hba.conf` call the database of a connection.
    pub(crate) fn database_of(&self, purpose: Purpose) -> &str {
        match purpose {
            Purpose::Replication => "replication",
            Purpose::Sql => &self.database,
        }
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Base backups and WAL, as a physical replication session.
    Replication,
    /// Ordinary SQL.
    Sql,
}

/// The name of the user that this process acts as, from `/etc/passwd`, else from `USER` or `LOGNAME`.
///
/// The effective user comes first, because `runuser` and systemd do not always set the variables.
pub fn os_user_name() -> Option<String> {
    // The entry belongs to the effective user of the process.
    let uid = fs::metadata("/proc/self").ok().map(|metadata| metadata.uid());
    let named = uid.and_then(user_name);
    named.or_else(|| std::env::var("USER").ok()).or_else(|| std::env::var("LOGNAME").ok())
}

/// The name of a user in `/etc/passwd`.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<ConnectionOptions, ConnectionStringError> {
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        ConnectionOptions::parse(text, &lookup, Some("osuser"))
    }

    fn parse(text: &str) -> ConnectionOptions {
        parse_with(text, &[]).unwrap()
    }

    #[test]
    fn nothing_at_all_means_the_local_socket() {
        let options = parse("");
        assert_eq!(options.hosts.len(), 1);
        assert_eq!(options.hosts[0].to_string(), "socket /var/run/postgresql/.s.PGSQL.5432");
        assert_eq!((options.user.as_str(), options.database.as_str()), ("osuser", "postgres"));
        assert_eq!(options.application_name, "pgark");
        assert_eq!(options.tls.mode, SslMode::Prefer);
    }

    #[test]
    fn the_string_comes_before_the_environment_and_that_before_defaults() {
        let variables = [("PGHOST", "env"), ("PGPORT", "1"), ("PGUSER", "env"), ("PGAPPNAME", "env"), ("HOME", "/h")];
        let options = parse_with("host=here application_name=''", &variables).unwrap();
        assert_eq!(options.hosts[0].to_string(), "here:1");
        assert_eq!(options.user, "env");
        // Given but empty is given: libpq does not look at the environment then.
        assert_eq!(options.application_name, "pgark");
        assert_eq!(options.password_file.as_deref(), Some(Path::new("/h/.pgpass")));
        assert_eq!(parse_with("", &variables).unwrap().application_name, "env");
    }

    #[test]
    fn several_hosts_pair_with_ports() {
        let options = parse("host=a,/run,c port=1,,3");
        let shown: Vec<_> = options.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a:1", "socket /run/.s.PGSQL.5432", "c:3"]);
        let one_port = parse("host=a,b port=7");
        assert!(one_port.hosts.iter().all(|host| host.port == 7));
        assert!(matches!(
            parse_with("host=a,b,c port=1,2", &[]),
            Err(ConnectionStringError::ListMismatch { keyword: "port", found: 2, hosts: 3 })
        ));
        assert_eq!(parse("hostaddr=::1").hosts[0].to_string(), "[::1]:5432");
        assert_eq!(parse("host=db hostaddr=10.0.0.1").hosts[0].to_string(), "db:5432 (10.0.0.1)");
    }

    #[test]
    fn an_unknown_keyword_is_named() {
        let error = parse_with("hots=a", &[]).unwrap_err();
        assert_eq!(error.to_string(), "connection string: unknown keyword \"hots\"");
    }

    #[test]
    fn what_would_be_less_safe_in_silence_is_refused() {
        for bad in ["service=x", "sslcrldir=x", "sslpassword=x"] {
            assert!(matches!(parse_with(bad, &[]), Err(ConnectionStringError::Unsupported { .. })), "{bad}");
        }
        assert!(parse_with("", &[("PGSERVICE", "x")]).is_err());
        parse("channel_binding=prefer sslrootcert=x client_encoding=UTF8");
    }

    #[test]
    fn values_without_a_meaning_are_refused() {
        for bad in ["port=0", "port=x", "connect_timeout=x", "sslmode=maybe", "hostaddr=x", "keepalives_idle=-1"] {
            assert!(matches!(parse_with(bad, &[]), Err(ConnectionStringError::InvalidValue { .. })), "{bad}");
        }
        assert_eq!(parse("connect_timeout=0").connect_timeout, None);
        assert_eq!(parse("connect_timeout=5").connect_timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_password_never_prints() {
        let options = parse("password=hunter2");
        assert!(!format!("{options:?}").contains("hunter2"));
        assert_eq!(options.password_for(&options.hosts[0], Purpose::Replication).unwrap().as_bytes(), b"hunter2");
    }

    #[test]
    fn the_host_that_answered_can_be_kept() {
        let options = parse("host=a,b target_session_attrs=standby load_balance_hosts=random");
        assert_eq!((options.target, options.load_balance), (TargetSession::Standby, true));
        let kept = options.only(&options.hosts[1]);
        assert_eq!((kept.hosts, kept.target), (vec![options.hosts[1].clone()], TargetSession::Any));
    }

    #[test]
    fn the_process_has_a_user() {
        assert!(os_user_name().is_some_and(|name| !name.is_empty()));
    }
}
