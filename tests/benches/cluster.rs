//! What a database has that pgbench has not.

use harness::PostgresServer;

/// Creates small tables, of which each has several files. A transaction each: the locks on all of them would be too many.
pub(crate) fn create_small_tables(server: &PostgresServer, count: u32) {
    server.psql(&format!(
        "DO $$ BEGIN FOR n IN 1..{count} LOOP EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, name text)', n); \
         EXECUTE format('INSERT INTO small_%s SELECT m, md5(m::text) FROM generate_series(1, 100) m', n); COMMIT; \
         END LOOP; END $$"
    ));
}
