//! (room show)
