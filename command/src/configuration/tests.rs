//! What a file, the environment and options make of each other, and how faults read.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

const MINIMAL: &str = "[[repository]]\nname = \"local\"\nurl = \"file:///var/lib/pgark\"\n";

fn read_with<const N: usize>(
    text: &str,
    variables: [(&str, &str); N],
) -> Result<Configuration, ConfigurationError> {
    Configuration::from_toml(
        text,
        Path::new("c.toml"),
        &Environment::from_pairs(variables),
        &Overrides::none(),
    )
}

fn read(text: &str) -> Result<Configuration, ConfigurationError> {
    read_with(text, [])
}

fn faults(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let configuration = read(MINIMAL).unwrap();
    assert_eq!(configuration.state_dir, Path::new("/var/lib/pgark/state"));
    assert_eq!(configuration.cluster.name, "main");
    assert_eq!(configuration.backup.part_size, 256 << 20);
    assert_eq!(configuration.backup.max_rate, None);
    assert_eq!(configuration.archive.deadline, Duration::from_secs(60));
    assert_eq!(
        configuration.repositories[0].credentials,
        CredentialSource::Ambient
    );
}
