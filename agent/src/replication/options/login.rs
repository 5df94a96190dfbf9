//! Which ways to log in the connection string allows: `channel_binding` and `require_auth`.

use super::values::{Values, invalid};
use crate::replication::connection_string::ConnectionStringError;

/// Whether a SCRAM login is tied to the TLS connection, so that nobody between can pass it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBindingMode {
    /// Never.
    Disable,
    /// Where both sides can.
    Prefer,
    /// Always; a login without it is refused.
    Require,
}

impl ChannelBindingMode {
    pub(super) fn parse(values: &Values) -> Result<Self, ConnectionStringError> {
        let modes = [("disable", Self::Disable), ("prefer", Self::Prefer), ("require", Self::Require)];
        values.choice("channel_binding", &modes, Self::Prefer, "one of disable, prefer and require")
    }
}

/// A way to log in, with libpq's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginMethod {
    /// The password in clear text.
    Password,
    /// An MD5 hash.
    Md5,
    /// SCRAM-SHA-256, with or without channel binding.
    Scram,
    /// The server asks for nothing.
    None,
    /// GSSAPI, which pgark does not speak.
    Gss,
    /// SSPI, which pgark does not speak.
    Sspi,
    /// OAuth, which pgark does not speak.
    Oauth,
}

const METHODS: [(&str, LoginMethod); 7] = [
    ("password", LoginMethod::Password),
    ("md5", LoginMethod::Md5),
    ("scram-sha-256", LoginMethod::Scram),
    ("none", LoginMethod::None),
    ("gss", LoginMethod::Gss),
    ("sspi", LoginMethod::Sspi),
    ("oauth", LoginMethod::Oauth),
];

/// The ways to log in that are allowed: all, or what `require_auth` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedLogins(Option<Vec<LoginMethod>>);

impl AllowedLogins {
    /// Tells whether the server may choose this way.
    pub(crate) fn allow(&self, method: LoginMethod) -> bool {
        self.0.as_ref().is_none_or(|allowed| allowed.contains(&method))
    }

    /// A list of names that are allowed, or, each with `!`, of names that are not.
    pub(super) fn parse(values: &Values) -> Result<Self, ConnectionStringError> {
        let Some(text) = values.get_filled("require_auth") else {
            return Ok(Self(None));
        };
        let mut named = Vec::new();
        let negated = text.starts_with('!');
        for name in text.split(',') {
            if name.starts_with('!') != negated {
                return Err(invalid("require_auth", "a list in which all names, or none, begin with \"!\""));
            }
            let name = name.trim_start_matches('!');
            let method = METHODS.iter().find(|(known, _)| *known == name).map(|(_, method)| *method);
            named.push(method.ok_or_else(|| {
                invalid("require_auth", "a list of password, md5, scram-sha-256, none, gss, sspi and oauth")
            })?);
        }
        let allowed = METHODS.iter().map(|(_, method)| *method).filter(|method| named.contains(method) != negated);
        Ok(Self(Some(allowed.collect())))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::replication::ConnectionOptions;

    fn parse(text: &str) -> Result<AllowedLogins, ConnectionStringError> {
        ConnectionOptions::parse(text, &|_| None, Some("u")).map(|options| options.allowed_logins)
    }

    #[test]
    fn methods_are_listed_or_excluded() {
        assert!(parse("").unwrap().allow(LoginMethod::None));
        let listed = parse("require_auth=scram-sha-256,md5").unwrap();
        assert!(listed.allow(LoginMethod::Scram) && listed.allow(LoginMethod::Md5));
        assert!(!listed.allow(LoginMethod::Password) && !listed.allow(LoginMethod::None));
        let excluded = parse("require_auth=!password,!none").unwrap();
        assert!(excluded.allow(LoginMethod::Scram) && excluded.allow(LoginMethod::Md5));
        assert!(!excluded.allow(LoginMethod::Password) && !excluded.allow(LoginMethod::None));
        for bad in ["md5,!none", "!md5,none", "telepathy", "md5,"] {
            assert!(parse(&format!("require_auth={bad}")).is_err(), "{bad}");
        }
    }
}
