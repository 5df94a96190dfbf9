//! `pgark-agent check`: looks at everything that backups, archiving and streaming need, and tries what can be tried.
//!
//! Nothing ends it early: what cannot be looked at is a finding like any other. Only a configuration that cannot be
//! read is an error, since then nothing is known.

mod archiver;
mod command_line;
mod finding;
mod segment;
mod server;
mod space;
mod storage;

use clap::Args;
use pgark_command::{
    Configuration, Environment, ExitCode, GlobalOptions, Overrides, RepositoryConfiguration, Side, notify_about,
    notify_message, open_repository,
};
use pgark_postgres::SystemIdentifier;
use pgark_repository::{ClusterRepository, Repository};

use anyhow::Context;

use self::finding::{Findings, Outcome};
use crate::replication::{ConnectionOptions, Endpoint, ReplicationConnection};
use crate::server::Server;

/// Options of `check`.
#[derive(Args, Debug)]
pub struct CheckArguments {
    /// Do not end the segment that is being written to see whether it arrives
    #[arg(long)]
    pub no_switch: bool,

    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// Checks everything. Exits with 0 when there was no failure, with 1 otherwise.
///
/// # Errors
/// When the configuration or the connection string cannot be read.
pub async fn check(
    global: &GlobalOptions,
    environment: &Environment,
    arguments: &CheckArguments,
) -> anyhow::Result<ExitCode> {
    let configuration = global.configuration(environment, &Overrides::none()).context("read the configuration")?;
    notify_about("check", &configuration);
    let options = ConnectionOptions::from_process(configuration.cluster.connection.expose())
        .context("read cluster.connection")?;
    let chosen = global.repositories(environment, &configuration)?;
    let mut findings = Findings::default();
    findings.ok("configuration", format!("cluster `{}`, {} repositories", configuration.cluster.name, chosen.len()));

    let connected = connect(&options, &mut findings).await;
    if let Some(Connected { server, is_local, .. }) = &connected {
        let is_local = *is_local;
        if let Err(error) = server::check(server, &configuration, &mut findings).await {
            findings.error("server", error);
        }
        if let Err(error) = archiver::check(server, &configuration, &chosen, is_local, &mut findings).await {
            findings.error("archiving", error);
        }
    }
    let mut places = Vec::new();
    for repository in &chosen {
        let place = check_repository(repository, &configuration, connected.as_ref(), &mut findings).await;
        places.extend(place);
    }
    space::check_state_dir(&configuration, &mut findings);
    if let Some(connected) = &connected {
        if connected.is_local {
            space::check_data_directory(&connected.server, &mut findings).await;
        }
        segment::check(connected, &configuration, &places, arguments.no_switch, &mut findings).await;
    }
    notify_message(findings.summary());
    findings.print(arguments.json)?;
    Ok(if findings.count(Outcome::Failure) == 0 { ExitCode::Done } else { ExitCode::Failed })
}

/// The server, as far as it could be reached.
struct Connected {
    server: Server,
    /// Known only with a replication connection.
    system_identifier: Option<SystemIdentifier>,
    /// Whether the server's files may be those of this host.
    is_local: bool,
}

async fn connect(options: &ConnectionOptions, findings: &mut Findings) -> Option<Connected> {
    let mut system_identifier = None;
    let mut options = options.clone();
    match ReplicationConnection::connect(&options).await {
        Err(error) => findings.error("replication", anyhow::Error::new(error).context("open a replication connection")),
        Ok(mut replication) => {
            options = options.only(replication.host());
            match replication.known_server_version().await {
                Err(error) => findings.error("replication", error),
                Ok(_) => match replication.identify_system().await {
                    Err(error) => findings.error("replication", error),
                    Ok(identity) => {
                        system_identifier = Some(identity.system_identifier);
                        let message = format!(
                            "{} may stream; the system identifier is {}, the timeline {}",
                            options.user, identity.system_identifier, identity.timeline
                        );
                        findings.ok("replication", message);
                    }
                },
            }
            replication.close().await;
        }
    }
    let is_local = options.hosts.iter().all(|host| matches!(host.endpoint, Endpoint::SocketDirectory(_)));
    match Server::connect(&options).await {
        Ok(server) => Some(Connected { server, system_identifier, is_local }),
        Err(error) => {
            findings.error("connection", error);
            None
        }
    }
}

/// Checks one repository, and returns it where it can be used.
async fn check_repository(
    configured: &RepositoryConfiguration,
    configuration: &Configuration,
    connected: Option<&Connected>,
    findings: &mut Findings,
) -> Option<ClusterRepository> {
    let repository: Repository = match open_repository(configured, Side::Writing) {
        Ok(repository) => repository,
        Err(error) => {
            findings.error("repository", error.context(format!("open the repository `{}`", configured.name)));
            return None;
        }
    };
    let cluster = &configuration.cluster.name;
    storage::check(&repository, cluster, findings).await;
    storage::check_encryption(configured, findings);
    let place = match connected.and_then(|connected| connected.system_identifier) {
        None => None,
        Some(system_identifier) => repository.cluster(cluster, system_identifier).ok(),
    };
    let newest = match &place {
        None => None,
        Some(place) => storage::check_backups(place, findings).await,
    };
    space::check_repository(configured, newest, findings);
    place
}
