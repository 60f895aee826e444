#!/usr/bin/env bash
# All tests of the ordinary run, on a fresh machine too: installs what is
# missing (PostgreSQL 15, its locale, promtool), builds, runs. Arguments go to cargo test:
#     bash tests/run.sh --test it serve
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

need_compiler
need_postgres
need_promtool
# Only names of tests that fail and sums, unless one asks for a test.
quiet=()
[ $# -gt 0 ] || quiet=(--quiet)
# Most of the time a test waits for a server or for a clock: several run on a core.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$((3 * $(nproc)))}"
say "building and running the tests"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}" RUST_BACKTRACE="${RUST_BACKTRACE:-1}"
cargo test --locked "${quiet[@]}" "$@"
say "all tests passed in ${SECONDS} s"
