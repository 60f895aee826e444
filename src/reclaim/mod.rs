//! Contract 6: giving the disk back. What of the log survives, and how the
//! rest is returned to the filesystem while the node runs.

pub mod compact;
