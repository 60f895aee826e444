//! The state of the database as metrics.

use crate::db::{self, Kind};
use crate::metrics::Metrics;

/// Sets the gauges. Only the series of the present state exists.
pub fn tell(metrics: &Metrics, looked: &db::Result<()>) {
    let kind = looked.as_ref().err().map(db::Error::kind);
    metrics.database_up.set(i64::from(kind.is_none_or(Kind::is_up)));
    metrics.database_state.reset();
    metrics.database_state.with_label_values(&[kind.map_or("up", word)]).set(1);
}

/// A kind's code without the prefix `database_`.
fn word(kind: Kind) -> &'static str {
    match kind.code().strip_prefix("database_") {
        None | Some("query") => "failed",
        Some(word) => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Error;

    #[test]
    fn a_lock_or_a_standby_is_not_down() {
        let metrics = Metrics::new().unwrap();
        for (error, up, state) in [
            (Error::Away("x".into()), 0, "away"),
            (Error::Denied("x".into()), 0, "denied"),
            (Error::ReadOnly("x".into()), 1, "read_only"),
            (Error::TooLong("x"), 1, "slow"),
        ] {
            tell(&metrics, &Err(error));
            assert_eq!(metrics.database_up.get(), up, "{state}");
            let text = metrics.encode().unwrap();
            let lines: Vec<&str> =
                text.lines().filter(|l| l.starts_with("opsward_database_state{")).collect();
            assert_eq!(lines, [format!("opsward_database_state{{state=\"{state}\"}} 1")]);
        }
        tell(&metrics, &Ok(()));
        assert!(metrics.encode().unwrap().contains("opsward_database_state{state=\"up\"} 1"));
    }
}
