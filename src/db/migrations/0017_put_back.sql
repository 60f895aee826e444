-- The file of public.cursors when our cursor of the peer was last written: another one, where
-- the node's tables were put back from a backup.
ALTER TABLE opsward.cursors ADD COLUMN node_file oid;
