#!/bin/bash
# The story of the demo, told as the commands that a user would type. Every step is checked; the first one that is
# wrong ends it. Started by run.sh in an empty directory, with PostgreSQL's and pgark's programs on the PATH.
set -euo pipefail

main() {
    configure
    title "A PostgreSQL cluster with pgark as its archive command, and a table with 100,000 rows"
    type_ initdb --username=postgres --data-checksums --auth=trust data '>initdb.log'
    append data/postgresql.conf <<CONF
listen_addresses = ''
unix_socket_directories = '$PWD'
archive_mode = on
archive_command = 'pgark-archive-command %p'
CONF
    type_ pg_ctl start --wait --silent -D data --log=server.log
    type_ psql -c "\"CREATE TABLE orders AS SELECT id, md5(id::text) AS item FROM generate_series(1, 100000) id\""

    title "A base backup while the server works"
    type_ pgark-agent backup --quiet

    title "2,345 rows more: they are in no backup, only in the archived WAL"
    type_ psql -c "\"INSERT INTO orders SELECT id, md5(id::text) FROM generate_series(100001, 102345) id\""
    local before moment
    before=$(fingerprint)
    moment=$(psql -Atc 'SELECT clock_timestamp()')
    sleep 1.5

    title "The mistake"
    type_ psql -c "'DROP TABLE orders'"
    say "$ psql -c 'SELECT count(*) FROM orders'"
    ! psql -c 'SELECT count(*) FROM orders' 2>&1 || broken "the table is still there"
    type_ psql -Atc "'SELECT pg_switch_wal()'" '>/dev/null'
    wait_for_archive

    title "What can be restored?"
    type_ pgark-restore list

    title "The plan for the moment before the mistake; nothing is touched"
    type_ pgark-restore base --target-time "\"$moment\"" --target-action promote --to restored --dry-run
    [ ! -e restored ] || broken "a dry run has made a directory"

    title "The restore"
    type_ pgark-restore base --target-time "\"$moment\"" --target-action promote --to restored --quiet
    type_ pg_verifybackup --no-parse-wal restored
    type_ pg_ctl stop --silent -D data
    type_ pg_ctl start --wait --silent -D restored --log=restored.log
    wait_for_promotion

    title "The proof"
    type_ psql -c "'SELECT count(*), max(id) FROM orders'"
    local after
    after=$(fingerprint)
    [ "$after" = "$before" ] || broken "the restored table differs: $after instead of $before"
    [ "${after%% *}" = 102345 ] || broken "there should be 102345 rows: $after"
    type_ pg_ctl stop --silent -D restored
    say
    say "All ${after%% *} rows are back, as they were at $moment; their checksum before and after: ${after#* }."
    say "That took $SECONDS seconds."
}

configure() {
    export PGHOST=$PWD PGUSER=postgres PGDATABASE=postgres PGARK_CONFIG=$PWD/config.toml
    title "The configuration of pgark"
    append config.toml <<CONF
state_dir = "$PWD/state"

[cluster]
connection = "host=$PWD user=postgres"

[[repository]]
name = "local"
url = "file://$PWD/repository"
CONF
}

say() { printf '%s\n' "$*"; }
title() { if [ -t 1 ]; then printf '\n\033[1m== %s\033[0m\n' "$*"; else printf '\n== %s\n' "$*"; fi; }
broken() {
    say "THE DEMO FAILED: $*" >&2
    exit 1
}

# Prints a command as it would be typed, and runs it.
type_() {
    say "$ $*"
    eval "$*" || broken "\`$*\` ended with exit code $?"
}

# Appends what comes in to a file, and shows it.
append() {
    say "$ cat >>$1"
    tee -a "$1"
}

fingerprint() {
    psql -Atc "SELECT count(*) || ' ' || md5(string_agg(id || item, ',' ORDER BY id)) FROM orders"
}

# A segment is in the repository when the server says that its archive command succeeded.
wait_for_archive() {
    local attempt
    for attempt in $(seq 100); do
        [ "$(psql -Atc "SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1) FROM pg_stat_archiver")" = t ] && return
        sleep 0.2
    done
    broken "the last segment did not get into the archive; see server.log: $(tail -n3 server.log)"
}

wait_for_promotion() {
    local attempt
    for attempt in $(seq 150); do
        [ "$(psql -Atc 'SELECT pg_is_in_recovery()' 2>/dev/null)" = f ] && return
        sleep 0.2
    done
    broken "the restored server did not finish its recovery: $(tail -n5 restored.log)"
}

main
