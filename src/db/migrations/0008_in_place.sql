-- What the pass of a compaction that is under way has learned so far, part by
-- part: an interrupted one goes on. There is nothing to compress in it.
CREATE TABLE opsward.reclaim_covers (
    part    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    learned bytea NOT NULL
);
ALTER TABLE opsward.reclaim_covers ALTER learned SET STORAGE EXTERNAL;
