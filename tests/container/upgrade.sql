-- What a node of v1.9.0 or later does at its start, whatever it was before.
SET client_min_messages = warning;
BEGIN;
ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_tx_hash text;
ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_tx_status text;
ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_tx_error text;
ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_attempted_at timestamptz;
ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_confirmed_at timestamptz;
COMMIT;
CREATE INDEX CONCURRENTLY IF NOT EXISTS ops_core_pending_idx ON ops (host, core_tx_status, ulid)
    WHERE core_tx_status IN ('pending', 'error');
ALTER TABLE uploads ADD COLUMN IF NOT EXISTS user_id bigint;
CREATE TABLE IF NOT EXISTS core_blocks (
    rowid bigserial PRIMARY KEY,
    height bigint NOT NULL,
    chain_id text NOT NULL,
    hash text NOT NULL,
    proposer text NOT NULL,
    created_at timestamp NOT NULL,
    UNIQUE (height, chain_id)
);
CREATE INDEX IF NOT EXISTS idx_core_blocks_created_at ON core_blocks (created_at);
