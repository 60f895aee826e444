//! The shapes that arguments of several commands come in.

use crate::values::Host;

/// Reads one of a few words; `wrong` says which there are.
pub(super) fn one_of<T: 'static>(
    parse: fn(&str) -> Option<T>,
    wrong: &'static str,
) -> impl Fn(&str) -> Result<T, &'static str> + Clone {
    move |text| parse(text).ok_or(wrong)
}

/// Reads `--limit N`.
pub(super) fn limit(text: &str) -> Result<i64, &'static str> {
    let wrong = "a limit is a whole number from 1 to 100000";
    text.parse().ok().filter(|n| (1..=100_000).contains(n)).ok_or(wrong)
}

/// Reads the id of a refused op.
pub(super) fn id(text: &str) -> Result<i64, &'static str> {
    text.parse().map_err(|_| "an id is a whole number, as `opsward rejected list` shows it")
}

/// Reads `--peer URL`.
pub(super) fn peer(text: &str) -> Result<Host, &'static str> {
    Host::parse(text).ok_or("a peer is a URL such as https://node.example")
}
