-- When what stands in the way was last seen to.
ALTER TABLE opsward.blockers ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now();
