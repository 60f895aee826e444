#!/usr/bin/env bash
# Installs what is missing, builds, and shows three validators converge on a
# private PostgreSQL. --keep leaves them running, with URLs to look at.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

need_compiler
need_postgres
say "building opsward and the demo (release; a few minutes the first time)"
cargo build --release --locked --quiet --bin opsward --example demo
exec "${CARGO_TARGET_DIR:-target}/release/examples/demo" "$@"
