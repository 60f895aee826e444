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
    /// The node's rows that are other spellings of the host.
    pub ignored: Vec<IgnoredRow>,
}

/// A row of the node's `cursors` that does not count: of several spellings of
/// one host the freshest does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IgnoredRow {
    /// The host as this row spells it.
    pub host: String,
    /// The host as the row that counts spells it.
    pub counts: String,
    /// What removes it.
    pub fix: String,
}

impl IgnoredRow {
    /// What there is to say of it.
    pub fn text(&self) -> String {
        format!(
            "the row {} of cursors is ignored: {} is the same host and counts, as the freshest",
            self.host, self.counts
        )
    }
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
