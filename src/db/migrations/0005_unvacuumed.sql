-- Rows deleted from the log since a VACUUM of it came to its end. A log that
-- was deleted from before this was counted is due for one.
CREATE TABLE opsward.unvacuumed (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    rows bigint NOT NULL
);
INSERT INTO opsward.unvacuumed (rows) SELECT count(*) FROM (SELECT FROM opsward.history LIMIT 1) h;
