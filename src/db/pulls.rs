//! (pulls)
