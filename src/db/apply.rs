//! (apply)
