//! Framing and reading of the server's messages.
//!
//! ```text
//! tag u8 | length u32, with itself but without the tag | body
//! ```
//!
//! The length is checked before a byte of the body is waited for, so that a hostile or confused peer cannot make this
//! side allocate. Bodies are slices of the read buffer: the data of a backup is not copied here.

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend as tags;

use super::error::{ReplicationError, ServerError};
use super::field_reader::{FieldReader, Truncated};

const COPY_BOTH_RESPONSE_TAG: u8 = b'W';
const NEGOTIATE_PROTOCOL_VERSION_TAG: u8 = b'v';

const HEADER_LEN: usize = 5;

/// The largest ordinary message. The server's own pieces are at most 128 KiB; a history file is a few KiB.
const MAX_MESSAGE_LEN: usize = 64 << 20;

/// The largest error or notice. A statement is quoted in some, and none of ours is longer than this.
const MAX_ERROR_LEN: usize = 1 << 20;

/// The largest message before the login is done: whoever answers is not trusted yet.
const MAX_LOGIN_LEN: usize = 64 << 10;

/// How many bytes one text of a server error keeps.
const MAX_ERROR_TEXT: usize = 8 << 10;

/// A message that a command can receive.
#[derive(Debug)]
pub(crate) enum BackendMessage {
    Authentication(Authentication),
    BackendKeyData { process_id: i32 },
    CommandComplete(Bytes),
    CopyBothResponse,
    CopyData(Bytes),
    CopyDone,
    CopyInResponse,
    CopyOutResponse,
    DataRow(Vec<Option<Bytes>>),
    EmptyQueryResponse,
    ErrorResponse(ServerError),
    NegotiateProtocolVersion,
    NoticeResponse(ServerError),
    NotificationResponse,
    ParameterStatus { name: Bytes, value: Bytes },
    ReadyForQuery,
    RowDescription,
}

/// What the server asks for, or answers, during the login.
#[derive(Debug, Clone)]
pub(crate) enum Authentication {
    Ok,
    CleartextPassword,
    Md5Password { salt: [u8; 4] },
    Sasl { mechanisms: Vec<Bytes> },
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    Other(i32),
}

/// Whether the login is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Login,
    Session,
}

/// Takes the next whole message from the buffer, or says how many bytes are still missing.
pub(crate) fn take_message(buffer: &mut BytesMut, phase: Phase) -> Result<Taken, ReplicationError> {
    let Some((&[tag, length @ ..], _)) = buffer.split_first_chunk::<HEADER_LEN>() else {
        return Ok(Taken::Missing(HEADER_LEN - buffer.len()));
    };
    let length = u32::from_be_bytes(length) as usize;
    if phase == Phase::Login && tag == tags::ERROR_RESPONSE_TAG && !(8..=MAX_LOGIN_LEN).contains(&length) {
        return take_ancient_error(buffer);
    }
    let limit = match (phase, tag) {
        (Phase::Login, _) => MAX_LOGIN_LEN,
        (Phase::Session, tags::ERROR_RESPONSE_TAG | tags::NOTICE_RESPONSE_TAG) => MAX_ERROR_LEN,
        (Phase::Session, _) => MAX_MESSAGE_LEN,
    };
    if !(4..=limit).contains(&length) {
        return Err(ReplicationError::violation(format!(
            "message {} has length {length}, expected 4 to {limit}",
            display_tag(tag)
        )));
    }
    let total = length + 1;
    if buffer.len() < total {
        return Ok(Taken::Missing(total - buffer.len()));
    }
    let mut body = buffer.split_to(total);
    body.advance(HEADER_LEN);
    parse(tag, body.freeze()).map(Taken::Message)
}

/// What was found at the front of the buffer.
#[derive(Debug)]
pub(crate) enum Taken {
    Message(BackendMessage),
    /// At least so many bytes must follow.
    Missing(usize),
}

fn parse(tag: u8, body: Bytes) -> Result<BackendMessage, ReplicationError> {
    // The one kind that arrives by the hundred thousand.
    if tag == tags::COPY_DATA_TAG {
        return Ok(BackendMessage::CopyData(body));
    }
    let mut fields = FieldReader::new(body);
    parse_fields(tag, &mut fields)
        .map_err(|Truncated| ReplicationError::violation(format!("message {} is too short", display_tag(tag))))?
        .ok_or_else(|| ReplicationError::violation(format!("unknown message {}", display_tag(tag))))
}

fn parse_fields(tag: u8, fields: &mut FieldReader) -> Result<Option<BackendMessage>, Truncated> {
    Ok(Some(match tag {
        tags::AUTHENTICATION_TAG => BackendMessage::Authentication(parse_authentication(fields)?),
        tags::BACKEND_KEY_DATA_TAG => BackendMessage::BackendKeyData { process_id: fields.i32()? },
        tags::COMMAND_COMPLETE_TAG => BackendMessage::CommandComplete(fields.text()?),
        COPY_BOTH_RESPONSE_TAG => BackendMessage::CopyBothResponse,
        tags::COPY_DONE_TAG => BackendMessage::CopyDone,
        tags::COPY_IN_RESPONSE_TAG => BackendMessage::CopyInResponse,
        tags::COPY_OUT_RESPONSE_TAG => BackendMessage::CopyOutResponse,
        tags::DATA_ROW_TAG => BackendMessage::DataRow(parse_row(fields)?),
        tags::EMPTY_QUERY_RESPONSE_TAG => BackendMessage::EmptyQueryResponse,
        tags::ERROR_RESPONSE_TAG => BackendMessage::ErrorResponse(parse_error(fields)?),
        NEGOTIATE_PROTOCOL_VERSION_TAG => BackendMessage::NegotiateProtocolVersion,
        tags::NOTICE_RESPONSE_TAG => BackendMessage::NoticeResponse(parse_error(fields)?),
        tags::NOTIFICATION_RESPONSE_TAG => BackendMessage::NotificationResponse,
        tags::PARAMETER_STATUS_TAG => BackendMessage::ParameterStatus { name: fields.text()?, value: fields.text()? },
        tags::READY_FOR_QUERY_TAG => {
            fields.u8()?;
            BackendMessage::ReadyForQuery
        }
        tags::ROW_DESCRIPTION_TAG => BackendMessage::RowDescription,
        _ => return Ok(None),
    }))
}

fn parse_authentication(fields: &mut FieldReader) -> Result<Authentication, Truncated> {
    Ok(match fields.i32()? {
        0 => Authentication::Ok,
        3 => Authentication::CleartextPassword,
        5 => {
            let salt = fields.bytes(4)?;
            Authentication::Md5Password { salt: salt.as_ref().try_into().map_err(|_| Truncated)? }
        }
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                let name = fields.text()?;
                if name.is_empty() {
                    break Authentication::Sasl { mechanisms };
                }
                mechanisms.push(name);
            }
        }
        11 => Authentication::SaslContinue(take_rest(fields)),
        12 => Authentication::SaslFinal(take_rest(fields)),
        other => Authentication::Other(other),
    })
}

fn take_rest(fields: &mut FieldReader) -> Bytes {
    std::mem::replace(fields, FieldReader::new(Bytes::new())).remaining()
}

fn parse_row(fields: &mut FieldReader) -> Result<Vec<Option<Bytes>>, Truncated> {
    let columns = fields.u16()?;
    let mut row = Vec::with_capacity(usize::from(columns).min(16));
    for _ in 0..columns {
        // A negative length is NULL.
        row.push(match usize::try_from(fields.i32()?) {
            Ok(len) => Some(fields.bytes(len)?),
            Err(_) => None,
        });
    }
    Ok(row)
}

fn parse_error(fields: &mut FieldReader) -> Result<ServerError, Truncated> {
    let mut error = ServerError::default();
    let mut translated_severity = String::new();
    while !fields.is_empty() {
        let kind = fields.u8()?;
        if kind == 0 {
            break;
        }
        let text = readable(&fields.text()?);
        match kind {
            b'S' => translated_severity = text,
            b'V' => error.severity = text,
            b'C' => error.sqlstate = text,
            b'M' => error.message = text,
            b'D' => error.detail = text,
            b'H' => error.hint = text,
            b'R' => error.routine = text,
            _ => {}
        }
    }
    if error.severity.is_empty() {
        error.severity = translated_severity;
    }
    Ok(error)
}

/// Before it has a session, the server reports some failures (it could not fork) in the form of protocol 2: a bare
/// text after the tag. Read as a length, its first four letters are a huge number.
fn take_ancient_error(buffer: &mut BytesMut) -> Result<Taken, ReplicationError> {
    let Some(end) = buffer.iter().position(|&byte| byte == 0) else {
        return if buffer.len() > MAX_LOGIN_LEN {
            Err(ReplicationError::violation("an error without an end"))
        } else {
            Ok(Taken::Missing(1))
        };
    };
    let text = buffer.split_to(end + 1);
    Ok(Taken::Message(BackendMessage::ErrorResponse(ServerError {
        severity: "FATAL".to_owned(),
        // "Cannot connect now": the class of what the server could not even give a code.
        sqlstate: "57P03".to_owned(),
        message: readable(&text[1..end]).trim_end().to_owned(),
        ..ServerError::default()
    })))
}

/// The server's texts are in its own encoding; only for reading, so what is not UTF-8 is replaced.
fn readable(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(MAX_ERROR_TEXT)]).into_owned()
}

fn display_tag(tag: u8) -> String {
    format!("'{}'", tag.escape_ascii())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(tag: u8, body: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::new();
        buffer.extend_from_slice(&[tag]);
        buffer.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        buffer.extend_from_slice(body);
        buffer
    }

    fn message(mut buffer: BytesMut) -> BackendMessage {
        match take_message(&mut buffer, Phase::Session).unwrap() {
            Taken::Message(message) => message,
            Taken::Missing(count) => panic!("{count} bytes missing"),
        }
    }

    #[test]
    fn a49_a_huge_length_is_refused_before_anything_is_read() {
        for tag in [b'd', b'D', b'T', b'E', b'Z', b'W'] {
            for length in [u32::MAX, 0x7fff_ffff, (64 << 20) + 1, 3, 0] {
                let mut buffer = BytesMut::from(&[tag][..]);
                buffer.extend_from_slice(&length.to_be_bytes());
                let error = take_message(&mut buffer, Phase::Session).unwrap_err();
                assert!(error.to_string().contains(&length.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn a49_before_the_login_only_short_messages_pass() {
        let mut buffer = BytesMut::from(&b"R"[..]);
        buffer.extend_from_slice(&(1u32 << 20).to_be_bytes());
        take_message(&mut buffer, Phase::Login).unwrap_err();
    }

    #[test]
    fn a50_copy_both_and_protocol_negotiation_are_known() {
        assert!(matches!(message(frame(b'W', &[0, 0, 0])), BackendMessage::CopyBothResponse));
        let negotiation = [0, 3, 0, 0, 0, 0, 0, 0];
        assert!(matches!(message(frame(b'v', &negotiation)), BackendMessage::NegotiateProtocolVersion));
    }

    #[test]
    fn a50_an_unknown_tag_is_named() {
        let error = take_message(&mut frame(b'?', b""), Phase::Session).unwrap_err();
        assert_eq!(error.to_string(), "protocol violation: unknown message '?'");
    }

    #[test]
    fn an_error_keeps_every_field() {
        let body = b"SFEHLER\0VERROR\0C58P01\0Mno file\0Dd\0Hh\0Fxlog.c\0Rread\0\0";
        let BackendMessage::ErrorResponse(error) = message(frame(b'E', body)) else { panic!("not an error") };
        assert_eq!((error.severity.as_str(), error.sqlstate.as_str()), ("ERROR", "58P01"));
        assert_eq!(error.to_string(), "ERROR 58P01: no file (d) (server's hint: h)");
    }

    #[test]
    fn an_error_in_the_oldest_form_is_read() {
        let mut buffer = BytesMut::from(&b"Ecould not fork new process\n\0"[..]);
        let Taken::Message(BackendMessage::ErrorResponse(error)) = take_message(&mut buffer, Phase::Login).unwrap()
        else {
            panic!("not an error")
        };
        assert_eq!(error.message, "could not fork new process");
        assert!(buffer.is_empty());
    }

    #[test]
    fn rows_keep_nulls_and_raw_bytes() {
        let BackendMessage::DataRow(row) = message(frame(b'D', &[0, 2, 255, 255, 255, 255, 0, 0, 0, 1, 0xff])) else {
            panic!("not a row")
        };
        assert_eq!(row, [None, Some(Bytes::from_static(&[0xff]))]);
        let mut short = frame(b'D', &[0, 2, 0, 0, 0, 9, 1]);
        take_message(&mut short, Phase::Session).unwrap_err();
    }

    #[test]
    fn a_message_in_pieces_says_how_much_is_missing() {
        let whole = frame(b'd', b"abcdef");
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            let expected = if cut < 5 { 5 - cut } else { whole.len() - cut };
            assert!(matches!(take_message(&mut part, Phase::Session).unwrap(), Taken::Missing(n) if n == expected));
            assert_eq!(part.len(), cut);
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), login: bool) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let phase = if login { Phase::Login } else { Phase::Session };
            while let Ok(Taken::Message(_)) = take_message(&mut buffer, phase) {}
        }

        #[test]
        fn random_bodies_of_known_messages_never_panic(
            tag in proptest::sample::select(b"RKCWcGHDIEvNASZTd".to_vec()),
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _unused = parse(tag, Bytes::from(body));
        }
    }
}
