//! (room serve)
