#!/bin/bash
# Runs once, when the cluster is made: the role of pgark, and its way in.
set -euo pipefail
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres -v password="$PGARK_PASSWORD" <<'SQL'
CREATE ROLE pgark LOGIN REPLICATION PASSWORD :'password';
GRANT pg_read_all_settings TO pgark;
SQL
# "all" does not cover replication.
echo "host postgres,replication pgark samenet scram-sha-256" >>"$PGDATA/pg_hba.conf"
