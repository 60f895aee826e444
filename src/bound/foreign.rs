//! Somebody else pruned: floors that follow what was observed.
