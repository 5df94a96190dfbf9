//! As much of HTTP/1.1 as `object_store`'s client uses: bodies with a length, connections that stay open.

use std::collections::BTreeMap;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// Decoded.
    pub(super) path: String,
    /// Decoded; a name without a value has an empty one.
    pub(super) query: BTreeMap<String, String>,
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn new(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// An error in the form of the XML API.
    pub(super) fn error(status: &'static str, code: &str) -> Self {
        Self::new(status).xml(&format!("<Error><Code>{code}</Code><Message>{status}</Message></Error>"))
    }

    pub(super) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(super) fn xml(mut self, document: &str) -> Self {
        self.body = format!("<?xml version='1.0' encoding='UTF-8'?>{document}").into_bytes();
        self.header("Content-Type", "application/xml")
    }

    /// An answer to HEAD has the length of the body, without the body.
    pub(super) fn to_bytes(&self, head: bool) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {}\r\nContent-Length: {}\r\n", self.status, self.body.len());
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        if !head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// Reads one request; nothing at the end of the connection, or when it is cut or is no such request.
pub(super) async fn read_request(client: &mut (impl AsyncBufRead + Unpin)) -> Option<Request> {
    let line = read_line(client).await?;
    let mut words = line.split(' ');
    let method = words.next()?.to_owned();
    let target = words.next()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
    });
    let (path, query) = (decode(path), query.collect());
    let mut headers = BTreeMap::new();
    loop {
        let line = read_line(client).await?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(Ok(0), |length| length.parse()).ok()?;
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.ok()?;
    Some(Request { method, path, query, headers, body })
}

async fn read_line(client: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut line = String::new();
    let length = client.read_line(&mut line).await.ok()?;
    (length > 0).then(|| line.trim_end().to_owned())
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
