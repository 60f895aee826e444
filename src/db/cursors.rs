//! (cursors)
