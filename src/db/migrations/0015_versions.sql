-- Rows that every batch writes. Under an old snapshot all versions of a row stay, and a key
-- that stays the same finds each of them. Each version has its own number instead: the row
-- is the one of the highest, which the index finds first.
ALTER TABLE opsward.reclaim DROP COLUMN one,
    ADD COLUMN n bigint PRIMARY KEY DEFAULT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
ALTER TABLE opsward.watermark DROP COLUMN one, ADD COLUMN n bigint PRIMARY KEY DEFAULT 1;
ALTER TABLE opsward.unvacuumed DROP COLUMN one, ADD COLUMN n bigint PRIMARY KEY DEFAULT 1;
