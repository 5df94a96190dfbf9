//! `[[repository]]`: where backups and WAL are kept, and for whom they are encrypted.
//!
//! Every scheme has its own keys; one that belongs to another scheme is a fault, since it would be silently without
//! effect. File contents (secrets, recipients, identities) are read on demand.

use std::path::{Path, PathBuf};

use super::credentials::{CredentialKeys, CredentialSource};
use super::fault::{ConfigurationError, Fault};
use super::parse_name;
use super::secret::{Secret, SecretSource, read_file};
use super::section::{Document, Section, Table, variable_name};

/// One repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryConfiguration {
    /// How `--repository`, variables and messages call it.
    pub name: String,
    /// As written, `s3://bucket/prefix`; it holds no secret.
    pub url: String,
    pub scheme: Scheme,
    /// Whether nothing counts as stored without it. Without one that is not, all goes on, and it is filled up later.
    pub required: bool,
    /// S3 only.
    pub region: Option<String>,
    /// Another address than the cloud's own.
    pub endpoint: Option<String>,
    /// S3 only: whether the bucket stands in the path of a request instead of in its host name. `None` decides by
    /// `endpoint`: in the path where there is one.
    pub path_style: Option<bool>,
    pub allow_http: bool,
    /// Certificates of the authority that signed the endpoint's, in PEM.
    pub ca_file: Option<PathBuf>,
    pub credentials: CredentialSource,
    /// Those of the file; [`RepositoryConfiguration::recipients`] gives them all.
    recipients: Vec<String>,
    recipients_file: Option<PathBuf>,
    identity: Option<SecretSource>,
}

/// The kind of store, by the beginning of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `file://`: a directory of this host.
    File,
    /// `s3://`
    S3,
    /// `gs://`: Google Cloud Storage.
    Gcs,
    /// `az://`: Azure Blob Storage.
    Azure,
}

impl RepositoryConfiguration {
    /// The age public keys for which everything is encrypted; none means that nothing is. Reads `recipients_file`.
    pub fn recipients(&self) -> Result<Vec<String>, ConfigurationError> {
        let Some(path) = &self.recipients_file else {
            return Ok(self.recipients.clone());
        };
        let recipients = lines_of_keys(path, &read_file(path)?, check_recipient)?;
        if recipients.is_empty() {
            // Nobody names such a file in order to store without encryption.
            return Err(ConfigurationError::EmptyFile { path: path.clone(), what: "age recipients" });
        }
        Ok(recipients)
    }

    /// Whether an identity is configured, without reading it.
    pub fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// The age private keys that open what is stored. Reads `identity_file`; empty where none is configured.
    pub fn identities(&self) -> Result<Vec<Secret>, ConfigurationError> {
        let Some(source) = &self.identity else {
            return Ok(Vec::new());
        };
        let content = source.read("age identity")?;
        let place = match source {
            SecretSource::File(path) => path.clone(),
            SecretSource::Value(_) => PathBuf::from(format!("PGARK_REPOSITORY_{}_IDENTITY", variable_name(&self.name))),
        };
        let keys = lines_of_keys(&place, content.expose(), check_identity)?;
        if keys.is_empty() {
            return Err(ConfigurationError::EmptyFile { path: place, what: "age identity" });
        }
        Ok(keys.into_iter().map(Secret::new).collect())
    }
}

/// One key a line; empty lines and comments are skipped, as age's own tools do.
fn lines_of_keys(
    place: &Path,
    content: &str,
    check: fn(&str) -> Result<(), &'static str>,
) -> Result<Vec<String>, ConfigurationError> {
    let mut keys = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        check(line).map_err(|problem| ConfigurationError::Key {
            place: format!("{}:{}", place.display(), index + 1),
            problem,
        })?;
        keys.push(line.to_owned());
    }
    Ok(keys)
}

/// Looks at the shape only; the repository checks the key itself.
fn check_recipient(text: &str) -> Result<(), &'static str> {
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        Err("this is a private key, and it belongs to the host that restores; a recipient is the public key, which \
             begins with `age1` (age-keygen -y prints it)")
    } else if !text.starts_with("age1") || !text.chars().all(|character| character.is_ascii_alphanumeric()) {
        Err("expected an age public key, which begins with `age1`")
    } else {
        Ok(())
    }
}

fn check_identity(text: &str) -> Result<(), &'static str> {
    if text.starts_with("AGE-SECRET-KEY-1") {
        Ok(())
    } else if text.starts_with("age1") {
        Err("this is a public key; an identity is the private key, which begins with `AGE-SECRET-KEY-1`")
    } else if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE") {
        Err("the identity is itself encrypted with a passphrase; decrypt it first (age -d)")
    } else {
        Err("expected an age private key, which begins with `AGE-SECRET-KEY-1`, as age-keygen writes it")
    }
}

/// Reads all `[[repository]]` tables.
pub(super) fn read_all(
    document: &Document<'_>,
    tables: &[Table<'_>],
    known: &mut Vec<String>,
    faults: &mut Vec<Fault>,
) -> Vec<RepositoryConfiguration> {
    let mut repositories: Vec<RepositoryConfiguration> = Vec::new();
    for table in tables {
        let mut section = document.repository(*table);
        if let Some(repository) = read(&mut section, document) {
            let variable = variable_name(&repository.name);
            if repositories.iter().any(|other| other.name == repository.name) {
                section.fault(format!("the name `{}` is used twice", repository.name));
            } else if let Some(other) = repositories.iter().find(|other| variable_name(&other.name) == variable) {
                section.fault(format!(
                    "`{}` and `{}` would share the variables PGARK_REPOSITORY_{variable}_…: rename one",
                    other.name, repository.name
                ));
            }
            repositories.push(repository);
        }
        section.finish(known, faults);
    }
    if tables.is_empty() {
        let sentence = "no repository is configured: add a [[repository]] table with `name` and `url`".to_owned();
        faults.push(Fault { origin: document.at_line(1), sentence });
    }
    if repositories.len() > 1 && repositories.iter().all(|repository| !repository.required) {
        let sentence =
            "no repository is required, so nothing would ever count as stored: take `required = false` away \
                        from one of them"
                .to_owned();
        faults.push(Fault { origin: document.at_line(1), sentence });
    }
    repositories
}

fn read(section: &mut Section<'_>, document: &Document<'_>) -> Option<RepositoryConfiguration> {
    // Every key is asked for before anything is decided: a fault in one must not make another one unknown.
    let name = section.required("name", parse_name);
    let url = section.required_hidden("url", parse_place);
    let recipients: Vec<String> = section.list("recipients");
    let recipients_file = section.path("recipients_file");
    let identity = section.secret("identity", "identity_file");
    let required = section.boolean("required").unwrap_or(true);
    let place = read_store(section, document, url);

    for recipient in &recipients {
        if let Err(problem) = check_recipient(recipient) {
            section.fault(format!("`recipients`: {problem}"));
        }
    }
    if !recipients.is_empty() && recipients_file.is_some() {
        section.fault("`recipients` and `recipients_file` exclude each other".to_owned());
    }
    Some(RepositoryConfiguration { name: name?, required, recipients, recipients_file, identity, ..place? })
}

/// Reads a place that is no repository of backups: it has a URL or does not exist, and nothing in it is encrypted.
pub(super) fn read_place(
    section: &mut Section<'_>,
    document: &Document<'_>,
    name: &str,
) -> Option<RepositoryConfiguration> {
    let url = section.optional_hidden("url", parse_place);
    let place = read_store(section, document, url)?;
    Some(RepositoryConfiguration { name: name.to_owned(), ..place })
}

/// Reads where the store is and how to get in: a repository without a name and without keys.
fn read_store(
    section: &mut Section<'_>,
    document: &Document<'_>,
    url: Option<(String, Scheme)>,
) -> Option<RepositoryConfiguration> {
    let region = section.text("region");
    let endpoint = section.optional_hidden("endpoint", parse_endpoint);
    let path_style = section.boolean("path_style");
    let allow_http = section.boolean("allow_http");
    let ca_file = section.path("ca_file");
    let keys = CredentialKeys::read(section);

    let (url, scheme) = url?;
    let mut set = keys.set();
    set.extend(region.as_ref().map(|_| ("region", "s3")));
    set.extend(path_style.map(|_| ("path_style", "s3")));
    for (key, of) in set.into_iter().filter(|(_, of)| *of != scheme.as_str()) {
        section.fault(format!("`{key}` is for {of}:// repositories, and this one is {}://", scheme.as_str()));
    }
    if scheme == Scheme::File {
        let set =
            [("endpoint", endpoint.is_some()), ("allow_http", allow_http.is_some()), ("ca_file", ca_file.is_some())];
        for (key, _) in set.into_iter().filter(|(_, set)| *set) {
            section.fault(format!("`{key}` has no meaning for a file:// repository"));
        }
    }
    let allow_http = allow_http.unwrap_or(false);
    if !allow_http && endpoint.as_ref().is_some_and(|endpoint: &String| endpoint.starts_with("http://")) {
        section.fault(
            "`endpoint` is http://, which anybody on the way can read; use https:// or set `allow_http = true`"
                .to_owned(),
        );
    }

    let environment = document.environment();
    let (region, credentials) = match scheme {
        Scheme::File => (None, CredentialSource::Ambient),
        Scheme::S3 => {
            let usual = || environment.get("AWS_REGION").or_else(|| environment.get("AWS_DEFAULT_REGION"));
            (region.or_else(usual), keys.s3(section, environment))
        }
        Scheme::Gcs => (None, keys.gcs(environment)),
        Scheme::Azure => (None, keys.azure(section, environment)),
    };
    Some(RepositoryConfiguration {
        name: String::new(),
        url,
        scheme,
        required: true,
        region,
        endpoint,
        path_style,
        allow_http,
        ca_file,
        credentials,
        recipients: Vec::new(),
        recipients_file: None,
        identity: None,
    })
}

fn parse_place(text: &str) -> Result<(String, Scheme), String> {
    parse_url(text).map(|scheme| (text.to_owned(), scheme))
}

impl Scheme {
    /// What stands before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

/// Checks what this program can know about a URL. No message repeats it: it could hold a password, where none belongs.
fn parse_url(text: &str) -> Result<Scheme, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(if text.starts_with('/') {
            format!("a directory is written as `file://{text}`")
        } else {
            "expected file:///directory, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix".to_owned()
        });
    };
    let scheme = match scheme {
        "file" => Scheme::File,
        "s3" => Scheme::S3,
        "gs" => Scheme::Gcs,
        "az" => Scheme::Azure,
        "gcs" => return Err("Google Cloud Storage is written as `gs://`".to_owned()),
        "azure" | "abfs" | "abfss" => {
            return Err("Azure Blob Storage is written as `az://`".to_owned());
        }
        "http" | "https" => {
            return Err("a server's address goes into `endpoint`; the url is like s3://bucket/prefix".to_owned());
        }
        _ => return Err("it must begin with file://, s3://, gs:// or az://".to_owned()),
    };
    if rest.contains(['?', '#']) || rest.contains(char::is_whitespace) || rest.contains(char::is_control) {
        return Err("it must not contain `?`, `#` or blanks".to_owned());
    }
    let first = rest.split('/').next().unwrap_or_default();
    match scheme {
        Scheme::File if !first.is_empty() => {
            Err("the directory must be absolute, with three slashes: file:///directory".to_owned())
        }
        Scheme::File if rest.trim_matches('/').is_empty() => Err("it names no directory".to_owned()),
        Scheme::File => Ok(scheme),
        _ if first.contains('@') => Err("credentials do not belong into the url".to_owned()),
        _ if first.is_empty() => Err("it names no bucket or container".to_owned()),
        _ if first.contains(':') => Err("it must not hold a port; a server's address goes into `endpoint`".to_owned()),
        _ => Ok(scheme),
    }
    .and_then(|scheme| {
        // `..` would step out of the place that the administrator gave us.
        if rest.split('/').any(|part| part == "." || part == "..") {
            Err("it must not contain `.` or `..`".to_owned())
        } else {
            Ok(scheme)
        }
    })
}

fn parse_endpoint(text: &str) -> Result<String, &'static str> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        None => Err("expected an address that begins with https:// (or http://)"),
        Some(rest) if rest.contains('@') => Err("credentials do not belong into the address"),
        Some(rest) if rest.is_empty() || rest.contains(char::is_whitespace) => {
            Err("expected https://host or https://host:port")
        }
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
    }
}
