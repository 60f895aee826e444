-- How ops reach the node, as it was last found; `since` the last change.
CREATE TABLE opsward.node (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    replication text        NOT NULL CHECK (replication IN ('peers', 'both', 'chain')),
    why         text        NOT NULL,
    since       timestamptz NOT NULL,
    looked_at   timestamptz NOT NULL
);
