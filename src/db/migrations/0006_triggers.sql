-- The guard's trigger function is public.opsward_replay_guard(), recorded in
-- opsward.owned: a dump of schema public alone restores and takes inserts.
-- opsward.replay_guard() serves triggers that older versions made.

-- `announced`: ops below it are about to be deleted.
ALTER TABLE opsward.floors ADD COLUMN announced text;

-- By table, the ULID below which ops were deleted or are about to be. The
-- guard's function inlines it, so an op above passes for the price of the call,
-- and only below is opsward.guard_refuses() asked. Replaced as floors rise.
CREATE FUNCTION opsward.announced(table_name text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT '' $$;

-- Whoever raises a floor announces it in the same transaction, where there is a
-- guard. Tables are those of opsward.acting(). No lock is taken that a writer of the log needs.
CREATE FUNCTION opsward.announce() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    cases CONSTANT text := $text$
        SELECT 'SELECT CASE table_name ' || string_agg(format('WHEN %L THEN %L ', t.name,
               coalesce(greatest(f.floor, f.horizon, f.foreign_floor, f.announced), '')), '' ORDER BY t.name)
               || 'ELSE '''' END'
        FROM unnest('{audio_previews,qm_audio_analyses,storage_and_db_sizes,uploads}'::text[]) AS t(name)
        LEFT JOIN opsward.floors f ON f.table_name = t.name $text$;
    body text;
BEGIN
    IF to_regprocedure('public.opsward_replay_guard()') IS NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE cases INTO body;
    IF body = (SELECT prosrc FROM pg_proc WHERE oid = 'opsward.announced(text)'::regprocedure) THEN
        RETURN NULL;
    END IF;
    -- Two at once would fail; the second makes it of what both know.
    PERFORM pg_advisory_xact_lock(hashtext('opsward.announced'));
    EXECUTE cases INTO body;
    EXECUTE format('CREATE OR REPLACE FUNCTION opsward.announced(table_name text) RETURNS text
                    LANGUAGE sql IMMUTABLE AS %L', body);
    RETURN NULL;
END
$$;
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON opsward.floors
    FOR EACH STATEMENT EXECUTE FUNCTION opsward.announce();

-- Makes the guard's function. Operators are named with their schema: it runs as
-- its owner, with whatever search_path the writer has. Whatever goes wrong, the
-- node's write goes on.
CREATE FUNCTION opsward.guard_make() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE $make$
        CREATE OR REPLACE FUNCTION public.opsward_replay_guard() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER AS $guard$
BEGIN
    -- Made by opsward; `opsward uninstall` removes it.
    IF pg_catalog.to_regproc('opsward.announced') IS NULL THEN
        RETURN NEW;
    END IF;
    IF NEW.ulid COLLATE pg_catalog."C" OPERATOR(pg_catalog.<) opsward.announced(NEW."table") THEN
        BEGIN
            IF opsward.guard_refuses(NEW.ulid, NEW.host, NEW.action, NEW."table", NEW.data) THEN
                RETURN NULL;
            END IF;
        EXCEPTION WHEN OTHERS THEN
            BEGIN
                PERFORM pg_catalog.nextval('opsward.guard_failed');
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END;
    END IF;
    RETURN NEW;
END
$guard$ $make$;
    -- Announces the floors that there are: the trigger comes without a row, too.
    UPDATE opsward.floors SET announced = announced WHERE false;
END
$$;

-- Whether the guard keeps an op out of the log: none of its records would act,
-- or only some of them. The node would apply all of them, so an op of which
-- some act is kept whole in opsward.rejected_ops, and opsward applies the rest.
-- A duplicate is never written: not a row, not a lock, not a counter.
CREATE FUNCTION opsward.guard_refuses(ulid text, host text, action text, table_name text, data jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    acting integer[] := opsward.acting(ulid, table_name, action, data);
BEGIN
    IF acting IS DISTINCT FROM '{}' THEN
        -- Waits for whoever is deleting this very op: its trace counts then.
        PERFORM FROM public.ops o WHERE o.ulid = guard_refuses.ulid FOR KEY SHARE;
        IF FOUND THEN
            RETURN false;
        END IF;
        acting := opsward.acting(ulid, table_name, action, data);
    END IF;
    IF acting IS NULL OR cardinality(acting) >= jsonb_array_length(data) THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM public.ops o WHERE o.ulid = guard_refuses.ulid) THEN
        RETURN true;
    END IF;
    IF cardinality(acting) > 0 THEN
        -- opsward applies the records that act, and none else.
        IF current_setting('opsward.applies', true) = 'on' THEN
            RETURN false;
        END IF;
        PERFORM opsward.guard_keeps(ulid, host, action, table_name, data);
    END IF;
    PERFORM nextval('opsward.guard_refused');
    RETURN true;
END
$$;

-- Keeps an op whole that acts in part, within the bounds of a peer's share in
-- opsward.rejected_ops: 1,000 ops and 64 MiB.
CREATE FUNCTION opsward.guard_keeps(ulid text, host text, action text, table_name text, data jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH op AS (
        SELECT lower(rtrim(coalesce(guard_keeps.host, ''), '/')) AS peer, convert_to(format(
            '{"ulid":%s,"host":%s,"action":%s,"table":%s,"data":%s,"transient":false}',
            to_json(guard_keeps.ulid), to_json(coalesce(guard_keeps.host, '')), to_json(guard_keeps.action),
            to_json(guard_keeps.table_name), guard_keeps.data), 'UTF8') AS bytes)
    INSERT INTO opsward.rejected_ops AS r
        (peer, ulid, table_name, code, detail, op, op_sha256, first_seen, last_seen)
    SELECT op.peer, guard_keeps.ulid, guard_keeps.table_name, 'partial_replay',
           'newer state of some of its records was deleted from the log: the replay guard kept the op from the node, and opsward applies the other records',
           op.bytes, sha256(op.bytes), now(), now()
    FROM op
    WHERE (SELECT count(*) < 1000 AND coalesce(sum(octet_length(k.op)), 0) + octet_length(op.bytes) <= 67108864
           FROM opsward.rejected_ops k WHERE k.peer = op.peer)
    ON CONFLICT (op_sha256) DO UPDATE SET times = r.times + 1, last_seen = excluded.last_seen
$$;

-- Makes the capture's function: it notes the keys that a statement wrote to the
-- log, in one statement of its own, whatever number of rows. What goes wrong is
-- the reclaim's trouble, never the writer's. Nobody attending for 24 h, or
-- 256 MiB of keys: it ends itself. opsward.capture() serves triggers that older
-- versions made.
CREATE FUNCTION opsward.capture_make() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE $make$
        CREATE OR REPLACE FUNCTION public.opsward_capture() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $capture$
DECLARE
    state bigint;
    rows bigint;
BEGIN
    -- Made by opsward for as long as a reclaim takes.
    IF to_regnamespace('opsward') IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT last_value INTO state FROM opsward.capture_state;
    IF state <> 1 THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM setval('opsward.capture_state', 3);
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO opsward.captured SELECT ulid FROM fresh;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO opsward.captured SELECT ulid FROM gone;
    ELSE
        INSERT INTO opsward.captured SELECT ulid FROM gone UNION SELECT ulid FROM fresh;
    END IF;
    GET DIAGNOSTICS rows = ROW_COUNT;
    -- Now and then is enough, and the clock knows no better dice.
    IF (rows > 64 OR rows > 0 AND extract(microseconds FROM clock_timestamp())::bigint % 64 = 0) AND (
        pg_relation_size('opsward.captured') > 268435456
        OR NOT EXISTS (SELECT FROM opsward.reclaim
                       WHERE updated_at > clock_timestamp() - interval '24 hours')
    ) THEN
        PERFORM setval('opsward.capture_state', 4);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    BEGIN
        PERFORM setval('opsward.capture_state', 2);
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
END
$capture$ $make$;
END
$$;
