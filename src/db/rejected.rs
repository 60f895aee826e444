//! (rejected)
