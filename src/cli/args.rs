//! The shapes that arguments of several commands come in.

use crate::values::Host;

/// Reads one of a few words; `wrong` says which there are.
pub(super) fn one_of<T: 'static>(
    parse: fn(&str) -> Option<T>,
    wrong: &'static str,
) -> impl Fn(&str) -> Result<T, &'static str> + Clone {
    move |text| parse(text).ok_or(wrong)
}

/// Reads `--peer URL`.
pub(super) fn peer(text: &str) -> Result<Host, &'static str> {
    Host::parse(text).ok_or("a peer is a URL such as https://node.example")
}
