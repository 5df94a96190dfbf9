//! `[[drill.query]]`: what only the administrator knows about the data.

use std::time::Instant;

use pgark_command::{DrillQuery, printable};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::super::server::{Server, said};
use super::{Check, Faults};

pub(super) async fn run(server: &Server, query: &DrillQuery) -> Check {
    let began = Instant::now();
    let shown = format!("{} (in {})", printable(query.sql.trim()), printable(&query.database));
    let mut faults = Faults::default();
    let answer = match server.connect(&query.database).await {
        Ok(client) => ask(&client, &query.sql).await,
        Err(error) => Err(error),
    };
    match (answer, &query.expect) {
        (Err(error), _) => faults.add(format!("{shown}: {}", said(&error))),
        (Ok(found), Some(expected)) if found != expected.trim_end_matches('\n') => {
            let (found, expected) = (printable(&found), printable(expected));
            faults.add(format!("{shown} answers `{found}`, expected `{expected}`"));
        }
        (Ok(_), _) => {}
    }
    Check::done("query", began, shown, faults)
}

/// The answer as `psql -At` prints it.
async fn ask(client: &Client, sql: &str) -> Result<String, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let columns = (0..row.len()).map(|column| row.try_get(column).ok().flatten().unwrap_or_default());
            Some(columns.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    Ok(rows.collect::<Vec<_>>().join("\n"))
}
