-- Own state. Hosts are in comparable form (lower case, no trailing slash).

CREATE TABLE opsward.migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     text NOT NULL,
    applied_by text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- What opsward made outside its schema, with the statement that removes it:
-- `uninstall` of any version reads this.
CREATE TABLE opsward.owned (
    kind     text NOT NULL,
    name     text NOT NULL,
    drop_sql text NOT NULL,
    made_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, name)
);

-- Every peer ever known; `active` is the last known set. A peer that
-- vanished keeps counting for a while by `last_seen`.
CREATE TABLE opsward.peers (
    host       text PRIMARY KEY,
    wallet     text NOT NULL,
    active     boolean NOT NULL,
    first_seen timestamptz NOT NULL,
    last_seen  timestamptz NOT NULL
);

-- One row once a set of peers was known, an empty one too.
CREATE TABLE opsward.peer_set (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    source     text NOT NULL,
    via        text NOT NULL,
    refreshed_at timestamptz NOT NULL
);

-- Own cursors, apart from the node's: its sweep steps over ops that fail.
-- `node_ulid` is what the node's own row held when it was last seen.
CREATE TABLE opsward.cursors (
    host       text PRIMARY KEY,
    last_ulid  text NOT NULL,
    node_ulid  text,
    updated_at timestamptz NOT NULL
);

-- What came of pulling each peer: the last attempt, and sums since the start.
CREATE TABLE opsward.pulls (
    host               text PRIMARY KEY,
    last_at            timestamptz NOT NULL,
    last_ok_at         timestamptz,
    outcome            text NOT NULL,
    detail             text NOT NULL,
    failures_in_a_row  integer NOT NULL DEFAULT 0,
    pages              bigint NOT NULL DEFAULT 0,
    applied            bigint NOT NULL DEFAULT 0,
    duplicates         bigint NOT NULL DEFAULT 0,
    rejected           bigint NOT NULL DEFAULT 0,
    rejected_unkept    bigint NOT NULL DEFAULT 0,
    gap_advances       bigint NOT NULL DEFAULT 0,
    last_gap_from      text,
    last_gap_to        text,
    last_gap_at        timestamptz
);

-- A peer whose next op cannot be understood here; the cursor stays before it.
CREATE TABLE opsward.holds (
    host       text PRIMARY KEY,
    ulid       text NOT NULL,
    table_name text NOT NULL,
    reason     text NOT NULL,
    since      timestamptz NOT NULL
);

-- Ops that were refused, whole and once.
CREATE TABLE opsward.rejected_ops (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    peer       text NOT NULL,
    ulid       text NOT NULL,
    table_name text NOT NULL,
    code       text NOT NULL,
    detail     text NOT NULL,
    op         bytea NOT NULL,
    op_sha256  bytea NOT NULL UNIQUE,
    times      bigint NOT NULL DEFAULT 1,
    first_seen timestamptz NOT NULL,
    last_seen  timestamptz NOT NULL
);
CREATE INDEX ON opsward.rejected_ops (peer);

-- Registered peers that read from here, an hour a row.
CREATE TABLE opsward.readers (
    host     text NOT NULL,
    hour     timestamptz NOT NULL,
    lowest   text,
    latest   text NOT NULL,
    requests bigint NOT NULL,
    last_at  timestamptz NOT NULL,
    PRIMARY KEY (host, hour)
);

-- Ops of a table below its floor were deleted.
CREATE TABLE opsward.floors (
    table_name text PRIMARY KEY,
    floor      text NOT NULL,
    raised_at  timestamptz NOT NULL
);

-- Below this everything was deleted: where a look for the minimum begins.
CREATE TABLE opsward.watermark (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    ulid text NOT NULL
);
INSERT INTO opsward.watermark (ulid) VALUES ('');
