//! Every page of every relation of every database, read by the server itself: tables with all their values as `pg_dump`
//! would read them, TOAST tables and sequences page by page, indexes into the buffer cache. Where the cluster has page
//! checksums, the server compares each of them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use futures_util::future::join_all;
use pgark_command::format_size;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::super::server::{Server, said};
use super::{Check, Faults};

/// The largest first, so that the end is not spent on one of them. A relation that all databases share is read once.
const RELATIONS: &str = "\
    SELECT c.relkind::text, c.oid::text, quote_ident(n.nspname) || '.' || quote_ident(c.relname), \
           pg_relation_size(c.oid)::text \
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'm', 't', 'i', 'S') AND c.relpersistence <> 't' \
       AND pg_relation_filenode(c.oid) IS NOT NULL AND (c.relkind <> 'm' OR c.relispopulated) \
       AND (NOT c.relisshared OR current_database() = 'template1') \
     ORDER BY pg_relation_size(c.oid) DESC";
const DATABASES: &str = "\
    SELECT datname, quote_ident(datname), datallowconn::text, (datconnlimit = -2)::text FROM pg_database ORDER BY 1";
/// A count must look at the table itself, not at an index of it; and no trigger of the original may act.
const SETTINGS: &str = "\
    SET session_replication_role = replica; \
    SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off; \
    SET max_parallel_workers_per_gather = 0; SET jit = off";
/// With it the server reads an index page by page; it comes with PostgreSQL's additional modules.
const PREWARM: &str = "\
    SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
     WHERE e.extname = 'pg_prewarm'";
/// From PostgreSQL 15 on a database knows with which version of its collation its indexes were built.
const COLLATION: &str = "\
    SELECT datcollversion || ' and this host has ' || pg_database_collation_actual_version(oid) FROM pg_database \
     WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)";

struct Relation {
    kind: char,
    oid: String,
    name: String,
    bytes: u64,
}

/// What was read so far.
#[derive(Default)]
struct Progress {
    faults: Faults,
    databases: u64,
    relations: u64,
    bytes: u64,
    without_indexes: bool,
}

pub(super) async fn read_all(server: &Server, jobs: usize, notes: &mut Vec<String>) -> anyhow::Result<Check> {
    let began = Instant::now();
    let mut progress = Progress::default();
    for [name, quoted, allows, invalid] in databases(server).await.context("list the databases")? {
        if invalid == "true" {
            notes.push(format!("database {quoted} was not read: it is what an interrupted DROP DATABASE left"));
            continue;
        }
        if let Err(error) = read_database(server, &name, &quoted, allows == "true", jobs, &mut progress, notes).await {
            progress.faults.add(format!("database {quoted}: {}", said(&error)));
        }
        progress.databases += 1;
    }
    if progress.without_indexes {
        notes.push(
            "indexes were not read page by page: pg_prewarm, of PostgreSQL's additional modules, is not installed"
                .to_owned(),
        );
    }
    let detail = format!(
        "{} relations of {} databases, {}",
        progress.relations,
        progress.databases,
        format_size(progress.bytes)
    );
    Ok(Check::done("read", began, detail, progress.faults))
}

async fn databases(server: &Server) -> Result<Vec<[String; 4]>, tokio_postgres::Error> {
    let client = server.connect("template1").await?;
    rows(&client, DATABASES).await
}

async fn read_database(
    server: &Server,
    name: &str,
    quoted: &str,
    allows: bool,
    jobs: usize,
    progress: &mut Progress,
    notes: &mut Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    if !allows {
        // template0, usually. The copy is thrown away.
        let client = server.connect("template1").await?;
        client.batch_execute(&format!("ALTER DATABASE {quoted} ALLOW_CONNECTIONS true")).await?;
    }
    let client = server.connect(name).await?;
    // Before version 15 there is no such column.
    if let Ok(versions) = rows::<1>(&client, COLLATION).await {
        notes.extend(versions.iter().map(|[versions]| {
            format!(
                "database {quoted}: its indexes were built with version {versions} of the collation, so that faults in the \
                 order of texts may be this host's"
            )
        }));
    }
    client.batch_execute(SETTINGS).await?;
    let prewarm = prewarm(&client).await?;
    let relations = rows::<4>(&client, RELATIONS).await?;
    let relations = relations.into_iter().map(|[kind, oid, name, bytes]| Relation {
        kind: kind.chars().next().unwrap_or(' '),
        oid,
        name,
        bytes: bytes.parse().unwrap_or(0),
    });
    let mut queue: VecDeque<Relation> = relations.collect();
    if prewarm.is_none() {
        queue.retain(|relation| relation.kind != 'i');
        progress.without_indexes = true;
    }
    progress.relations += queue.len() as u64;
    progress.bytes += queue.iter().map(|relation| relation.bytes).sum::<u64>();
    let queue = Mutex::new(queue);
    let mut clients = vec![client];
    while clients.len() < jobs {
        clients.push(server.connect(name).await?);
    }
    let read = clients.iter().map(|client| read_relations(client, &queue, prewarm.as_deref()));
    for fault in join_all(read).await.into_iter().flatten() {
        progress.faults.add(format!("database {quoted}, {fault}"));
    }
    Ok(())
}

/// The schema of the function that reads indexes, if there is one to be had.
async fn prewarm(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    if client.batch_execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm").await.is_err() {
        return Ok(None);
    }
    Ok(rows::<1>(client, PREWARM).await?.pop().map(|[schema]| schema))
}

/// Takes relations from the queue until it is empty; returns the faults.
async fn read_relations(client: &Client, queue: &Mutex<VecDeque<Relation>>, prewarm: Option<&str>) -> Vec<String> {
    let mut faults = Vec::new();
    if let Err(error) = client.batch_execute(SETTINGS).await {
        return vec![format!("settings: {}", said(&error))];
    }
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(relation) = next else { return faults };
        if let Err(error) = client.batch_execute(&statement(&relation, prewarm)).await {
            faults.push(format!("{}: {}", relation.name, said(&error)));
            if client.is_closed() {
                // The server has died of it; what is left cannot be read.
                return faults;
            }
        }
    }
}

fn statement(relation: &Relation, prewarm: Option<&str>) -> String {
    let Relation { kind, oid, name, .. } = relation;
    match (kind, prewarm) {
        ('r', _) => format!("COPY {name} TO '/dev/null'"),
        ('m', _) => format!("COPY (SELECT * FROM {name}) TO '/dev/null'"),
        ('i', Some(schema)) => format!("SELECT {schema}.pg_prewarm({oid}::regclass, 'buffer')"),
        ('S', _) => format!("SELECT * FROM {name}"),
        _ => format!("SELECT count(*) FROM {name}"),
    }
}

/// The rows of a query as texts; NULL is empty.
async fn rows<const N: usize>(client: &Client, sql: &str) -> Result<Vec<[String; N]>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some(std::array::from_fn(|column| row.try_get(column).ok().flatten().unwrap_or_default().to_owned()))
        }
        _ => None,
    });
    Ok(rows.collect())
}
