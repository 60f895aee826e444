//! Reads what the gate decides from.
