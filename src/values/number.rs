//! Numbers as Postgres and Prometheus take them.

/// A count as `i64`; one that does not fit becomes `i64::MAX`.
pub fn signed<N: TryInto<i64>>(n: N) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}
