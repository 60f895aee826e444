//! One batch of a deletion, and `opsward.history`.
