-- Replay safety: which ops that come again still act, and the guard that
-- keeps the others out of the log.

ALTER TABLE opsward.pulls ADD COLUMN replays bigint NOT NULL DEFAULT 0;

-- Beside the minimum: a row above all that was deleted by us, its table, and
-- the newest row. Gone, the first tells of somebody else's pruning, the second
-- of a log that was put back or emptied.
ALTER TABLE opsward.minimum_seen ADD COLUMN witness text, ADD COLUMN witness_table text, ADD COLUMN newest text;

-- The beginning of the ULIDs of a time: sorts before all of them.
CREATE FUNCTION opsward.ulid_at(at timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ',
               ((extract(epoch FROM at) * 1000)::bigint >> (5 * i) & 31)::int + 1, 1), '' ORDER BY i DESC)
    FROM generate_series(0, 9) i
$$;

-- Whether a record is in its table. Times are cut to microseconds, as the node
-- does.
CREATE FUNCTION opsward.is_there(table_name text, record jsonb) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CASE table_name
        WHEN 'uploads' THEN
            RETURN EXISTS (SELECT FROM public.uploads WHERE id = opsward.field(record, 'id'));
        WHEN 'qm_audio_analyses' THEN
            RETURN EXISTS (SELECT FROM public.qm_audio_analyses WHERE cid = opsward.field(record, 'cid'));
        WHEN 'audio_previews' THEN
            RETURN EXISTS (SELECT FROM public.audio_previews WHERE cid = opsward.field(record, 'CID'));
        WHEN 'storage_and_db_sizes' THEN
            RETURN EXISTS (SELECT FROM public.storage_and_db_sizes
                WHERE host = opsward.field(record, 'Host')
                  AND logged_at = regexp_replace(opsward.field(record, 'LoggedAt'), '(\.\d{6})\d+', '\1')::timestamptz);
    END CASE;
END
$$;

-- The rule: which records, counted from 1, of an op that is not in the log
-- still act. NULL: all of them, the op lies above every floor or is none that
-- can be judged. No times of records are compared.
CREATE FUNCTION opsward.acting(ulid text, table_name text, action text, data jsonb) RETURNS integer[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ours   text;
    theirs text;
BEGIN
    SELECT greatest(f.floor, f.horizon), f.foreign_floor INTO ours, theirs
    FROM opsward.floors f WHERE f.table_name = acting.table_name;
    IF coalesce(ulid COLLATE "C" >= greatest(ours, theirs), true) OR ulid COLLATE "C" < '01GNNA1J'
       OR ulid !~ '^[0-7][0-9A-HJKMNP-TV-Z]{25}$' OR coalesce(jsonb_typeof(data) <> 'array', true)
       OR table_name NOT IN ('uploads', 'qm_audio_analyses', 'audio_previews', 'storage_and_db_sizes') THEN
        RETURN NULL;
    END IF;
    IF jsonb_array_length(data) = 0
       OR EXISTS (SELECT FROM jsonb_array_elements(data) e WHERE jsonb_typeof(e) <> 'object') THEN
        RETURN NULL;
    END IF;
    -- Its records leave no traces, and are never written again.
    IF table_name = 'storage_and_db_sizes' AND ulid COLLATE "C" < ours THEN
        RETURN '{}';
    END IF;
    -- Where somebody else pruned there are no traces: what is there may be newer.
    RETURN ARRAY(
        SELECT r.n::int FROM jsonb_array_elements(data) WITH ORDINALITY r(record, n)
        WHERE NOT EXISTS (SELECT FROM opsward.traces t
                          WHERE t.key = opsward.trace_key(acting.table_name, r.record) AND t.ulid >= acting.ulid)
          AND NOT coalesce(acting.ulid COLLATE "C" < theirs
                           AND (action = 'delete' OR opsward.is_there(acting.table_name, r.record)), false)
        ORDER BY r.n);
END
$$;

-- What the guard did, counted without a lock: refused, and passed after an error.
CREATE SEQUENCE opsward.guard_refused MINVALUE 0 START 0;
CREATE SEQUENCE opsward.guard_failed MINVALUE 0 START 0;

-- The guard: keeps an op out that would not act. Never fails the write that it
-- is asked about; whoever writes, it reads opsward's state as its owner.
CREATE FUNCTION opsward.replay_guard() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- No floor is ever within the last two hours.
    IF NEW.ulid COLLATE "C" >= opsward.ulid_at(now() - interval '1 hour') THEN
        RETURN NEW;
    END IF;
    -- Whoever is deleting this very op commits first, and its trace counts
    -- below; the write would wait for that anyway. One that is there stays.
    PERFORM FROM public.ops o WHERE o.ulid = NEW.ulid FOR KEY SHARE;
    IF NOT FOUND AND opsward.acting(NEW.ulid, NEW."table", NEW.action, NEW.data) = '{}' THEN
        PERFORM nextval('opsward.guard_refused');
        RETURN NULL;
    END IF;
    RETURN NEW;
EXCEPTION WHEN OTHERS THEN
    PERFORM nextval('opsward.guard_failed');
    RETURN NEW;
END
$$;
