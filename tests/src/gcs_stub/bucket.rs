//! The bucket of the stub: objects with generations, and unfinished multipart uploads.

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::Timestamp;

use super::http::{Answer, Request};

/// All parts of a multipart upload but the last must be this long.
const SMALLEST_PART: usize = 5 * 1024 * 1024;
/// Pages of a list: smaller than Google's 1000, so that tests meet more than one.
const PAGE: usize = 100;

#[derive(Debug)]
pub(super) struct Bucket {
    name: String,
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    last_generation: u64,
}

#[derive(Debug)]
struct Object {
    bytes: Vec<u8>,
    generation: u64,
    modified: Timestamp,
}

#[derive(Debug)]
struct Upload {
    object: String,
    parts: BTreeMap<u32, Vec<u8>>,
}

impl Bucket {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            objects: BTreeMap::new(),
            uploads: BTreeMap::new(),
            last_generation: 1_700_000_000_000_000,
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.objects.keys().cloned().collect()
    }

    pub(super) fn open_uploads(&self) -> usize {
        self.uploads.len()
    }

    pub(super) fn damage(&mut self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let object = self.objects.get_mut(name).unwrap_or_else(|| panic!("the bucket has no object {name}"));
        change(&mut object.bytes);
    }

    pub(super) fn answer(&mut self, request: Request) -> Answer {
        let path = request.path.trim_start_matches('/');
        let (bucket, name) = path.split_once('/').unwrap_or((path, ""));
        if bucket != self.name {
            return Answer::error("404 Not Found", "NoSuchBucket");
        }
        let name = name.to_owned();
        let upload = request.query.get("uploadId").cloned();
        match (request.method.as_str(), upload) {
            ("GET", None) if name.is_empty() => self.list(&request),
            ("GET" | "HEAD", None) => self.get(&name, &request),
            ("PUT", None) if request.headers.contains_key("x-goog-copy-source") => self.copy(&name, &request),
            ("PUT", None) => self.put(name, request),
            ("DELETE", None) => self.delete(&name),
            ("POST", None) if request.query.contains_key("uploads") => self.begin_upload(name),
            ("PUT", Some(upload)) => self.put_part(&upload, request),
            ("POST", Some(upload)) => self.complete_upload(&upload, &request),
            ("DELETE", Some(upload)) => match self.uploads.remove(&upload) {
                Some(_) => Answer::new("204 No Content"),
                None => Answer::error("404 Not Found", "NoSuchUpload"),
            },
            _ => Answer::error("501 Not Implemented", "NotImplemented"),
        }
    }

    fn put(&mut self, name: String, request: Request) -> Answer {
        if let Err(refused) = self.check_generation(&name, &request) {
            return refused;
        }
        let generation = self.store(name, request.body);
        Answer::new("200 OK").header("ETag", e_tag(generation)).header("x-goog-generation", generation)
    }

    fn copy(&mut self, name: &str, request: &Request) -> Answer {
        if let Err(refused) = self.check_generation(name, request) {
            return refused;
        }
        let source = request.headers.get("x-goog-copy-source").map_or("", String::as_str).replace("%2F", "/");
        let source = source.strip_prefix(&format!("{}/", self.name)).and_then(|source| self.objects.get(source));
        let Some(bytes) = source.map(|object| object.bytes.clone()) else {
            return Answer::error("404 Not Found", "NoSuchKey");
        };
        let generation = self.store(name.to_owned(), bytes);
        Answer::new("200 OK").header("x-goog-generation", generation)
    }

    /// Generation 0 stands for "does not exist".
    fn check_generation(&self, name: &str, request: &Request) -> Result<(), Answer> {
        let Some(wanted) = request.headers.get("x-goog-if-generation-match") else { return Ok(()) };
        let found = self.objects.get(name).map_or(0, |object| object.generation);
        if *wanted == found.to_string() {
            Ok(())
        } else {
            Err(Answer::error("412 Precondition Failed", "PreconditionFailed"))
        }
    }

    fn get(&self, name: &str, request: &Request) -> Answer {
        let Some(object) = self.objects.get(name) else { return Answer::error("404 Not Found", "NoSuchKey") };
        let e_tag = e_tag(object.generation);
        if request.headers.get("if-match").is_some_and(|wanted| *wanted != e_tag) {
            return Answer::error("412 Precondition Failed", "PreconditionFailed");
        }
        if request.query.get("generation").is_some_and(|wanted| *wanted != object.generation.to_string()) {
            return Answer::error("404 Not Found", "NoSuchKey");
        }
        let mut answer = match request.headers.get("range").map(|range| parse_range(range, object.bytes.len())) {
            None => Answer::new("200 OK").header("Accept-Ranges", "bytes"),
            Some(None) => return Answer::error("416 Requested Range Not Satisfiable", "InvalidRange"),
            Some(Some(range)) => {
                let described = format!("bytes {}-{}/{}", range.start, range.end - 1, object.bytes.len());
                let mut answer = Answer::new("206 Partial Content").header("Content-Range", described);
                answer.body = object.bytes[range].to_vec();
                answer
            }
        };
        if answer.status == "200 OK" {
            answer.body.clone_from(&object.bytes);
        }
        answer
            .header("ETag", e_tag)
            .header("x-goog-generation", object.generation)
            .header("Last-Modified", object.modified.strftime("%a, %d %b %Y %H:%M:%S GMT"))
            .header("Content-Type", "application/octet-stream")
    }

    fn delete(&mut self, name: &str) -> Answer {
        match self.objects.remove(name) {
            Some(_) => Answer::new("204 No Content"),
            None => Answer::error("404 Not Found", "NoSuchKey"),
        }
    }

    fn list(&self, request: &Request) -> Answer {
        let parameter = |name: &str| request.query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (parameter("prefix"), parameter("delimiter"));
        let after = parameter("continuation-token").max(parameter("start-after"));
        let page = parameter("max-keys").parse().unwrap_or(PAGE).min(PAGE);
        let mut entries: Vec<(&str, String)> = Vec::new();
        for (name, object) in &self.objects {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            let folder = (!delimiter.is_empty()).then(|| rest.find(delimiter)).flatten();
            let (entry, text) = match folder {
                Some(end) => {
                    let folder = &name[..prefix.len() + end + delimiter.len()];
                    (folder, format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(folder)))
                }
                None => {
                    let (size, tag, modified) = (object.bytes.len(), e_tag(object.generation), object.modified);
                    let key = format!("<Key>{}</Key><Size>{size}</Size>", escape(name));
                    let rest = format!("<LastModified>{modified}</LastModified><ETag>{}</ETag>", escape(&tag));
                    (name.as_str(), format!("<Contents>{key}{rest}</Contents>"))
                }
            };
            let seen = entries.last().is_some_and(|(last, _)| *last == entry);
            if entry > after && !seen {
                entries.push((entry, text));
            }
        }
        let more = entries.len() > page;
        entries.truncate(page);
        let token = entries.last().filter(|_| more).map_or(String::new(), |(last, _)| {
            format!("<NextContinuationToken>{}</NextContinuationToken>", escape(last))
        });
        let texts: String = entries.into_iter().map(|(_, text)| text).collect();
        let document = format!("<IsTruncated>{more}</IsTruncated>{token}{texts}");
        Answer::new("200 OK").xml(&format!("<ListBucketResult>{document}</ListBucketResult>"))
    }

    fn begin_upload(&mut self, object: String) -> Answer {
        self.last_generation += 1;
        let id = format!("upload-{}", self.last_generation);
        let ids = format!("<Bucket>{}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>", self.name, escape(&object));
        self.uploads.insert(id, Upload { object, parts: BTreeMap::new() });
        Answer::new("200 OK").xml(&format!("<InitiateMultipartUploadResult>{ids}</InitiateMultipartUploadResult>"))
    }

    fn put_part(&mut self, upload: &str, request: Request) -> Answer {
        let Some(upload) = self.uploads.get_mut(upload) else {
            return Answer::error("404 Not Found", "NoSuchUpload");
        };
        let Some(number) = request.query.get("partNumber").and_then(|number| number.parse().ok()) else {
            return Answer::error("400 Bad Request", "InvalidArgument");
        };
        let e_tag = format!("\"part-{number}-{}\"", request.body.len());
        upload.parts.insert(number, request.body);
        Answer::new("200 OK").header("ETag", e_tag)
    }

    fn complete_upload(&mut self, id: &str, request: &Request) -> Answer {
        let Some(upload) = self.uploads.get(id) else { return Answer::error("404 Not Found", "NoSuchUpload") };
        let listed = String::from_utf8_lossy(&request.body);
        let listed: Vec<u32> = listed
            .split("<PartNumber>")
            .skip(1)
            .filter_map(|text| text.split_once('<').and_then(|(number, _)| number.parse().ok()))
            .collect();
        if listed.is_empty() || !listed.iter().all(|number| upload.parts.contains_key(number)) {
            return Answer::error("400 Bad Request", "InvalidPart");
        }
        if listed[..listed.len() - 1].iter().any(|number| upload.parts[number].len() < SMALLEST_PART) {
            return Answer::error("400 Bad Request", "EntityTooSmall");
        }
        let object = upload.object.clone();
        if let Err(refused) = self.check_generation(&object, request) {
            return refused;
        }
        let bytes = listed.iter().flat_map(|number| self.uploads[id].parts[number].iter().copied()).collect();
        self.uploads.remove(id);
        let generation = self.store(object.clone(), bytes);
        let tag = escape(&e_tag(generation));
        let result = format!("<Bucket>{}</Bucket><Key>{}</Key><ETag>{tag}</ETag>", self.name, escape(&object));
        Answer::new("200 OK")
            .header("x-goog-generation", generation)
            .xml(&format!("<CompleteMultipartUploadResult>{result}</CompleteMultipartUploadResult>"))
    }

    fn store(&mut self, name: String, bytes: Vec<u8>) -> u64 {
        self.last_generation += 1;
        let generation = self.last_generation;
        self.objects.insert(name, Object { bytes, generation, modified: Timestamp::now() });
        generation
    }
}

fn e_tag(generation: u64) -> String {
    format!("\"{generation:x}\"")
}

/// `bytes=A-B`, `bytes=A-` or `bytes=-N`; nothing where it lies outside.
fn parse_range(text: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = if first.is_empty() {
        length.saturating_sub(last.parse().ok()?)..length
    } else {
        let end = if last.is_empty() { length } else { last.parse::<usize>().ok()?.saturating_add(1).min(length) };
        first.parse().ok()?..end
    };
    (range.start < range.end).then_some(range)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
