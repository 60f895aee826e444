-- Where the node's own pruner deletes by the ULID alone, an op that comes below
-- a floor is gone from the log before anything of ours would delete it: its
-- traces are left as the guard lets it pass.

-- Leaves the traces of an op of the node's. Whoever has one of them locked is
-- not waited for: the guard lets the op pass without.
CREATE FUNCTION opsward.remember(ulid text, table_name text, data jsonb) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
    INSERT INTO opsward.traces AS t (key, ulid)
    SELECT DISTINCT k.key, remember.ulid
    FROM opsward.records(remember.data) r, opsward.trace_key(remember.table_name, r) AS k(key)
    WHERE k.key IS NOT NULL AND current_setting('opsward.applies', true) IS DISTINCT FROM 'on'
      AND NOT EXISTS (SELECT FROM opsward.node n WHERE n.replication = 'peers')
    ORDER BY k.key
    ON CONFLICT (key) DO UPDATE SET ulid = excluded.ulid WHERE t.ulid < excluded.ulid
$$;

CREATE OR REPLACE FUNCTION opsward.guard_refuses(ulid text, host text, action text, table_name text, data jsonb) RETURNS boolean
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
    IF acting IS NULL THEN
        RETURN false;
    END IF;
    IF cardinality(acting) >= jsonb_array_length(data) THEN
        PERFORM opsward.remember(ulid, table_name, data);
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
