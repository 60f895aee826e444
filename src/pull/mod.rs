//! (room pull)
