//! The login: whichever method the server asks for, as far as it is safe to answer.
//!
//! A password in clear text goes over a unix socket only. With SCRAM the server must prove that it knows the password
//! too: "you are in" before that proof is refused.

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;

use super::error::ReplicationError;
use super::message::Authentication;
use super::options::Password;

/// One login, from the first request of the server to its consent.
pub(crate) struct Login<'a> {
    user: &'a str,
    password: Option<Password>,
    readable_by_others: bool,
    state: State,
}

enum State {
    Start,
    PasswordSent,
    ScramSent(Box<ScramSha256>),
    ServerProven,
}

impl<'a> Login<'a> {
    pub(crate) fn new(user: &'a str, password: Option<Password>, readable_by_others: bool) -> Self {
        Self { user, password, readable_by_others, state: State::Start }
    }

    /// Answers one request by appending to `output`; says whether the server has let us in.
    pub(crate) fn answer(&mut self, request: Authentication, output: &mut BytesMut) -> Result<bool, ReplicationError> {
        let state = std::mem::replace(&mut self.state, State::Start);
        self.state = match (request, state) {
            (Authentication::Ok, State::ScramSent(_)) => {
                return Err(self.refuse("the server did not prove that it knows the password"));
            }
            (Authentication::Ok, _) => return Ok(true),
            (Authentication::CleartextPassword, State::Start) => {
                if self.readable_by_others {
                    return Err(self.lack("the password in clear text over TCP without TLS"));
                }
                self.send_password(self.password()?.as_bytes(), output)?;
                State::PasswordSent
            }
            (Authentication::Md5Password { salt }, State::Start) => {
                let hash = md5_hash(self.user.as_bytes(), self.password()?.as_bytes(), salt);
                self.send_password(hash.as_bytes(), output)?;
                State::PasswordSent
            }
            (Authentication::Sasl { mechanisms }, State::Start) => {
                if !mechanisms.iter().any(|name| name == SCRAM_SHA_256.as_bytes()) {
                    return Err(self.lack("SASL without SCRAM-SHA-256"));
                }
                let scram = ScramSha256::new(self.password()?.as_bytes(), ChannelBinding::unsupported());
                frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), output)
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

    fn login(readable_by_others: bool) -> Login<'static> {
        Login::new("ada", Some(Password::from("s3cret")), readable_by_others)
    }

    #[test]
    fn a_clear_password_stays_off_the_network() {
        let mut output = BytesMut::new();
        let error = login(true).answer(Authentication::CleartextPassword, &mut output).unwrap_err();
        assert!(error.to_string().contains("clear text"), "{error}");
        assert!(output.is_empty());
        login(false).answer(Authentication::CleartextPassword, &mut output).unwrap();
        assert_eq!(&output[..], b"p\0\0\0\x0bs3cret\0");
    }

    #[test]
    fn a54_a_server_that_skips_its_own_proof_is_refused() {
        let mut output = BytesMut::new();
        let mut login = login(true);
        let mechanisms = vec![Bytes::from_static(b"SCRAM-SHA-256-PLUS"), Bytes::from_static(b"SCRAM-SHA-256")];
        assert!(!login.answer(Authentication::Sasl { mechanisms }, &mut output).unwrap());
        let error = login.answer(Authentication::Ok, &mut output).unwrap_err();
        assert!(error.to_string().contains("did not prove"), "{error}");
    }

    #[test]
    fn a54_garbage_instead_of_scram_is_an_error() {
        for garbage in [&b""[..], b"r=", b"r=x,s=,i=1", b"\xff\xfe", b"r=x,s=AAAA,i=4294967296"] {
            let mut output = BytesMut::new();
            let mut login = login(true);
            let mechanisms = vec![Bytes::from_static(b"SCRAM-SHA-256")];
            login.answer(Authentication::Sasl { mechanisms }, &mut output).unwrap();
            login.answer(Authentication::SaslContinue(Bytes::copy_from_slice(garbage)), &mut output).unwrap_err();
        }
    }

    #[test]
    fn a_missing_password_says_so() {
        let mut login = Login::new("ada", None, false);
        let error = login.answer(Authentication::Md5Password { salt: [1; 4] }, &mut BytesMut::new()).unwrap_err();
        assert!(matches!(error, ReplicationError::PasswordMissing { .. }));
        assert!(error.hint().unwrap().contains(".pgpass"));
    }
}
