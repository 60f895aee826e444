-- What a reclaim remembers while it is under way; no row, none is.
CREATE TABLE opsward.reclaim (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    checkpoint jsonb NOT NULL,
    updated_at timestamptz NOT NULL
);

-- Swap: keys of the log that were written since the capture began.
CREATE TABLE opsward.captured (
    ulid text NOT NULL
);

-- Swap: rows that were written after the survivors were fixed, and survive
-- whatever the policy says.
CREATE TABLE opsward.reclaim_kept (
    ulid text PRIMARY KEY
);

-- Swap: what compaction found that nobody needs, by range of the log.
CREATE TABLE opsward.reclaim_drops (
    pass  integer NOT NULL,
    first text NOT NULL,
    last  text NOT NULL,
    ulids text[] NOT NULL,
    PRIMARY KEY (pass, first)
);

-- 1: intact. 2: an error. 3: TRUNCATE. 4: it ended itself. 5: switched off.
-- A sequence, because it is written at once, whatever becomes of a writer's
-- transaction, and needs no space.
CREATE SEQUENCE opsward.capture_state MINVALUE 1 START 5;

-- Notes the keys that a write to the log touches. What goes wrong here is the
-- reclaim's trouble, never the writer's. Nobody attending for 24 h, or 256 MiB
-- of keys: it ends itself.
CREATE FUNCTION opsward.capture() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    state bigint;
BEGIN
    SELECT last_value INTO state FROM opsward.capture_state;
    IF state <> 1 THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM setval('opsward.capture_state', 3);
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO opsward.captured VALUES (OLD.ulid);
    END IF;
    IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND NEW.ulid <> OLD.ulid THEN
        INSERT INTO opsward.captured VALUES (NEW.ulid);
    END IF;
    -- Now and then is enough, and the clock knows no better dice.
    IF extract(microseconds FROM clock_timestamp())::bigint % 64 = 0 AND (
        pg_relation_size('opsward.captured') > 268435456
        OR NOT EXISTS (SELECT FROM opsward.reclaim
                       WHERE updated_at > clock_timestamp() - interval '24 hours')
    ) THEN
        PERFORM setval('opsward.capture_state', 4);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM setval('opsward.capture_state', 2);
    RETURN NULL;
END
$$;
