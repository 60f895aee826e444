//! What is known of one peer's cursors, ours and the node's.

/// What is stored for one peer, as found: nothing is believed yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoredCursors {
    /// Our own cursor.
    pub own: Option<String>,
    /// What the node's row held when we last saw it.
    pub node_seen: Option<String>,
    /// What the node's row holds; `None` where there is no row, an empty text
    /// for NULL.
    pub node: Option<String>,
    /// In how many spellings the node's rows name the host.
    pub spellings: i64,
}

/// What to do with the node's row: decided by `pull`, carried out by `db`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeWrite {
    /// Leave it: it is as far as ours, or further.
    Leave,
    /// Set it to our cursor.
    Set,
    /// Drop our own cursor: an operator removed or emptied the node's row.
    Reset,
}
