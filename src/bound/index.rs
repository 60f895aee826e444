//! The index on the log by table and ULID.
