#!/usr/bin/env bash
# Half an hour of life beside a node: see tests/soak.py. Installs and builds what is missing.
#     bash tests/soak.sh [--minutes 30] [--binary path]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh
need_postgres
case "$*" in
*--binary*) ;;
*)
    need_compiler
    cargo build --release --locked --bin opsward
    ;;
esac
exec python3 tests/soak.py "$@"
