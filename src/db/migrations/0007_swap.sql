-- Tables without a key: with a publication for all tables, the server refuses
-- to delete from a table that has no replica identity.
ALTER TABLE opsward.captured REPLICA IDENTITY FULL;
ALTER TABLE opsward.census_touched REPLICA IDENTITY FULL;
