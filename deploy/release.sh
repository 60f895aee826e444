#!/usr/bin/env bash
# Builds what a release consists of, in target/dist: the binary, a .deb, man pages,
# completions, an SBOM, SHA256SUMS.
#     bash deploy/release.sh
#     bash deploy/release.sh --twice    builds it anew elsewhere, and compares byte by byte
# The same sources and the same compiler give the same bytes, wherever they are built. On
# Debian 12 the binary runs on Debian 12 and anything newer.
# Installs cargo-deb where it is missing, from source: some minutes. Where it cannot be had,
# the release is without a .deb, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

need_compiler
has_deb=1
if ! command -v cargo-deb >/dev/null; then
    say "installing cargo-deb"
    cargo install --quiet --locked cargo-deb || has_deb=
fi
say "judging what it is made of"
python3 deploy/lib/packages.py licences

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
    if [ -n "$has_deb" ]; then
        say "building the package"
        cargo deb --quiet --no-build --no-strip --locked --output target/dist/
    else
        say "there is no .deb: cargo-deb cannot be had"
    fi
    say "listing what is in it"
    python3 deploy/lib/packages.py sbom >target/dist/opsward.cdx.json
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
    diff target/dist/SHA256SUMS "$again/target/dist/SHA256SUMS" || fail "the second build differs"
    say "both builds are the same"
fi
say "in target/dist:"
cat target/dist/SHA256SUMS
