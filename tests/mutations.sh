#!/usr/bin/env bash
# Breaks the reclaim in ways that would lose something, one at a time, and
# makes sure that a test notices each:
#     bash tests/mutations.sh [NAME...]
# Each of tests/mutations/NAME.patch says what it breaks and which tests are to
# fail. Every one is applied to a fresh copy of the tree, built and run; first
# the tests have to pass on the tree as it is. Ends with 1 if a mutation
# survived, no longer applies, or does not build. What the tests said is kept
# in target/mutations/log.NAME. Not part of the ordinary run:
# the 43 take 15 minutes on two cores. Left out, since
# it changes nothing here: the guard on the new table before the last replay (it
# asks public.ops, where the op still is).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

need_compiler
need_postgres
repo=$PWD
# A target of its own: the dependencies are built once, the rest anew each time.
export CARGO_TARGET_DIR="${MUTATIONS_TARGET_DIR:-$repo/target/mutations}"
export RUST_BACKTRACE=0 CARGO_TERM_COLOR=never
mkdir -p "$CARGO_TARGET_DIR"
# The same place each time, or nothing could be built incrementally.
tree=$CARGO_TARGET_DIR/tree
log=$CARGO_TARGET_DIR/log.none
exec 9>"$CARGO_TARGET_DIR/lock"
flock -n 9 || fail "another run is at work in $CARGO_TARGET_DIR"
trap 'rm -rf "$tree"' EXIT

# Files get the time of now: cargo must not take the last mutation's build for
# this one's.
fresh_tree() {
    rm -rf "$tree"
    mkdir "$tree"
    git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
        tar --null --files-from=- --create | tar --extract --touch -C "$tree"
}

tests_of() { sed -n 's/^test: //p; /^diff /q' "tests/mutations/$1.patch"; }

# Inside of a repository git leaves out, without a word, what is not its own.
mutate() {
    (cd "$tree" && GIT_CEILING_DIRECTORIES=$CARGO_TARGET_DIR git apply "$repo/tests/mutations/$1.patch") 2>"$log" &&
        ! diff -rq src "$tree/src" >"$log"
}

build() { (cd "$tree" && cargo test --locked --quiet --test it --no-run) >"$log" 2>&1; }

# What hangs is stopped in the end, and counts as noticed.
limit=120
run() { (cd "$tree" && timeout --kill-after=30 "$limit" cargo test --locked --test it -- --exact "$@") >"$log" 2>&1; }

# How many tests the last run had, whatever came of them.
ran() { sed -n 's/^running \([0-9]*\) tests\?$/\1/p' "$log" | tail -1; }

names=("$@")
if [ ${#names[@]} = 0 ]; then
    for patch in tests/mutations/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi
for name in "${names[@]}"; do [ -e "tests/mutations/$name.patch" ] || fail "there is no tests/mutations/$name.patch"; done

say "the tests on the tree as it is"
fresh_tree
build || { cat "$log"; fail "the tree does not build"; }
mapfile -t all < <(for name in "${names[@]}"; do tests_of "$name"; done | sort -u)
limit=900 run "${all[@]}" || { cat "$log"; fail "a test fails without any mutation"; }
[ "$(ran)" = "${#all[@]}" ] || fail "of ${#all[@]} tests named there are only $(ran): ${all[*]}"

bad=0
for name in "${names[@]}"; do
    fresh_tree
    log=$CARGO_TARGET_DIR/log.$name
    mapfile -t tests < <(tests_of "$name")
    if ! mutate "$name"; then
        verdict="NO LONGER APPLIES: $(head -1 "$log")"
    elif ! build; then
        verdict="DOES NOT BUILD: $(grep -m1 '^error' "$log")"
    elif run "${tests[@]}"; then
        verdict=SURVIVED
    else
        caught=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log" | paste -sd' ')
        [ -n "$caught" ] || caught="${tests[*]} (did not end)"
        verdict="caught by $caught"
    fi
    printf '%-28s %s\n' "$name" "$verdict"
    case $verdict in caught*) ;; *) bad=$((bad + 1)) ;; esac
done
say "${#names[@]} mutations in $((SECONDS / 60)) min $((SECONDS % 60)) s, $bad not caught"
[ "$bad" = 0 ]
