-- What bounding the log and giving its disk back remember.

-- Rows and bytes of the log by table (NULL as '') and UTC day. Rows whose ULID
-- is no plausible one stand on the day 'epoch', with '' as oldest and newest.
CREATE TABLE opsward.census (
    table_name text NOT NULL,
    day        date NOT NULL,
    rows       bigint NOT NULL,
    bytes      bigint NOT NULL,
    oldest     text COLLATE "C" NOT NULL,
    newest     text COLLATE "C" NOT NULL,
    owed       bigint NOT NULL DEFAULT 0,
    estimated  boolean NOT NULL,
    counted_at timestamptz NOT NULL,
    PRIMARY KEY (table_name, day)
);

-- Where the census stands, in a pass over all of the log and in one over the
-- days that may have changed. What was counted up to `position` of days before
-- `day` is in opsward.census; of `day` itself it is in `partial`. Ops of the
-- day `spoiled` were deleted while it was being counted: counted again later.
CREATE TABLE opsward.census_pass (
    kind          text PRIMARY KEY CHECK (kind IN ('full', 'days')),
    began_at      timestamptz NOT NULL,
    finished_at   timestamptz,
    last_finished_at timestamptz,
    position      text NOT NULL,
    day           date NOT NULL,
    until         date,
    spoiled       date,
    partial       jsonb NOT NULL,
    rows          bigint NOT NULL,
    bytes         bigint NOT NULL
);

-- Days in which ops were written late or deleted. A row a batch, without a
-- key: a mark that is not committed yet must not be lost to one that is.
CREATE TABLE opsward.census_touched (
    day date NOT NULL
);

-- One row a run and table; batches add to it in their own transaction.
CREATE TABLE opsward.history (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run        text NOT NULL,
    task       text NOT NULL,
    table_name text NOT NULL,
    began_at   timestamptz NOT NULL,
    ended_at   timestamptz NOT NULL,
    below      text NOT NULL,
    rows       bigint NOT NULL,
    bytes      bigint NOT NULL,
    traces     bigint NOT NULL DEFAULT 0,
    bound_by   text NOT NULL,
    took_ms    bigint NOT NULL,
    outcome    text NOT NULL,
    UNIQUE (run, task, table_name)
);
CREATE INDEX ON opsward.history (began_at);

-- A record some op of which was deleted, and the highest ULID that was.
-- Pages keep room for the ULID to be raised in place.
CREATE TABLE opsward.traces (
    key  uuid PRIMARY KEY,
    ulid text COLLATE "C" NOT NULL
) WITH (fillfactor = 90);

-- `floor`: deleted by us below it, with traces. `foreign_floor`: somebody else
-- pruned below it, no traces. `horizon`: compacted below it, with traces.
-- `swept`: nothing that may be deleted is left below it.
ALTER TABLE opsward.floors ALTER COLUMN floor DROP NOT NULL;
ALTER TABLE opsward.floors ADD COLUMN foreign_floor text, ADD COLUMN horizon text, ADD COLUMN swept text;

-- What the log's smallest ULID was found to be, when it changed.
CREATE TABLE opsward.minimum_seen (
    at      timestamptz PRIMARY KEY,
    minimum text,
    ours    boolean NOT NULL
);

-- The node's rows of its peers' cursors, some minutes back.
CREATE TABLE opsward.cursor_samples (
    host text NOT NULL,
    at   timestamptz NOT NULL,
    ulid text,
    PRIMARY KEY (host, at)
);

-- What stood in the way at the last decision, and since when.
CREATE TABLE opsward.blockers (
    code    text NOT NULL,
    subject text NOT NULL,
    since   timestamptz NOT NULL,
    PRIMARY KEY (code, subject)
);

-- A peer that has had nothing for us after one cursor, since when; and its
-- clock less ours at its last page.
ALTER TABLE opsward.pulls ADD COLUMN empty_since timestamptz, ADD COLUMN empty_after text,
    ADD COLUMN clock_offset_ms bigint;

-- Work that a command handed to the daemon that holds the lease.
CREATE TABLE opsward.jobs (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL,
    args         jsonb NOT NULL,
    requested_at timestamptz NOT NULL,
    started_at   timestamptz,
    finished_at  timestamptz,
    progress     jsonb,
    outcome      jsonb
);

-- The operator's word on pace; no row is gentle and not paused.
CREATE TABLE opsward.pace (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    percent   integer NOT NULL CHECK (percent BETWEEN 1 AND 100),
    paused_at timestamptz,
    set_at    timestamptz NOT NULL
);

-- A field of a record by its JSON key: exactly, or else in whatever case (of
-- ASCII: no other letter stands for one of these keys' in a node).
CREATE FUNCTION opsward.field(record jsonb, name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(record ->> name,
        (SELECT e.value FROM jsonb_each_text(record) e WHERE lower(e.key COLLATE "C") = lower(name COLLATE "C") LIMIT 1))
$$;

-- The key of a trace: 128 bits over table and primary key. NULL for tables
-- that leave no traces. A test holds the keys to those of config/models.toml.
CREATE FUNCTION opsward.trace_key(table_name text, record jsonb) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT md5(table_name || E'\n' || CASE table_name
        WHEN 'uploads' THEN opsward.field(record, 'id')
        WHEN 'qm_audio_analyses' THEN opsward.field(record, 'cid')
        WHEN 'audio_previews' THEN opsward.field(record, 'CID')
    END)::uuid
$$;

-- The records of an op; none where its data is no array of objects.
CREATE FUNCTION opsward.records(data jsonb) RETURNS SETOF jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
    SELECT e FROM jsonb_array_elements(CASE jsonb_typeof(data) WHEN 'array' THEN data ELSE '[]' END) e
    WHERE jsonb_typeof(e) = 'object'
$$;
