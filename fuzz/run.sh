#!/usr/bin/env bash
# Fuzzes everything that reads what others wrote, each target for some seconds:
#     bash fuzz/run.sh [SECONDS [TARGET...]]
# Needs a nightly compiler; installs cargo-fuzz where it is missing. What a
# target finds is left in fuzz/artifacts/, what it learned in fuzz/corpus/.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

need_compiler
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(body gzip sweep settings records)

command -v cargo-fuzz >/dev/null || cargo install --locked --quiet cargo-fuzz
cargo +nightly --version >/dev/null 2>&1 ||
    fail "missing: a nightly compiler (rustup toolchain install nightly --profile minimal)"
command -v c++ >/dev/null || install g++

# Seeds: real ops, one a file, and as a page. The leading byte chooses.
seed() {
    mkdir -p "fuzz/corpus/$1"
    cat >"fuzz/corpus/$1/$2"
}
fixtures=tests/fixtures
number=0
while IFS= read -r op; do
    number=$((number + 1))
    printf 'A[%s]' "$op" | seed body "op$number"
    printf '[%s]' "$op" | gzip -1 | seed gzip "op$number"
    data=${op#*\"data\": }
    # An update of each of the four models.
    for which in B F J N; do
        printf '%s%s' "$which" "${data%%, \"host\": *}" | seed records "op$number$which"
    done
    printf '%s' "$op" | grep -oE '[0-9A-Z]{26}|https?://[^"]*' | seed sweep "op$number" || true
done <"$fixtures/network/m1.ops.jsonl"
printf '%s\n' 'Alocalhost:5432/openaudio?sslmode=verify-full&options=-c%%20a%%3Db' 10m true 0.0.0.0:80 \
    'https://a.example,https://b.example' info | seed settings one

for target in "${targets[@]}"; do
    say "fuzzing $target for $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -max_len=8192 -print_final_stats=1
done
