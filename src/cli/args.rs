//! The shapes that arguments of several commands come in.

use crate::values::Host;
use clap::{Arg, ArgAction, value_parser};

/// A switch: `--name`.
pub(super) fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// `--name VALUE`.
pub(super) fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

/// `--name VALUE`, one of a few words; `wrong` says which there are.
pub(super) fn choice<T: Clone + Send + Sync + 'static>(
    arg: Arg,
    parse: fn(&str) -> Option<T>,
    wrong: &'static str,
) -> Arg {
    arg.value_parser(move |text: &str| parse(text).ok_or(wrong))
}

/// `--peer URL`.
pub(super) fn peer(help: &'static str) -> Arg {
    choice(option("peer", "URL", help), Host::parse, "a peer is a URL such as https://node.example")
}

/// `--limit N`.
pub(super) fn limit(default: &'static str, help: &'static str) -> Arg {
    option("limit", "N", help).value_parser(value_parser!(i64).range(1..=100_000)).default_value(default)
}
