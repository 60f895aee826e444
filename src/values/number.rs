//! Numbers as Postgres and Prometheus take them.

/// A count as they hold it; one that is too large is the largest.
pub fn signed<N: TryInto<i64>>(n: N) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}
