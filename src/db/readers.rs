//! (readers)
