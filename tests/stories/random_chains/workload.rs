//! What happens to a cluster between two backups, chosen at random: everything that changes, cuts, moves, empties or
//! replaces files in a way of its own.

use harness::{PostgresServer, Random};

const TABLES: usize = 6;
/// Databases that come and go. From version 15 on, each comes back under the number it had, so that files of another
/// database can stand where those of the dropped one stood.
const DATABASES: [(&str, u32); 2] = [("one", 70_001), ("two", 70_002)];

/// A change to one table, which has the columns `id int` and `v text`.
type Change = fn(&mut Random, &str) -> String;

const CHANGES: [Change; 23] = [
    insert,
    insert,
    load,
    load,
    |random, table| format!("UPDATE {table} SET v = 'u' || v WHERE id % {} = 1", 2 + random.below(900)),
    |random, table| format!("UPDATE {table} SET v = 's' WHERE id % {} = 1", 2 + random.below(20)),
    |random, table| format!("DELETE FROM {table} WHERE id % {} = 1", 2 + random.below(20)),
    cut,
    cut,
    cut,
    // Values that are stored beside the table.
    |random, table| {
        let chunks = 100 + random.below(2000);
        format!(
            "UPDATE {table} SET v = (SELECT string_agg(md5(id::text || n), '') FROM generate_series(1, {chunks}) n) \
             WHERE id % 97 = 1 AND id < 2000"
        )
    },
    |_, table| format!("TRUNCATE {table}"),
    |_, table| format!("VACUUM {table}"),
    |_, table| format!("VACUUM FREEZE {table}"),
    |_, table| format!("VACUUM FULL {table}"),
    |_, table| format!("DROP TABLE {table}"),
    // Emptied in place, since nobody else has seen it.
    |_, table| {
        format!("BEGIN; DROP TABLE {table}; {}; TRUNCATE {table}; {}; COMMIT", create(table, ""), rows(table, 700, 2))
    },
    |random, table| format!("ALTER TABLE {table} SET TABLESPACE {}", random.choose(&["ts", "pg_default"])),
    |random, table| format!("ALTER TABLE {table} SET {}", random.choose(&["LOGGED", "UNLOGGED"])),
    |_, table| format!("BEGIN; {}; ROLLBACK", rows(table, 3000, 3)),
    index,
    |_, table| format!("REINDEX TABLE {table}"),
    |_, table| format!("SELECT pg_truncate_visibility_map('{table}')"),
];

fn create(table: &str, tablespace: &str) -> String {
    format!("CREATE TABLE {table} (id int, v text) {tablespace}")
}

fn rows(table: &str, count: usize, width: usize) -> String {
    format!("INSERT INTO {table} SELECT g, repeat(md5(g::text), {width}) FROM generate_series(1, {count}) g")
}

fn insert(random: &mut Random, table: &str) -> String {
    rows(table, 1 + random.below(8000), 1 + random.below(8))
}

/// Extends by more pages than are filled; the rest is described by no WAL.
fn load(random: &mut Random, table: &str) -> String {
    let (count, text) = (50 + random.below(3000), "y".repeat(1 + random.below(600)));
    format!("COPY {table} FROM PROGRAM 'seq -f \"%.0f|{text}\" {count}' (DELIMITER '|')")
}

/// Deletes the end of the table and gives its pages back.
fn cut(random: &mut Random, table: &str) -> String {
    format!(
        "DELETE FROM {table} WHERE ctid >= format('(%s,0)', pg_relation_size('{table}') / 8192 * {} / 100)::tid; \
         VACUUM {table}",
        random.below(100)
    )
}

fn index(random: &mut Random, table: &str) -> String {
    let method =
        random.choose(&["btree (id)", "hash (id)", "gin ((ARRAY[id % 99]))", "brin (id)", "gist (point(id, 1))"]);
    format!("DROP INDEX IF EXISTS {table}_index; CREATE INDEX {table}_index ON {table} USING {method}")
}

/// What random changes need to be there.
pub(super) fn prepare(server: &PostgresServer) {
    server.psql("CREATE EXTENSION pg_visibility; CREATE SEQUENCE numbers");
    for number in 0..TABLES {
        let table = format!("t{number}");
        server.psql(&format!("{}; {}", create(&table, ""), rows(&table, 4000, 1 + number)));
    }
}

/// Makes some changes, each of which is printed.
pub(super) fn change(server: &PostgresServer, random: &mut Random, count: usize) {
    for _ in 0..count {
        match random.below(12) {
            0 | 1 => database_comes_or_goes(server, random),
            2 => act(
                server,
                "postgres",
                random.choose(&["CHECKPOINT", "VACUUM FULL pg_class", "SELECT pg_switch_wal()"]),
            ),
            3 => act(server, "postgres", "SELECT nextval('numbers') FROM generate_series(1, 100)"),
            _ => table_changes(server, random),
        }
    }
}

fn act(server: &PostgresServer, database: &str, sql: &str) {
    println!("{database}: {sql}");
    server.psql_in(database, sql);
}

fn table_changes(server: &PostgresServer, random: &mut Random) {
    let names = databases(server);
    let database = &names[random.below(names.len())];
    let table = format!("t{}", random.below(TABLES));
    let exists = server.psql_in(database, &format!("SELECT to_regclass('{table}') IS NOT NULL"));
    let sql = if exists == "t" {
        random.choose(&CHANGES)(random, &table)
    } else {
        let tablespace = random.choose(&["", "TABLESPACE ts"]);
        format!("{}; {}", create(&table, tablespace), insert(random, &table))
    };
    act(server, database, &sql);
}

/// Creates a database as a copy of the first one, moves it to another tablespace, drops it, or puts a new one into its
/// place.
fn database_comes_or_goes(server: &PostgresServer, random: &mut Random) {
    let (name, oid) = random.choose(&DATABASES);
    let options = match server.major() {
        ..15 => String::new(),
        _ => format!("STRATEGY {} OID {oid}", random.choose(&["wal_log", "file_copy"])),
    };
    let create = format!("CREATE DATABASE {name} TEMPLATE postgres {options}");
    let exists = databases(server).iter().any(|database| database == name);
    let sql = match random.below(4) {
        _ if !exists => create,
        0 => format!("DROP DATABASE {name}"),
        1 => format!("DROP DATABASE {name}; {create}"),
        _ => return database_moves(server, name, random.choose(&["ts", "pg_default"])),
    };
    act(server, "postgres", &sql);
}

/// A database of which some tables are in the other tablespace already is refused, and stays where it is.
fn database_moves(server: &PostgresServer, name: &str, tablespace: &str) {
    let sql = format!("ALTER DATABASE {name} SET TABLESPACE {tablespace}");
    println!("postgres: {sql}");
    if let Err(error) = server.try_psql(&sql) {
        assert!(error.contains("are already in tablespace"), "{error}");
    }
}

fn databases(server: &PostgresServer) -> Vec<String> {
    let names = server.psql("SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY oid");
    names.lines().map(str::to_owned).collect()
}

/// All rows that are in the WAL, as a number and a digest for each table.
pub(super) fn content(server: &PostgresServer) -> String {
    let digests = "SELECT format('SELECT %L, count(*), md5(string_agg(t::text, '''' ORDER BY t::text)) FROM %1$I t', relname) \
                   FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p' \
                   AND relnamespace = 'public'::regnamespace ORDER BY relname \\gexec\n";
    databases(server).iter().map(|database| format!("{database}:\n{}\n", server.psql_in(database, digests))).collect()
}
