-- What `plan` says of what stands in the way, so that `status` says the same.
ALTER TABLE opsward.blockers ADD COLUMN text text, ADD COLUMN fix text;
