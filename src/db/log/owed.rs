//! Which rows the chain has not got: nothing of ours deletes them. The one
//! place that knows; every statement that deletes, or leaves out, asks here.

use crate::values::timestamp;

/// What the columns of `ops` tell of a row and the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Owed {
    status: bool,
    confirmed: bool,
}

impl Owed {
    /// For these columns.
    pub fn of_columns<S: AsRef<str>>(columns: &[S]) -> Self {
        let has = |name: &str| columns.iter().any(|c| c.as_ref() == name);
        Self { status: has("core_tx_status"), confirmed: has("core_confirmed_at") }
    }

    /// Whether a row is owed to the chain, or was rejected by it: then it is
    /// the only record of an op that the network never got.
    pub(in crate::db) fn sql(self, prefix: &str) -> String {
        self.has_status(prefix, "'pending', 'error', 'rejected'")
    }

    fn has_status(self, prefix: &str, any_of: &str) -> String {
        match self.status {
            true => format!("coalesce({prefix}core_tx_status IN ({any_of}), false)"),
            false => "false".into(),
        }
    }

    /// Whether a row came by the chain at `from` (an expression) or later: its
    /// ULID tells when it was born, which may be weeks before.
    pub(in crate::db) fn is_late(self, prefix: &str, from: &str) -> String {
        match self.confirmed {
            true => format!("coalesce({prefix}core_confirmed_at >= {from}, false)"),
            false => "false".into(),
        }
    }

    /// Whether a row stays for the chain's sake, and leaves its traces all the same: the node's
    /// own pruner deletes it too. What the chain rejected was never anywhere else, and
    /// outdates nothing that comes by it.
    pub(in crate::db) fn stays_a_while(self, prefix: &str, from: &str) -> String {
        format!("({} OR {})", self.has_status(prefix, "'pending', 'error'"), self.is_late(prefix, from))
    }

    /// Whether a row may go by all that the chain says, where what is older
    /// than `from` goes.
    pub(in crate::db) fn may_go(self, prefix: &str, from: &str) -> String {
        match (self.status, self.confirmed) {
            (false, false) => "true".into(),
            _ => format!("NOT ({} OR {})", self.sql(prefix), self.is_late(prefix, from)),
        }
    }
}

/// A time as an expression, from milliseconds since the Unix epoch.
pub(in crate::db) fn time_sql(ms: u64) -> String {
    format!("'{}'::timestamptz", timestamp(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_are_not_there_are_not_asked() {
        let none = Owed::of_columns(&["ulid", "data"]);
        assert_eq!((none.sql("o."), none.may_go("o.", "x")), ("false".into(), "true".into()));
        let all = Owed::of_columns(&["core_tx_status", "core_confirmed_at"]);
        assert!(all.sql("o.").contains("o.core_tx_status IN ('pending', 'error', 'rejected')"));
        assert!(all.may_go("o.", "c.since").contains("o.core_confirmed_at >= c.since"));
    }

    #[test]
    fn a_time_is_one() {
        assert_eq!(time_sql(1_700_000_000_123), "'2023-11-14T22:13:20.123Z'::timestamptz");
    }
}
