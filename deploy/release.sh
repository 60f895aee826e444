#!/usr/bin/env bash
# Builds what a release consists of, in target/dist: the binary, a .deb, man pages,
# completions, an SBOM, SHA256SUMS.
#     bash deploy/release.sh
#     bash deploy/release.sh --twice    builds it anew elsewhere, and compares byte by byte
# The same sources and the same compiler give the same bytes, wherever they are built. On
# Debian 12 the binary runs on Debian 12 and anything newer.
#     SKIP_SBOM=1   without cargo-cyclonedx
# Installs what is missing of cargo-deb and cargo-cyclonedx, from source: some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

need_compiler
need_tool() { command -v "$1" >/dev/null || { say "installing $1"; cargo install --quiet --locked "$1"; }; }
need_tool cargo-deb
[ -n "${SKIP_SBOM:-}" ] || need_tool cargo-cyclonedx

# Times in what is built are the last commit's.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
export TZ=UTC LC_ALL=C
unset CARGO_TARGET_DIR
umask 022

# build: everything, from the sources in the current directory.
build() {
    # Neither this directory nor the home of whoever builds is in the binary.
    export RUSTFLAGS="--remap-path-prefix=$PWD=/opsward --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    rm -rf target/dist
    mkdir -p target/dist/man target/dist/completions
    say "building the binary"
    cargo build --release --locked --quiet --bin opsward --example man
    cp target/release/opsward target/dist/opsward
    target/release/examples/man target/dist/man
    local shell
    for shell in bash zsh fish; do
        target/release/opsward completions "$shell" >"target/dist/completions/opsward.$shell"
    done
    say "building the package"
    cargo deb --quiet --no-build --no-strip --locked --output target/dist/
    if [ -z "${SKIP_SBOM:-}" ]; then
        say "listing what is in it"
        cargo cyclonedx --quiet --format json --override-filename opsward.cdx
        mv opsward.cdx.json target/dist/
    fi
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
        -C target/dist -c man completions | gzip -n9 >target/dist/opsward-docs.tar.gz
    (cd target/dist && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS)
}

[ -z "$(git status --porcelain --untracked-files=no)" ] || say "note: there are changes that no commit has"
build
if [ "${1:-}" = --twice ]; then
    again=$(mktemp -d)
    trap 'rm -rf "$again"' EXIT
    say "building it again in $again"
    git archive HEAD | tar -x -C "$again"
    (cd "$again" && build)
    # The SBOM has a serial number of its own each time.
    diff <(grep -v cdx target/dist/SHA256SUMS) <(grep -v cdx "$again/target/dist/SHA256SUMS") ||
        fail "the second build differs"
    say "both builds are the same"
fi
say "in target/dist:"
cat target/dist/SHA256SUMS
