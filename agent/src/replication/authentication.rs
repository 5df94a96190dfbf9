//! The login: whichever method the server asks for, as far as it is safe to answer.
//!
//! A password in clear text goes over TLS or a unix socket only. With SCRAM the server must prove that it knows the
//! password too: "you are in" before that proof is refused. Over TLS a SCRAM login is tied to the server's certificate
//! where both sides can, so that nobody in between can pass it on. `require_auth` and `channel_binding` narrow this
//! further; what they forbid is never answered.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;

use super::error::ReplicationError;
use super::message::Authentication;
use super::options::{AllowedLogins, ChannelBindingMode, ConnectionOptions, LoginMethod, Password};
use super::transport::Protection;

/// One login, from the first request of the server to its consent.
pub(crate) struct Login<'a> {
    user: &'a str,
    allowed: &'a AllowedLogins,
    binding: ChannelBindingMode,
    password: Option<Password>,
    protection: Protection,
    state: State,
}

enum State {
    Start,
    PasswordSent,
    ScramSent(Box<ScramSha256>),
    ServerProven,
}

impl<'a> Login<'a> {
    pub(crate) fn new(options: &'a ConnectionOptions, password: Option<Password>, protection: Protection) -> Self {
        Self {
            user: &options.user,
            allowed: &options.allowed_logins,
            binding: options.channel_binding,
            password,
            protection,
            state: State::Start,
        }
    }

    /// Answers one request by appending to `output`; says whether the server has let us in.
    pub(crate) fn answer(&mut self, request: Authentication, output: &mut BytesMut) -> Result<bool, ReplicationError> {
        let state = std::mem::replace(&mut self.state, State::Start);
        self.state = match (request, state) {
            (Authentication::Ok, State::ScramSent(_)) => {
                return Err(self.refuse("the server did not prove that it knows the password"));
            }
            (Authentication::Ok, State::Start) => {
                self.permit(LoginMethod::None, "without a password", false)?;
                return Ok(true);
            }
            (Authentication::Ok, State::PasswordSent | State::ServerProven) => return Ok(true),
            (Authentication::CleartextPassword, State::Start) => {
                self.permit(LoginMethod::Password, "with a password in clear text", false)?;
                if self.protection == Protection::None {
                    return Err(self.lack("the password in clear text over TCP without TLS"));
                }
                self.send_password(self.password()?.as_bytes(), output)?;
                State::PasswordSent
            }
            (Authentication::Md5Password { salt }, State::Start) => {
                self.permit(LoginMethod::Md5, "with an MD5 hash", false)?;
                let hash = md5_hash(self.user.as_bytes(), self.password()?.as_bytes(), salt);
                self.send_password(hash.as_bytes(), output)?;
                State::PasswordSent
            }
            (Authentication::Sasl { mechanisms }, State::Start) => {
                let (mechanism, binding) = self.choose(&mechanisms)?;
                let bound = mechanism == SCRAM_SHA_256_PLUS;
                self.permit(LoginMethod::Scram, "with SCRAM-SHA-256 and no channel binding", bound)?;
                let scram = ScramSha256::new(self.password()?.as_bytes(), binding);
                frontend::sasl_initial_response(mechanism, scram.message(), output)
                    .map_err(|error| self.refuse(&error.to_string()))?;
                State::ScramSent(Box::new(scram))
            }
            (Authentication::SaslContinue(data), State::ScramSent(mut scram)) => {
                scram.update(&data).map_err(|error| self.refuse(&format!("SCRAM: {error}")))?;
                frontend::sasl_response(scram.message(), output).map_err(|error| self.refuse(&error.to_string()))?;
                State::ScramSent(scram)
            }
            (Authentication::SaslFinal(data), State::ScramSent(mut scram)) => {
                scram.finish(&data).map_err(|error| self.refuse(&format!("SCRAM: {error}")))?;
                State::ServerProven
            }
            (Authentication::Other(code), State::Start) => {
                return Err(self.lack(&format!("login method {code}, which pgark does not speak")));
            }
            _ => return Err(ReplicationError::violation("login messages out of order")),
        };
        Ok(false)
    }

    /// Chooses the mechanism, and what it says about channel binding: that we use it, that we could and the server
    /// cannot (so that both notice when somebody between has struck it off the list), or that we cannot.
    fn choose(&self, mechanisms: &[bytes::Bytes]) -> Result<(&'static str, ChannelBinding), ReplicationError> {
        let offered = |name: &str| mechanisms.iter().any(|offered| offered == name.as_bytes());
        let end_point = match &self.protection {
            _ if self.binding == ChannelBindingMode::Disable => None,
            Protection::Tls { end_point } => end_point.clone(),
            Protection::None | Protection::Local => {
                if offered(SCRAM_SHA_256_PLUS) {
                    return Err(self.refuse("the server offers channel binding over a connection without TLS"));
                }
                None
            }
        };
        match end_point {
            Some(hash) if offered(SCRAM_SHA_256_PLUS) => {
                Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)))
            }
            _ if !offered(SCRAM_SHA_256) => Err(self.lack("SASL without SCRAM-SHA-256")),
            Some(_) => Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
            None => Ok((SCRAM_SHA_256, ChannelBinding::unsupported())),
        }
    }

    /// Asks the connection string.
    fn permit(&self, method: LoginMethod, how: &'static str, bound: bool) -> Result<(), ReplicationError> {
        let forbidden = |keyword| Err(ReplicationError::LoginForbidden { user: self.user.to_owned(), how, keyword });
        if !self.allowed.allow(method) {
            return forbidden("require_auth");
        }
        if self.binding == ChannelBindingMode::Require && !bound {
            return forbidden("channel_binding");
        }
        Ok(())
    }

    fn password(&self) -> Result<&Password, ReplicationError> {
        self.password.as_ref().ok_or_else(|| ReplicationError::PasswordMissing { user: self.user.to_owned() })
    }

    fn send_password(&self, password: &[u8], output: &mut BytesMut) -> Result<(), ReplicationError> {
        frontend::password_message(password, output).map_err(|_| self.refuse("the password contains a zero byte"))
    }

    fn lack(&self, method: &str) -> ReplicationError {
        ReplicationError::LoginMethod { user: self.user.to_owned(), method: method.to_owned() }
    }

    fn refuse(&self, reason: &str) -> ReplicationError {
        ReplicationError::AuthenticationRefused { user: self.user.to_owned(), reason: reason.to_owned() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn options(text: &str) -> ConnectionOptions {
        ConnectionOptions::parse(&format!("user=ada password=s3cret {text}"), &|_| None, None).unwrap()
    }

    fn login(options: &ConnectionOptions, protection: Protection) -> Login<'_> {
        Login::new(options, options.password.clone(), protection)
    }

    fn tls() -> Protection {
        Protection::Tls { end_point: Some(vec![7; 32]) }
    }

    fn sasl(names: &[&'static str]) -> Authentication {
        Authentication::Sasl { mechanisms: names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect() }
    }

    /// What is sent to a server that offers these mechanisms.
    fn answer(text: &str, protection: Protection, names: &[&'static str]) -> Result<String, String> {
        let mut output = BytesMut::new();
        let options = options(text);
        let answer = login(&options, protection).answer(sasl(names), &mut output).map_err(|error| error.to_string());
        answer.map(|_| String::from_utf8_lossy(&output).into_owned())
    }

    #[test]
    fn a_clear_password_stays_off_the_network() {
        let options = options("");
        let mut output = BytesMut::new();
        let mut plain = login(&options, Protection::None);
        let error = plain.answer(Authentication::CleartextPassword, &mut output).unwrap_err();
        assert!(error.to_string().contains("clear text"), "{error}");
        assert!(output.is_empty());
        for protection in [Protection::Local, tls()] {
            output.clear();
            login(&options, protection).answer(Authentication::CleartextPassword, &mut output).unwrap();
            assert_eq!(&output[..], b"p\0\0\0\x0bs3cret\0");
        }
    }

    #[test]
    fn a54_a_login_is_tied_to_the_certificate_where_both_sides_can() {
        const BOTH: [&str; 2] = [SCRAM_SHA_256_PLUS, SCRAM_SHA_256];
        let said = |text: &str, protection, names: &[&'static str]| answer(text, protection, names).unwrap();
        assert!(said("", tls(), &BOTH).contains("SCRAM-SHA-256-PLUS\0\0\0\0"));
        assert!(said("", tls(), &BOTH).contains("p=tls-server-end-point,,n=,r="));
        // We could: if the server can too, somebody in between has struck it off the list, and the server notices.
        assert!(said("", tls(), &[SCRAM_SHA_256]).contains("y,,n=,r="));
        assert!(said("channel_binding=disable", tls(), &BOTH).contains("n,,n=,r="));
        assert!(said("", Protection::Tls { end_point: None }, &BOTH).contains("n,,n=,r="));
        assert!(said("", Protection::None, &[SCRAM_SHA_256]).contains("n,,n=,r="));
        assert!(said("channel_binding=require", tls(), &BOTH).contains("p=tls-server-end-point,,"));
        assert!(answer("", Protection::None, &BOTH).unwrap_err().contains("channel binding over a connection without"));
        for (protection, names) in
            [(tls(), &[SCRAM_SHA_256][..]), (Protection::None, &[SCRAM_SHA_256]), (Protection::Local, &[SCRAM_SHA_256])]
        {
            assert!(
                answer("channel_binding=require", protection, names).unwrap_err().contains("channel_binding forbids")
            );
        }
        assert!(answer("", tls(), &["SCRAM-SHA-1"]).unwrap_err().contains("SASL without"));
    }

    #[test]
    fn a54_what_the_connection_string_forbids_is_not_answered() {
        let requests: [(&str, Authentication); 4] = [
            ("password", Authentication::CleartextPassword),
            ("md5", Authentication::Md5Password { salt: [1; 4] }),
            ("scram-sha-256", sasl(&[SCRAM_SHA_256])),
            ("none", Authentication::Ok),
        ];
        for (name, request) in requests {
            let mut output = BytesMut::new();
            let forbidden = options(&format!("require_auth=!{name}"));
            let error = login(&forbidden, tls()).answer(request.clone(), &mut output).unwrap_err();
            assert!(error.to_string().contains("require_auth forbids"), "{error}");
            assert!(output.is_empty());
            let wanted = options(&format!("require_auth={name}"));
            login(&wanted, tls()).answer(request, &mut output).unwrap();
        }
    }

    #[test]
    fn a54_a_server_that_skips_its_own_proof_is_refused() {
        let mut output = BytesMut::new();
        let options = options("");
        let mut login = login(&options, tls());
        assert!(!login.answer(sasl(&[SCRAM_SHA_256_PLUS, SCRAM_SHA_256]), &mut output).unwrap());
        let error = login.answer(Authentication::Ok, &mut output).unwrap_err();
        assert!(error.to_string().contains("did not prove"), "{error}");
    }

    #[test]
    fn a54_garbage_instead_of_scram_is_an_error() {
        let options = options("");
        for garbage in [&b""[..], b"r=", b"r=x,s=,i=1", b"\xff\xfe", b"r=x,s=AAAA,i=4294967296"] {
            let mut output = BytesMut::new();
            let mut login = login(&options, Protection::None);
            login.answer(sasl(&[SCRAM_SHA_256]), &mut output).unwrap();
            login.answer(Authentication::SaslContinue(Bytes::copy_from_slice(garbage)), &mut output).unwrap_err();
        }
    }

    #[test]
    fn a_missing_password_says_so() {
        let options = options("");
        let mut login = Login::new(&options, None, Protection::Local);
        let error = login.answer(Authentication::Md5Password { salt: [1; 4] }, &mut BytesMut::new()).unwrap_err();
        assert!(matches!(error, ReplicationError::PasswordMissing { .. }));
        assert!(error.hint().unwrap().contains(".pgpass"));
    }
}
