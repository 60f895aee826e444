-- A role of its own for opsward, with exactly the rights that each level needs.
--
-- You need none of this where opsward logs in as the node does (postgres, on the node's
-- localhost): that is the default. With a role of its own, a fault in opsward can touch
-- nothing but the log and the records.
--
-- Run it in the node's database, as the database's superuser, level by level:
--
--   docker compose exec -T openaudio psql -U postgres -d openaudio <docs/roles.sql
--
-- and then tell opsward:
--
--   OPENAUDIO_DB_URL=postgresql://opsward_sidecar:PASSWORD@localhost:5432/openaudio
--
-- Leave out the levels that you do not use yet. `opsward doctor` says what is missing for
-- what is switched on. No level makes opsward a superuser, or a member of one.

-- level: week
-- The first week, OPENAUDIO_MEDIORUM_READ_ONLY=true: it reads, and keeps its own state in
-- the schema opsward.
CREATE ROLE opsward_sidecar LOGIN PASSWORD 'choose one';
GRANT CREATE ON DATABASE openaudio TO opsward_sidecar;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO opsward_sidecar;
-- To name who is waited for, and for how long.
GRANT pg_read_all_stats TO opsward_sidecar;

-- level: pull
-- Pulling writes what the node's own sweep writes.
GRANT INSERT ON public.ops TO opsward_sidecar;
GRANT INSERT, UPDATE ON public.cursors TO opsward_sidecar;
GRANT INSERT, UPDATE, DELETE ON public.uploads TO opsward_sidecar;
GRANT INSERT, UPDATE, DELETE ON public.audio_previews TO opsward_sidecar;
GRANT INSERT, UPDATE, DELETE ON public.qm_audio_analyses TO opsward_sidecar;
GRANT INSERT, UPDATE, DELETE ON public.storage_and_db_sizes TO opsward_sidecar;

-- level: bound
-- Retention and dormant cleanup lock and delete rows. Only a table's owner may VACUUM it,
-- index it, and take a trigger off again: the log gets an owner that nobody logs in as.
-- The node's own role is a superuser and goes on as before. Where the log's owner is no
-- superuser already, GRANT that role to opsward_sidecar instead of the next three lines.
CREATE ROLE opsward_log NOLOGIN;
ALTER TABLE public.ops OWNER TO opsward_log;
GRANT opsward_log TO opsward_sidecar;
-- An index is made in the table's schema.
GRANT CREATE ON SCHEMA public TO opsward_log;
-- Checkpoints while much is written, so that WAL does not fill a small volume.
GRANT pg_checkpoint TO opsward_sidecar;
-- A lock of opsward's gives way to autovacuum early.
GRANT SET ON PARAMETER deadlock_timeout TO opsward_sidecar;

-- level: reclaim
-- A swap makes the new log in the schema opsward, and gives it to the log's owner. That
-- schema is there once opsward has run.
GRANT CREATE ON SCHEMA opsward TO opsward_log;

-- To take all of it back, after `opsward uninstall`:
--   ALTER TABLE public.ops OWNER TO postgres;
--   DROP OWNED BY opsward_sidecar, opsward_log;
--   REVOKE SET ON PARAMETER deadlock_timeout FROM opsward_sidecar;
--   DROP ROLE opsward_sidecar, opsward_log;
