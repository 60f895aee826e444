//! Writes the man pages into a directory: `cargo run --example man -- DIR`.
#![allow(clippy::panic, reason = "an example: it ends with what went wrong")]

fn main() {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| panic!("usage: man DIR"));
    clap_mangen::generate_to(opsward::cli::command(), dir).unwrap_or_else(|e| panic!("{e}"));
}
