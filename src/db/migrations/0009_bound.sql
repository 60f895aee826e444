-- A log that was replaced (a backup put back, a TRUNCATE, another table): what
-- is remembered of the old one is forgotten.

-- What tells this log from another: its database (NULL where the role may not
-- see which), its table, and the newest op it was seen to hold.
CREATE TABLE opsward.known_log (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    database     text,
    relation     oid NOT NULL,
    newest       text COLLATE "C",
    -- Traces of the log before could not be emptied yet.
    stale_traces boolean NOT NULL DEFAULT false,
    forgotten_at timestamptz,
    why          text
);

-- The newest op of the log when our cursor of the peer was written.
ALTER TABLE opsward.cursors ADD COLUMN witness text COLLATE "C";

-- Dormant tables: up to where the log was read for a recent op, without one.
CREATE TABLE opsward.dormancy (
    table_name text PRIMARY KEY,
    read_to    text COLLATE "C" NOT NULL,
    began_at   timestamptz NOT NULL
);

-- When a VACUUM of the log last came to its end.
ALTER TABLE opsward.unvacuumed ADD COLUMN vacuumed_at timestamptz NOT NULL DEFAULT now();

-- Why the log is not the one that is remembered; NULL where it is. An op below
-- a floor may be gone. Another database that holds the newest op is a copy of
-- it, schema opsward included.
CREATE FUNCTION opsward.log_gone(database text) RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    WITH k AS (
        SELECT l.database, l.relation, greatest(l.newest, c.newest)::text COLLATE "default" AS newest
        FROM (SELECT max(witness) AS newest FROM opsward.cursors) c LEFT JOIN opsward.known_log l ON true)
    SELECT CASE
        WHEN k.relation <> 'public.ops'::regclass AND k.database IS NOT DISTINCT FROM log_gone.database
            THEN 'public.ops is another table than it was'
        WHEN k.newest IS NOT NULL
             AND NOT EXISTS (SELECT FROM public.ops o WHERE o.ulid = k.newest)
             AND NOT EXISTS (SELECT FROM opsward.floors f
                             WHERE greatest(f.floor, f.foreign_floor, f.horizon) COLLATE "C" > k.newest COLLATE "C")
            THEN 'the newest op that it held, ' || k.newest || ', is gone'
    END
    FROM k
$$;

-- Forgets the old log. Traces act below floors alone: where a dump reads them,
-- they are emptied later.
CREATE FUNCTION opsward.forget_log(why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    stale boolean := false;
BEGIN
    DELETE FROM opsward.floors;
    -- Whoever keeps an extract of the floors makes it anew.
    INSERT INTO opsward.floors (table_name, raised_at) VALUES ('', now());
    DELETE FROM opsward.floors;
    UPDATE opsward.watermark SET ulid = '';
    DELETE FROM opsward.census;
    DELETE FROM opsward.census_pass;
    DELETE FROM opsward.census_touched;
    DELETE FROM opsward.minimum_seen;
    DELETE FROM opsward.cursor_samples;
    DELETE FROM opsward.cursors;
    DELETE FROM opsward.dormancy;
    -- A swap sees by its capture and the table that it has to end.
    DELETE FROM opsward.reclaim WHERE checkpoint ->> 'mode' = 'in-place';
    BEGIN
        TRUNCATE opsward.traces;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
        stale := true;
    END;
    INSERT INTO opsward.history
        (run, task, table_name, began_at, ended_at, below, rows, bytes, bound_by, took_ms, outcome)
    VALUES ('log-' || extract(epoch FROM clock_timestamp()), 'log', '*', clock_timestamp(), clock_timestamp(),
            '', 0, 0, 'another log', 0, 'floors, traces, census and own cursors forgotten: ' || forget_log.why);
    INSERT INTO opsward.known_log AS k (relation, stale_traces, forgotten_at, why)
    VALUES ('public.ops'::regclass, stale, clock_timestamp(), forget_log.why)
    ON CONFLICT (one) DO UPDATE SET database = NULL, relation = excluded.relation, newest = NULL,
        stale_traces = excluded.stale_traces, forgotten_at = excluded.forgotten_at, why = excluded.why;
END
$$;

-- Looks whether the log is the one that is remembered, and forgets where it is
-- not: under a lock that a swap holds off. Returns why.
CREATE FUNCTION opsward.check_log(database text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    why text;
BEGIN
    IF EXISTS (SELECT FROM opsward.known_log WHERE stale_traces) THEN
        TRUNCATE opsward.traces;
        UPDATE opsward.known_log SET stale_traces = false;
    END IF;
    IF opsward.log_gone(database) IS NULL THEN
        RETURN NULL;
    END IF;
    LOCK TABLE public.ops IN ACCESS SHARE MODE;
    why := opsward.log_gone(database);
    IF why IS NOT NULL THEN
        PERFORM opsward.forget_log(why);
    END IF;
    RETURN why;
END
$$;

-- Makes the trigger's function. It stands in schema public, so that a dump of
-- that schema alone restores. Whatever goes wrong, the TRUNCATE goes on: the
-- next look finds what it missed.
CREATE FUNCTION opsward.truncation_make() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE $make$
        CREATE OR REPLACE FUNCTION public.opsward_truncation() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $truncation$
BEGIN
    -- Made by opsward; `opsward uninstall` removes it.
    IF TG_TABLE_SCHEMA = 'public' AND to_regproc('opsward.forget_log') IS NOT NULL THEN
        BEGIN
            PERFORM opsward.forget_log('public.ops was truncated');
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
    END IF;
    RETURN NULL;
END
$truncation$ $make$;
END
$$;
