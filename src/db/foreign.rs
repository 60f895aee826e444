//! Somebody else pruned.
