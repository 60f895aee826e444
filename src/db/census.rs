//! `opsward.census` and the slices of the log that it is counted from.
