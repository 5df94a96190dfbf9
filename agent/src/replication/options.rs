//! Where and as whom to connect: a connection string, completed by `PG*` variables and defaults, as libpq does it.
//!
//! Precedence is libpq's: the string, then the environment, then the default. Differences are deliberate: without
//! `dbname` ordinary SQL goes to `postgres` (a role for backups has no database of its own), and connecting gives up
//! after 30 seconds unless `connect_timeout` says otherwise.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::connection_string::{ConnectionStringError, split};
use super::password_file;

const DEFAULT_PORT: u16 = 5432;
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";
const DEFAULT_DATABASE: &str = "postgres";
const DEFAULT_APPLICATION_NAME: &str = "pgark";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The database field of `.pgpass` for replication connections.
const REPLICATION_DATABASE: &str = "replication";

/// libpq's keywords that are understood, with the variable that stands in for each.
const KEYWORDS: [(&str, &str); 18] = [
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
    ("sslmode", "PGSSLMODE"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

/// libpq's keywords that change nothing here: either this side decides, or they only matter with TLS or GSSAPI.
const IGNORED_KEYWORDS: [&str; 21] = [
    "client_encoding",
    "replication",
    "gssencmode",
    "gsslib",
    "gssdelegation",
    "krbsrvname",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcertmode",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "sslnegotiation",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "min_protocol_version",
    "max_protocol_version",
    "load_balance_hosts",
];

/// libpq's keywords whose neglect could connect to the wrong server or with less safety than asked for.
const REFUSED_KEYWORDS: [(&str, &str, &str); 4] = [
    ("service", "PGSERVICE", "write host, port and user into the connection string"),
    ("requirepeer", "PGREQUIREPEER", "the owner of a socket is not checked"),
    ("require_auth", "PGREQUIREAUTH", "login methods cannot be restricted yet"),
    ("channel_binding", "PGCHANNELBINDING", "channel binding needs TLS, which is not there yet"),
];

/// A password, which never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Password {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
    }
}

/// How much TLS is wanted, with libpq's names; the order is from none to strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server insists.
    Allow,
    /// If the server can.
    Prefer,
    /// Always, without checking who answers.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate for this very host.
    VerifyFull,
}

impl SslMode {
    /// The name in connection strings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Disable, Self::Allow, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull]
            .into_iter()
            .find(|mode| mode.as_str() == text)
    }
}

/// One place where a server may listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// A name or a directory.
    pub endpoint: Endpoint,
    /// The TCP port, or the number in the socket's name.
    pub port: u16,
}

/// How to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The directory of the server's unix socket.
    SocketDirectory(PathBuf),
    /// TCP.
    Name {
        /// What to look up, and what stands in `.pgpass`.
        name: String,
        /// Where to connect without looking up, from `hostaddr`.
        address: Option<IpAddr>,
    },
}

impl Host {
    pub(crate) fn is_tcp(&self) -> bool {
        matches!(self.endpoint, Endpoint::Name { .. })
    }

    /// The path of the server's socket, where it is one.
    pub(crate) fn socket_path(&self) -> PathBuf {
        match &self.endpoint {
            Endpoint::SocketDirectory(directory) => directory.join(format!(".s.PGSQL.{}", self.port)),
            Endpoint::Name { .. } => PathBuf::new(),
        }
    }

    /// The first field of `.pgpass`: `localhost` stands for the default socket too.
    fn password_file_name(&self) -> String {
        match &self.endpoint {
            Endpoint::SocketDirectory(directory) if directory == Path::new(DEFAULT_SOCKET_DIRECTORY) => {
                "localhost".to_owned()
            }
            Endpoint::SocketDirectory(directory) => directory.to_string_lossy().into_owned(),
            Endpoint::Name { name, .. } => name.clone(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::SocketDirectory(_) => write!(f, "socket {}", self.socket_path().display()),
            Endpoint::Name { name, address } => {
                let bracket = name.contains(':');
                write!(f, "{}{name}{}:{}", if bracket { "[" } else { "" }, if bracket { "]" } else { "" }, self.port)?;
                match address {
                    Some(address) if address.to_string() != *name => write!(f, " ({address})"),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// How the kernel finds out that a TCP peer is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keepalive {
    /// Whether it probes at all.
    pub enabled: bool,
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer.
    pub count: u32,
    /// How long sent data may stay unacknowledged; zero leaves it to the system.
    pub user_timeout: Duration,
}

impl Default for Keepalive {
    /// Finds a dead peer in two minutes, where the system's own values take more than two hours.
    fn default() -> Self {
        Self {
            enabled: true,
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(15),
            count: 4,
            user_timeout: Duration::ZERO,
        }
    }
}

/// Everything that is needed to connect, for replication and for ordinary SQL.
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    /// Tried in order.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// From the string or the environment; else the password file is asked.
    pub password: Option<Password>,
    /// Where passwords may stand.
    pub password_file: Option<PathBuf>,
    /// For ordinary SQL only.
    pub database: String,
    /// Shown in `pg_stat_activity` and `pg_stat_replication`.
    pub application_name: String,
    /// Command-line options for the server process.
    pub options: Option<String>,
    /// For each host, up to the end of the login.
    pub connect_timeout: Option<Duration>,
    /// How much TLS is wanted.
    pub ssl_mode: SslMode,
    /// For TCP.
    pub keepalive: Keepalive,
}

impl ConnectionOptions {
    /// Reads a connection string with this process's environment and user.
    pub fn from_process(text: &str) -> Result<Self, ConnectionStringError> {
        let os_user = os_user_name();
        Self::parse(text, &|name| std::env::var(name).ok(), os_user.as_deref())
    }

    /// Reads a connection string; `variable` looks up the environment and `os_user` is the last resort for the user.
    pub fn parse(
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
        os_user: Option<&str>,
    ) -> Result<Self, ConnectionStringError> {
        let values = Values::collect(text, variable)?;
        let hosts = parse_hosts(&values)?;
        let user = values.get_filled("user").or(os_user).ok_or(ConnectionStringError::NoUser)?;
        let application_name =
            values.get_filled("application_name").or_else(|| values.get_filled("fallback_application_name"));
        match values.get_filled("target_session_attrs") {
            None | Some("any") => {}
            Some(_) => {
                return Err(ConnectionStringError::Unsupported {
                    keyword: "target_session_attrs",
                    reason: "name the one host that is to be backed up",
                });
            }
        }
        let connect_timeout = match values.get_filled("connect_timeout") {
            None => Some(DEFAULT_CONNECT_TIMEOUT),
            Some(text) => match text.trim().parse::<i32>() {
                Ok(seconds) => u64::try_from(seconds).ok().filter(|&s| s > 0).map(Duration::from_secs),
                Err(_) => return Err(invalid("connect_timeout", "a number of seconds")),
            },
        };
        let ssl_mode = match values.get_filled("sslmode") {
            None => SslMode::Prefer,
            Some(text) => SslMode::parse(text).ok_or_else(|| {
                invalid("sslmode", "one of disable, allow, prefer, require, verify-ca and verify-full")
            })?,
        };
        let password_file = match values.get_filled("passfile") {
            Some(path) => Some(PathBuf::from(path)),
            None => variable("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(".pgpass")),
        };
        Ok(Self {
            hosts,
            user: user.to_owned(),
            password: values.get_filled("password").map(Password::from),
            password_file,
            database: values.get_filled("dbname").unwrap_or(DEFAULT_DATABASE).to_owned(),
            application_name: application_name.unwrap_or(DEFAULT_APPLICATION_NAME).to_owned(),
            options: values.get_filled("options").map(str::to_owned),
            connect_timeout,
            ssl_mode,
            keepalive: parse_keepalive(&values)?,
        })
    }

    /// The password for a replication connection to this host.
    pub(crate) fn replication_password(&self, host: &Host) -> Option<Password> {
        self.password_for(host, REPLICATION_DATABASE)
    }

    fn password_for(&self, host: &Host, database: &str) -> Option<Password> {
        self.password.clone().or_else(|| {
            let path = self.password_file.as_deref()?;
            password_file::find(path, &host.password_file_name(), host.port, database, &self.user)
        })
    }

    /// The same server for ordinary SQL. The password file is read, if need be, for the first host.
    pub fn to_sql_config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        for host in &self.hosts {
            match &host.endpoint {
                Endpoint::SocketDirectory(directory) => config.host_path(directory),
                Endpoint::Name { name, address: None } => config.host(name),
                Endpoint::Name { address: Some(address), .. } => config.host(address.to_string()),
            };
            config.port(host.port);
        }
        config
            .user(&self.user)
            .dbname(&self.database)
            .application_name(&self.application_name)
            .ssl_mode(tokio_postgres::config::SslMode::Disable)
            .keepalives(self.keepalive.enabled)
            .keepalives_idle(self.keepalive.idle)
            .keepalives_interval(self.keepalive.interval)
            .keepalives_retries(self.keepalive.count);
        if let Some(password) = self.hosts.first().and_then(|host| self.password_for(host, &self.database)) {
            config.password(password.as_bytes());
        }
        if let Some(options) = &self.options {
            config.options(options);
        }
        if let Some(limit) = self.connect_timeout {
            config.connect_timeout(limit);
        }
        config
    }
}

/// The name of the user that this process acts as, from `/etc/passwd`, else from `USER` or `LOGNAME`.
///
/// The effective user comes first, because `runuser` and systemd do not always set the variables.
pub fn os_user_name() -> Option<String> {
    // The entry belongs to the effective user of the process.
    let uid = fs::metadata("/proc/self").ok().map(|metadata| metadata.uid().to_string());
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == uid.as_deref()).then(|| name.to_owned())
    });
    named.or_else(|| std::env::var("USER").ok()).or_else(|| std::env::var("LOGNAME").ok())
}

/// Keyword values after the environment has been taken in.
struct Values(HashMap<String, String>);

impl Values {
    fn collect(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConnectionStringError> {
        let mut values = HashMap::new();
        for (keyword, value) in split(text)? {
            if let Some((keyword, _, reason)) = REFUSED_KEYWORDS.iter().find(|(name, ..)| *name == keyword) {
                refuse_unless_harmless(keyword, &value, reason)?;
            } else if keyword == "gssencmode" && value == "require" {
                return Err(ConnectionStringError::Unsupported {
                    keyword: "gssencmode",
                    reason: "GSSAPI encryption is not there",
                });
            } else if KEYWORDS.iter().any(|(name, _)| *name == keyword) {
                // The last one counts, as in libpq.
                values.insert(keyword, value);
            } else if !IGNORED_KEYWORDS.contains(&keyword.as_str()) {
                return Err(ConnectionStringError::UnknownKeyword { keyword });
            }
        }
        for (keyword, name, reason) in REFUSED_KEYWORDS {
            if let Some(value) = variable(name) {
                refuse_unless_harmless(keyword, &value, reason)?;
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
    fn get_filled(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn seconds(&self, keyword: &'static str, default: Duration) -> Result<Duration, ConnectionStringError> {
        match self.number(keyword)? {
            None | Some(0) => Ok(default),
            Some(seconds) => Ok(Duration::from_secs(seconds.into())),
        }
    }

    fn number(&self, keyword: &'static str) -> Result<Option<u32>, ConnectionStringError> {
        self.get_filled(keyword).map(|text| text.trim().parse().map_err(|_| invalid(keyword, "a number"))).transpose()
    }
}

fn refuse_unless_harmless(
    keyword: &'static str,
    value: &str,
    reason: &'static str,
) -> Result<(), ConnectionStringError> {
    let harmless = value.is_empty() || (keyword == "channel_binding" && matches!(value, "disable" | "prefer"));
    if harmless { Ok(()) } else { Err(ConnectionStringError::Unsupported { keyword, reason }) }
}

fn invalid(keyword: &'static str, expected: &'static str) -> ConnectionStringError {
    ConnectionStringError::InvalidValue { keyword, expected }
}

fn parse_hosts(values: &Values) -> Result<Vec<Host>, ConnectionStringError> {
    let list = |keyword: &str| -> Vec<&str> {
        values.get_filled(keyword).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    // As in libpq, `hostaddr` alone is enough, and decides about the number.
    let count = if addresses.is_empty() { names.len().max(1) } else { addresses.len() };
    if !names.is_empty() && names.len() != count {
        return Err(ConnectionStringError::ListMismatch { keyword: "hostaddr", found: count, hosts: names.len() });
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(ConnectionStringError::ListMismatch { keyword: "port", found: ports.len(), hosts: count });
    }
    (0..count)
        .map(|index| {
            let name = names.get(index).copied().unwrap_or_default();
            let address = addresses.get(index).copied().unwrap_or_default();
            let port = if ports.len() == 1 { ports[0] } else { ports.get(index).copied().unwrap_or_default() };
            Ok(Host { endpoint: parse_endpoint(name, address)?, port: parse_port(port)? })
        })
        .collect()
}

fn parse_endpoint(name: &str, address: &str) -> Result<Endpoint, ConnectionStringError> {
    if !address.is_empty() {
        let parsed = address.parse().map_err(|_| invalid("hostaddr", "an IP address"))?;
        let name = if name.is_empty() { address } else { name };
        return Ok(Endpoint::Name { name: name.to_owned(), address: Some(parsed) });
    }
    if name.is_empty() {
        return Ok(Endpoint::SocketDirectory(PathBuf::from(DEFAULT_SOCKET_DIRECTORY)));
    }
    if name.starts_with('/') {
        return Ok(Endpoint::SocketDirectory(PathBuf::from(name)));
    }
    if name.starts_with('@') {
        return Err(ConnectionStringError::Unsupported { keyword: "host", reason: "abstract sockets are not there" });
    }
    Ok(Endpoint::Name { name: name.to_owned(), address: None })
}

fn parse_port(text: &str) -> Result<u16, ConnectionStringError> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    text.parse().ok().filter(|&port| port != 0).ok_or_else(|| invalid("port", "a number from 1 to 65535"))
}

fn parse_keepalive(values: &Values) -> Result<Keepalive, ConnectionStringError> {
    let default = Keepalive::default();
    Ok(Keepalive {
        enabled: values.number("keepalives")? != Some(0),
        idle: values.seconds("keepalives_idle", default.idle)?,
        interval: values.seconds("keepalives_interval", default.interval)?,
        count: values.number("keepalives_count")?.filter(|&count| count > 0).unwrap_or(default.count),
        user_timeout: Duration::from_millis(values.number("tcp_user_timeout")?.unwrap_or(0).into()),
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
        assert_eq!(options.ssl_mode, SslMode::Prefer);
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
        for bad in ["service=x", "requirepeer=postgres", "channel_binding=require", "require_auth=none"] {
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
        assert_eq!(options.replication_password(&options.hosts[0]).unwrap().as_bytes(), b"hunter2");
    }

    #[test]
    fn ordinary_sql_goes_to_the_same_place() {
        let config = parse("host=/run,b port=1,2 user=u password=p dbname=d connect_timeout=3").to_sql_config();
        assert_eq!(config.get_ports(), [1, 2]);
        assert_eq!((config.get_user(), config.get_dbname()), (Some("u"), Some("d")));
        assert_eq!(config.get_password(), Some(&b"p"[..]));
        assert_eq!(config.get_hosts().len(), 2);
    }

    #[test]
    fn the_process_has_a_user() {
        assert!(os_user_name().is_some_and(|name| !name.is_empty()));
    }
}
