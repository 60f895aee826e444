#!/bin/bash
# A stand-in for the node's entrypoint: PostgreSQL 15 on localhost with the
# locale, the superuser, the password and the tables of a node, then its API.
#     STAND_IN=C   a node of today: ops come by the chain, there is no sweep
set -euo pipefail
bin=/usr/lib/postgresql/15/bin
data=/data/postgres-15
as_postgres() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }
sql() { as_postgres psql -qX -v ON_ERROR_STOP=1 -d openaudio -o /dev/null "$@"; }

mkdir -p "$data"
chown -R postgres:postgres /data
chmod 700 "$data"
fresh=
if [ ! -f "$data/PG_VERSION" ]; then
    fresh=1
    as_postgres "$bin/initdb" -D "$data" --encoding=UTF8 --locale=en_US.UTF-8 >/dev/null
fi
# A container that was killed leaves the file of a process that is no more.
rm -f "$data/postmaster.pid"
cd /
as_postgres "$bin/pg_ctl" -D "$data" -s -w -l /data/postgres.log start
if [ -n "$fresh" ]; then
    as_postgres psql -qc "ALTER USER postgres PASSWORD 'postgres'"
    # What comes by TCP has to say it, here: a wrong one would go unnoticed.
    sed -i '/^host /s/trust$/scram-sha-256/' "$data/pg_hba.conf"
    as_postgres "$bin/pg_ctl" -D "$data" -s reload
    as_postgres psql -qc "CREATE DATABASE openaudio"
    sql -f /stand-in/node-schema.sql
fi
# What a node of this generation does at each start.
[ "${STAND_IN:-A}" = A ] || sql -f /stand-in/upgrade.sql
trap 'kill %1; as_postgres "$bin/pg_ctl" -D "$data" -s -m fast stop; exit 0' TERM INT
python3 /stand-in/node.py &
wait
