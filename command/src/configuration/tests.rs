//! What a file, the environment and options make of each other, and how faults read.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MINIMAL: &str = "[[repository]]\nname = \"local\"\nurl = \"file:///var/lib/pgark\"\n";
const EXAMPLE: &str = include_str!("../../../config.example.toml");
const REFERENCE: &str = include_str!("../../../docs/configuration.md");

fn read_with<const N: usize>(text: &str, variables: [(&str, &str); N]) -> Result<Configuration, ConfigurationError> {
    Configuration::from_toml(text, Path::new("c.toml"), &Environment::from_pairs(variables), &Overrides::none())
}

fn read(text: &str) -> Result<Configuration, ConfigurationError> {
    read_with(text, [])
}

/// What is said about `text`, a line a fault.
fn complaint(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

/// What is said about one more line in the repository of [`MINIMAL`].
fn repository_complaint(line: &str) -> String {
    complaint(&format!("{MINIMAL}{line}\n"))
}

/// The repository of `text`, with `variables`.
fn repository<const N: usize>(text: &str, variables: [(&str, &str); N]) -> RepositoryConfiguration {
    read_with(text, variables).unwrap().repositories.remove(0)
}

fn s3(lines: &str) -> String {
    format!("[[repository]]\nname = \"far-away.1\"\nurl = \"s3://bucket/prefix\"\n{lines}")
}

/// All keys that exist, as `section.key`, without the sections themselves.
fn known_keys() -> BTreeSet<String> {
    let (_, known) =
        Configuration::read(MINIMAL, Path::new("c.toml"), &Environment::empty(), &Overrides::none()).unwrap();
    let sections = [
        "cluster",
        "repository",
        "compression",
        "backup",
        "archive",
        "stream",
        "restore",
        "verify",
        "drill",
        "drill.query",
        "proofs",
        "notify",
        "retention",
    ];
    let is_key = |key: &&String| !sections.contains(&key.as_str());
    // [proofs] takes what a repository takes; the example and the reference show it there.
    let is_shared = |key: &str| {
        key.strip_prefix("proofs.").is_some_and(|key| key != "url" && known.contains(&format!("repository.{key}")))
    };
    known.iter().filter(is_key).filter(|key| !is_shared(key)).cloned().collect()
}

/// Turns the commented settings of the example into settings.
fn uncommented(text: &str) -> String {
    let is_setting = |line: &str| line.starts_with(|first: char| first.is_ascii_lowercase() || first == '[');
    let lines = text.lines().map(|line| line.strip_prefix('#').filter(|line| is_setting(line)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_valid_and_its_comments_are_the_defaults() {
    let defaults = read(MINIMAL).unwrap();
    assert_eq!(read(EXAMPLE).unwrap(), defaults);
    let (with_defaults, _) = EXAMPLE.split_once("# ---- More repositories").unwrap();
    assert_eq!(read(&uncommented(with_defaults)).unwrap(), defaults);
    // The comparison must not hold only because nothing was uncommented.
    assert!(uncommented(with_defaults).contains("\npart_size = \"256MiB\"\n"));
}

#[test]
fn the_example_shows_every_key_and_no_other() {
    let everything = uncommented(EXAMPLE);
    assert_eq!(read(&everything).unwrap().repositories.len(), 5);
    let mut shown = BTreeSet::new();
    for (section, value) in everything.parse::<toml::Table>().unwrap() {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    match value.as_array().and_then(|tables| tables.first()?.as_table()) {
                        Some(table) => shown.extend(table.keys().map(|inner| format!("{section}.{key}.{inner}"))),
                        None => drop(shown.insert(format!("{section}.{key}"))),
                    }
                }
            }
            toml::Value::Array(tables) => {
                let keys = tables.iter().flat_map(|table| table.as_table().unwrap().keys());
                shown.extend(keys.map(|key| format!("{section}.{key}")));
            }
            _ => {
                shown.insert(section);
            }
        }
    }
    assert_eq!(shown, known_keys());
}

#[test]
fn the_reference_describes_every_key() {
    for setting in known_keys() {
        let key = setting.rsplit('.').next().unwrap();
        assert!(REFERENCE.contains(&format!("| `{key}` |")), "docs/configuration.md has no line for `{setting}`");
    }
}

#[test]
fn notify_takes_known_results_only() {
    let only = read(&format!("{MINIMAL}[notify]\ncommand = \"x\"\non = [\"failure\"]\n")).unwrap().notify;
    assert_eq!((only.command.as_deref(), only.on), (Some("x"), vec![NotifyResult::Failure]));
    let message = repository_complaint("[notify]\non = [\"sometimes\"]");
    assert!(message.contains("`sometimes`") && message.contains("success, warning and failure"), "{message}");
}

#[test]
fn an_option_wins_over_a_variable_and_that_over_the_file() {
    let text = format!("{MINIMAL}[backup]\nmax_rate = \"1MiB\"\n[compression]\nlevel = 5\n");
    let rate = |variables: &[(&str, &str)], option: Option<&str>| {
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment = match variables.first() {
            Some((name, value)) => Environment::from_pairs([(name.as_str(), value.as_str())]),
            None => Environment::empty(),
        };
        let overrides = Overrides::none().with("backup.max_rate", "--max-rate", option);
        let configuration = Configuration::from_toml(&text, Path::new("c.toml"), &environment, &overrides).unwrap();
        configuration.backup.max_rate.map(MaxRate::kilobytes_per_second)
    };
    assert_eq!(rate(&[], None), Some(1024));
    assert_eq!(rate(&[("PGARK_BACKUP_MAX_RATE", "2MiB")], None), Some(2048));
    assert_eq!(rate(&[("PGARK_BACKUP_MAX_RATE", "2MiB")], Some("3MiB")), Some(3072));
    // An empty variable says nothing; an empty option says "unlimited".
    assert_eq!(rate(&[("PGARK_BACKUP_MAX_RATE", "")], None), Some(1024));
    assert_eq!(rate(&[("PGARK_BACKUP_MAX_RATE", "2MiB")], Some("")), None);

    let other = read_with(&text, [("PGARK_COMPRESSION_LEVEL", "7"), ("PGARK_STATE_DIR", "/tmp/state")]).unwrap();
    assert_eq!((other.compression.level, other.state_dir.to_str()), (7, Some("/tmp/state")));
}

#[test]
fn faults_in_variables_and_options_name_them() {
    let error = read_with(MINIMAL, [("PGARK_COMPRESSION_LEVEL", "many")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "PGARK_COMPRESSION_LEVEL: `level` in [compression] is many: expected a number from 1 to 19"
    );
    let overrides = Overrides::none().with("backup.checkpoint", "--checkpoint", Some("slow"));
    let error = Configuration::from_toml(MINIMAL, Path::new("c.toml"), &Environment::empty(), &overrides).unwrap_err();
    assert_eq!(error.to_string(), "--checkpoint: `checkpoint` in [backup] is \"slow\": expected `fast` or `spread`");
}

#[test]
fn unknown_keys_name_the_nearest_one_and_their_line() {
    assert_eq!(
        complaint(&format!("{MINIMAL}[cluster]\nconection = \"\"\n")),
        "c.toml:5: unknown key `conection` in [cluster], did you mean `connection`?"
    );
    assert_eq!(
        repository_complaint("secret_access_key = \"hunter2\""),
        "c.toml:4: unknown key `secret_access_key` in repository `local`, did you mean `secret_access_key_file`?"
    );
    assert_eq!(
        complaint(&format!("statedir = \"/x\"\n{MINIMAL}")),
        "c.toml:1: unknown key `statedir` at the top of the file, did you mean `state_dir`?"
    );
    assert_eq!(
        complaint(&format!("{MINIMAL}[backups]\n")),
        "c.toml:4: unknown key `backups` at the top of the file, did you mean `backup`?"
    );
    assert_eq!(
        repository_complaint("wholly_different = 1"),
        "c.toml:4: unknown key `wholly_different` in repository `local`"
    );
}

#[test]
fn all_faults_are_told_at_once() {
    let text = "[cluster]\nname = \"a/b\"\nnmae = 1\n[compression]\nlevel = 20\n[backup]\npart_size = \"5\"\n";
    assert_eq!(
        complaint(text),
        "c.toml:2: `name` in [cluster] is \"a/b\": only letters, digits, `-`, `_` and `.` are allowed\n\
         c.toml:3: unknown key `nmae` in [cluster], did you mean `name`?\n\
         c.toml:1: no repository is configured: add a [[repository]] table with `name` and `url`\n\
         c.toml:5: `level` in [compression] is 20: expected a number from 1 to 19\n\
         c.toml:7: `part_size` in [backup] is \"5\": the unit is missing; write it as in 256MiB"
    );
}

#[test]
fn wrong_types_are_refused() {
    assert_eq!(
        complaint(&format!("{MINIMAL}[backup]\npart_size = 268435456\n")),
        "c.toml:5: `part_size` in [backup] must be a text in quotes, not integer"
    );
    assert_eq!(
        complaint(&format!("{MINIMAL}[compression]\nlevel = \"3\"\n")),
        "c.toml:5: `level` in [compression] must be a whole number without quotes, not string"
    );
    assert_eq!(
        complaint("[repository]\nname = \"local\"\n").lines().next().unwrap(),
        "c.toml:1: `repository` at the top of the file must be a list of tables, each under [[repository]] in double \
         brackets, not table"
    );
    assert!(complaint(&format!("{MINIMAL}[compression]\nlevel = -1\n")).contains("expected a number from 1 to 19"));
    assert!(repository_complaint("recipients = \"age1x\"").contains("must be a list of texts"));
    assert!(repository_complaint("recipients = [1]").contains("must be a list of texts"));
    assert!(complaint(&format!("cluster = 1\n{MINIMAL}")).contains("must be a table, [cluster]"));
}

#[test]
fn limits_of_sizes_times_and_names_are_kept() {
    let in_backup = |line: &str| complaint(&format!("{MINIMAL}[backup]\n{line}\n"));
    assert!(in_backup("part_size = \"15MiB\"").contains("expected 16 MiB to 16384 MiB"));
    assert!(in_backup("max_rate = \"2GB\"").contains("between 32 kB and 1 GB"));
    assert!(in_backup("archive_wait = \"25h\"").contains("expected 0 s to 24 h"));
    assert!(complaint(&format!("{MINIMAL}[archive]\ndeadline = \"0s\"\n")).contains("expected 1 s to 24 h"));
    assert!(complaint(&format!("state_dir = \"state\"\n{MINIMAL}")).contains("expected an absolute path"));
    let named = |name: &str| complaint(&format!("{MINIMAL}[cluster]\nname = \"{name}\"\n"));
    for name in ["..", ".hidden", "-x", "a b", "ä", &"x".repeat(65)] {
        assert!(named(name).contains("`name` in [cluster]"), "{name}");
    }
    assert!(read(&format!("{MINIMAL}[cluster]\nname = \"16-main_b.old\"\n")).is_ok());
}

#[test]
fn syntax_errors_have_a_line_and_do_not_repeat_it() {
    let error = complaint("[cluster]\nconnection = \"password=hunter2\n");
    assert!(error.starts_with("c.toml:2: this is not valid TOML: "), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = Configuration::load(Path::new("/nonexistent/c.toml"), &Environment::empty(), &Overrides::none());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("/nonexistent/c.toml") && message.contains("config.example.toml"), "{message}");
}

#[test]
fn the_file_is_looked_for_in_three_places() {
    let set = Environment::from_pairs([("PGARK_CONFIG", "/from/variable")]);
    assert_eq!(configuration_path(Some(Path::new("/from/option")), &set), Path::new("/from/option"));
    assert_eq!(configuration_path(None, &set), Path::new("/from/variable"));
    assert_eq!(configuration_path(None, &Environment::empty()), Path::new("/etc/pgark/config.toml"));
}

#[test]
fn urls_are_checked_and_never_repeated() {
    let with_url = |url: &str| read(&format!("[[repository]]\nname = \"x\"\nurl = \"{url}\"\n"));
    for url in ["file:///var/lib/pgark", "s3://bucket", "s3://bucket/a/b", "gs://b/p/"] {
        assert!(with_url(url).is_ok(), "{url}");
    }
    for (url, part) in [
        ("/var/lib/pgark", "written as `file:///var/lib/pgark`"),
        ("file://var/lib", "three slashes"),
        ("file:///", "no directory"),
        ("file:///a/../b", "`..`"),
        ("s3:///prefix", "no bucket"),
        ("s3://key:hunter2@bucket", "credentials do not belong"),
        ("s3://bucket?key=hunter2", "must not contain `?`"),
        ("s3://host:9000/bucket", "must not hold a port"),
        ("https://s3.example.com/bucket", "`endpoint`"),
        ("gcs://b", "`gs://`"),
        ("ftp://b", "it must begin with"),
        ("bucket", "expected file:///directory"),
    ] {
        let message = with_url(url).unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains("hunter2"), "{url}: {message}");
    }
    assert!(complaint("[[repository]]\nname = \"x\"\n").contains("c.toml:1: `url` is missing"));
    assert!(complaint("[[repository]]\nurl = \"s3://b\"\n").contains("c.toml:1: `name` is missing"));
}

#[test]
fn keys_of_another_scheme_are_refused() {
    assert!(
        repository_complaint("region = \"x\"").contains("`region` is for s3:// repositories, and this one is file://")
    );
    assert!(repository_complaint("account = \"x\"").contains("`account` is for az://"));
    assert!(repository_complaint("ca_file = \"/x\"").contains("`ca_file` has no meaning for a file://"));
    assert!(complaint(&s3("service_account_file = \"/x\"\n")).contains("is for gs:// repositories"));
    assert!(complaint(&s3("endpoint = \"http://localhost:9000\"\n")).contains("allow_http = true"));
    assert!(complaint(&s3("endpoint = \"localhost:9000\"\n")).contains("begins with https://"));
    let plain = repository(&s3("endpoint = \"http://localhost:9000/\"\nallow_http = true\n"), []);
    assert_eq!(plain.endpoint.as_deref(), Some("http://localhost:9000"));
}

#[test]
fn repositories_are_told_apart() {
    let two = |first: &str, second: &str| {
        read(&format!(
            "[[repository]]\nname = \"{first}\"\nurl = \"s3://a\"\n[[repository]]\nname = \"{second}\"\nurl = \"s3://b\"\n"
        ))
    };
    assert!(two("a", "a").unwrap_err().to_string().starts_with("c.toml:4: the name `a` is used twice"));
    assert!(two("a-b", "a_b").unwrap_err().to_string().contains("PGARK_REPOSITORY_A_B_…"));
    let configuration = two("near", "far").unwrap();
    assert_eq!(configuration.repository(Some("far")).unwrap().name, "far");
    assert_eq!(configuration.repositories_named(None).unwrap().len(), 2);
    assert_eq!(
        configuration.repository(None).unwrap_err().to_string(),
        "several repositories are configured; choose one with --repository: near, far"
    );
    assert_eq!(
        configuration.repository(Some("fra")).unwrap_err().to_string(),
        "there is no repository `fra`; configured: near, far"
    );
}

#[test]
fn s3_credentials_come_whole_from_one_place() {
    let value = |text: &str| SecretSource::Value(Secret::new(text));
    let cloud = [("AWS_ACCESS_KEY_ID", "cloud"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_SESSION_TOKEN", "t")];
    assert_eq!(
        repository(&s3(""), cloud).credentials,
        CredentialSource::S3 {
            access_key_id: "cloud".to_owned(),
            secret_access_key: value("s"),
            session_token: Some(value("t")),
        }
    );
    // The token of the cloud's variables does not go with the key of the file.
    let keys = "access_key_id = \"own\"\nsecret_access_key_file = \"/secret\"\n";
    assert_eq!(
        repository(&s3(keys), cloud).credentials,
        CredentialSource::S3 {
            access_key_id: "own".to_owned(),
            secret_access_key: SecretSource::File("/secret".into()),
            session_token: None,
        }
    );
    let variable = repository(&s3(keys), [("PGARK_REPOSITORY_FAR_AWAY_1_SECRET_ACCESS_KEY", "direct")]).credentials;
    assert!(matches!(variable, CredentialSource::S3 { secret_access_key, .. } if secret_access_key == value("direct")));
    assert_eq!(repository(&s3(""), [("AWS_ACCESS_KEY_ID", "alone")]).credentials, CredentialSource::Ambient);
    assert!(complaint(&s3("access_key_id = \"own\"\n")).contains("or PGARK_REPOSITORY_FAR_AWAY_1_SECRET_ACCESS_KEY"));
    assert!(complaint(&s3("secret_access_key_file = \"/s\"\n")).contains("without `access_key_id`"));
    assert!(complaint(&s3("session_token_file = \"/s\"\n")).contains("a session token is set without"));
    assert_eq!(repository(&s3(""), [("AWS_DEFAULT_REGION", "eu-1")]).region.as_deref(), Some("eu-1"));
    assert_eq!(repository(&s3("region = \"eu-2\""), [("AWS_REGION", "eu-1")]).region.as_deref(), Some("eu-2"));
}

#[test]
fn credentials_of_google_and_azure_are_found() {
    let gcs = "[[repository]]\nname = \"g\"\nurl = \"gs://bucket\"\n";
    assert_eq!(repository(gcs, []).credentials, CredentialSource::Ambient);
    let file = |path: &str| CredentialSource::Gcs { service_account: SecretSource::File(path.into()) };
    assert_eq!(repository(gcs, [("GOOGLE_APPLICATION_CREDENTIALS", "/g.json")]).credentials, file("/g.json"));
    let both =
        [("GOOGLE_APPLICATION_CREDENTIALS", "/g.json"), ("PGARK_REPOSITORY_G_SERVICE_ACCOUNT_FILE", "/own.json")];
    assert_eq!(repository(gcs, both).credentials, file("/own.json"));

    let azure = "[[repository]]\nname = \"a\"\nurl = \"az://container\"\n";
    assert!(complaint(azure).contains("needs `account`"));
    let account = |account: &str, key: Option<&str>| CredentialSource::Azure {
        account: account.to_owned(),
        key: key.map(|key| SecretSource::Value(Secret::new(key))),
    };
    let cloud = [("AZURE_STORAGE_ACCOUNT", "cloud"), ("AZURE_STORAGE_KEY", "key")];
    assert_eq!(repository(azure, cloud).credentials, account("cloud", Some("key")));
    let own = format!("{azure}account = \"own\"\n");
    assert_eq!(repository(&own, cloud).credentials, account("own", None));
    assert_eq!(repository(&own, [("PGARK_REPOSITORY_A_ACCOUNT_KEY", "k")]).credentials, account("own", Some("k")));
}

/// A file with `content` that goes away with the test.
fn temporary(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

const PUBLIC: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
const PRIVATE: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";

#[test]
fn recipients_come_from_the_list_the_variable_or_the_file() {
    let listed = repository(&format!("{MINIMAL}recipients = [\"{PUBLIC}\"]\n"), []);
    assert_eq!(listed.recipients().unwrap(), [PUBLIC]);
    let variable = format!("{PUBLIC}, {PUBLIC}");
    let from_variable = repository(MINIMAL, [("PGARK_REPOSITORY_LOCAL_RECIPIENTS", variable.as_str())]);
    assert_eq!(from_variable.recipients().unwrap(), [PUBLIC, PUBLIC]);
    let file = temporary(&format!("# of the archive\n\n  {PUBLIC}\r\n"));
    let from_file = repository(&format!("{MINIMAL}recipients_file = \"{}\"\n", file.path().display()), []);
    assert_eq!(from_file.recipients().unwrap(), [PUBLIC]);
    assert!(repository(MINIMAL, []).recipients().unwrap().is_empty());
}

#[test]
fn a_recipients_file_without_recipients_does_not_turn_encryption_off() {
    for content in ["", "# nobody\n"] {
        let file = temporary(content);
        let repository = repository(&format!("{MINIMAL}recipients_file = \"{}\"\n", file.path().display()), []);
        assert!(matches!(repository.recipients(), Err(ConfigurationError::EmptyFile { .. })));
    }
    let absent = repository(&format!("{MINIMAL}recipients_file = \"/nonexistent/r\"\n"), []);
    assert!(matches!(absent.recipients(), Err(ConfigurationError::Unreadable { .. })));
}

#[test]
fn a_private_key_among_the_recipients_is_refused_and_not_shown() {
    let message = repository_complaint(&format!("recipients = [\"{PRIVATE}\"]"));
    assert!(message.contains("this is a private key") && !message.contains("GFPYY"), "{message}");
    let file = temporary(&format!("{PUBLIC}\n{PRIVATE}\n"));
    let repository = repository(&format!("{MINIMAL}recipients_file = \"{}\"\n", file.path().display()), []);
    let message = repository.recipients().unwrap_err().to_string();
    assert!(message.contains(":2: this is a private key") && !message.contains("GFPYY"), "{message}");
    assert!(repository_complaint("recipients = [\"ssh-rsa AAAA\"]").contains("begins with `age1`"));
    assert!(
        repository_complaint(&format!("recipients = [\"{PUBLIC}\"]\nrecipients_file = \"/x\""))
            .contains("exclude each other")
    );
}

#[test]
fn identities_are_read_as_age_writes_them() {
    let file = temporary(&format!("# created: 2026-11-20\n# public key: {PUBLIC}\n{PRIVATE}\n"));
    let with_file = repository(&format!("{MINIMAL}identity_file = \"{}\"\n", file.path().display()), []);
    assert!(with_file.has_identity());
    assert_eq!(with_file.identities().unwrap(), [Secret::new(PRIVATE)]);
    assert!(!format!("{with_file:?}").contains("GFPYY"));
    let variable = repository(MINIMAL, [("PGARK_REPOSITORY_LOCAL_IDENTITY", PRIVATE)]);
    assert_eq!(variable.identities().unwrap(), [Secret::new(PRIVATE)]);
    assert!(repository(MINIMAL, []).identities().unwrap().is_empty());
    let wrong = repository(MINIMAL, [("PGARK_REPOSITORY_LOCAL_IDENTITY", PUBLIC)]);
    assert_eq!(
        wrong.identities().unwrap_err().to_string(),
        "PGARK_REPOSITORY_LOCAL_IDENTITY:1: this is a public key; an identity is the private key, which begins with \
         `AGE-SECRET-KEY-1`"
    );
}

#[test]
fn secret_files_lose_their_newline_and_must_hold_something() {
    let file = temporary("hunter2\n");
    let source = SecretSource::File(file.path().to_path_buf());
    assert_eq!(source.read("secret access key").unwrap(), Secret::new("hunter2"));
    let empty = temporary("\n");
    let error = SecretSource::File(empty.path().to_path_buf()).read("secret access key").unwrap_err();
    assert!(error.to_string().ends_with("is empty; it should hold the secret access key"), "{error}");
}

#[test]
fn nothing_secret_is_in_the_debug_form() {
    let text = format!("{MINIMAL}[cluster]\nconnection = \"password=hunter2\"\n");
    let configuration = read_with(&text, [("PGARK_REPOSITORY_LOCAL_IDENTITY", "hunter2")]).unwrap();
    assert!(!format!("{configuration:?}").contains("hunter2"));
}

#[test]
fn workers_are_bounded_unless_asked_for() {
    let with = |jobs| CompressionConfiguration { level: 3, jobs }.workers().get();
    assert!((1..=4).contains(&with(0)));
    assert_eq!(with(17), 17);
    assert!((1..=8).contains(&RestoreConfiguration { jobs: 0, prefetch: 8 }.workers().get()));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        drop(read(&text));
    }

    /// Texts that get past the TOML parser and into the checks.
    #[test]
    fn any_value_is_read_or_refused(
        section in "top|cluster|compression|backup|archive|restore",
        key in "name|connection|level|jobs|checkpoint|max_rate|part_size|archive_wait|deadline|state_dir|[a-zé\"']{1,9}",
        value in "-?[0-9]{1,22}|true|\\[[0-9, ]{0,5}\\]|\\{\\}|\"[^\"\\\\\\x00-\\x1f\\x7f]{0,20}\"|2026-11-20|1e5",
    ) {
        let header = if section == "top" { String::new() } else { format!("[{section}]\n") };
        drop(read(&format!("{header}{key} = {value}\n{MINIMAL}")));
        drop(read(&format!("{MINIMAL}{key} = {value}\n")));
    }
}

#[test]
fn queries_of_a_drill_and_a_place_for_proofs_are_read() {
    let text = format!(
        "{MINIMAL}[drill]\nsettings = [\"shared_preload_libraries=timescaledb\"]\n[[drill.query]]\nsql = \"SELECT 1\"\n\
         expect = \"1\"\n[[drill.query]]\ndatabase = \"app\"\nsql = \"SELECT 2\"\n\
         [proofs]\nurl = \"s3://proofs/main\"\nregion = \"eu-1\"\n"
    );
    let configuration = read(&text).unwrap();
    let query = |database: &str, sql: &str, expect: Option<&str>| DrillQuery {
        database: database.to_owned(),
        sql: sql.to_owned(),
        expect: expect.map(str::to_owned),
    };
    assert_eq!(configuration.drill.queries, [query("postgres", "SELECT 1", Some("1")), query("app", "SELECT 2", None)]);
    let place = configuration.proofs.place.unwrap();
    assert_eq!((place.name.as_str(), place.url.as_str()), ("proofs", "s3://proofs/main"));
    let with = |lines: &str| complaint(&format!("{MINIMAL}{lines}"));
    assert!(with("[[drill.query]]\nexpect = \"1\"\n").contains("`sql` is missing (in [[drill.query]] number 1)"));
    assert!(with("[drill]\nsettings = [\"work_mem\"]\n").contains("expected \"name=value\""));
    assert!(with("[proofs]\nurl = \"file:///p\"\nrecipients = [\"age1x\"]\n").contains("unknown key `recipients`"));
    assert!(with("[proofs]\nurl = \"file:///p\"\nregion = \"x\"\n").contains("`region` is for s3://"));
}

#[test]
fn retention_is_off_unless_a_rule_limits_it() {
    assert!(!read(MINIMAL).unwrap().retention.policy.is_limited());
    let retention = read(&format!("{MINIMAL}[retention]\nwindow = \"14d\"\nmonthly = 12\n")).unwrap().retention;
    assert_eq!(retention.policy.window, Some(Duration::from_secs(14 * 86_400)));
    assert_eq!((retention.policy.monthly, retention.after_backup), (12, false));
    let calendar_alone = complaint(&format!("{MINIMAL}[retention]\ndaily = 7\n"));
    assert!(calendar_alone.contains("set `window` or `full`, too"), "{calendar_alone}");
    let short = complaint(&format!("{MINIMAL}[retention]\nwindow = \"5min\"\n"));
    assert!(short.contains("expected 1h to 10000d"), "{short}");
}
