#!/usr/bin/env bash
# The container, really run: the image built on a base made by debootstrap,
# deploy/compose.yaml with a stand-in node and two peers, the node restarted and
# recreated under opsward. As root, on Debian; apart from the ordinary run:
#     bash tests/container.sh
# Installs what is missing (docker.io, docker-compose, debootstrap), starts a
# Docker of its own where none runs, and takes everything down again.
#     OPSWARD_BINARY=path   takes a binary that is built already
#     KEEP_BASES=dir        keeps the two debootstrapped trees there for next time
#     KEEP_RUNNING=1        leaves all of it running, to look at
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

[ "$(id -u)" = 0 ] || fail "this needs root: it makes file systems and starts Docker"
work=$(mktemp -d /tmp/opsward-container-XXXXXX)
bases=${KEEP_BASES:-$work/bases}
mirror=${DEBIAN_MIRROR:-} # none: the one that debootstrap knows
tag=opsward-test-$$
export COMPOSE_PROJECT_NAME=$tag
dockerd_pid=

exec 3>&2
cleanup() {
    local code=$?
    trap - EXIT INT TERM
    # A signal may come in the middle of a command whose output goes nowhere.
    exec 2>&3
    set +e
    if [ "$code" != 0 ] && [ -f "$work/compose.yaml" ]; then
        say "what was said before it failed"
        compose ps >&2
        compose logs --no-color --tail 40 opsward openaudio >&2
    fi
    if [ -n "${KEEP_RUNNING:-}" ]; then
        say "left running: DOCKER_HOST=${DOCKER_HOST:-} COMPOSE_PROJECT_NAME=$tag in $work"
        exit "$code"
    fi
    [ ! -f "$work/compose.yaml" ] || compose down -v -t 5 >/dev/null 2>&1
    docker rmi -f "$tag/opsward" "$tag/node" "$tag/base" "$tag/node-base" >/dev/null 2>&1
    if [ -n "$dockerd_pid" ]; then
        kill "$dockerd_pid" 2>/dev/null
        wait "$dockerd_pid" 2>/dev/null
        # What a dockerd leaves behind: its bridge, its rules, forwarding.
        ip link del docker0 2>/dev/null
        iptables-save | grep -v -e DOCKER -e docker0 |
            sed "s/^:FORWARD [A-Z]*/:FORWARD $forward_policy/" | iptables-restore
        cat "$work/forwarding" >/proc/sys/net/ipv4/ip_forward
    fi
    rm -rf --one-file-system "$work"
    [ "$code" = 0 ] && say "the container test passed in ${SECONDS} s"
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# --- what it takes -----------------------------------------------------------

has_compose() { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; }

compose() {
    local files=(--project-directory "$work" -f "$work/compose.yaml" -f "$work/override.yaml")
    if docker compose version >/dev/null 2>&1; then
        docker compose "${files[@]}" "$@"
    else
        docker-compose "${files[@]}" "$@"
    fi
}

start_docker() {
    if docker info >/dev/null 2>&1; then
        say "using the Docker that runs here"
        return
    fi
    export DOCKER_HOST=unix://$work/docker.sock
    forward_policy=$(iptables -S FORWARD 2>/dev/null | awk 'NR == 1 { print $3 }')
    forward_policy=${forward_policy:-ACCEPT}
    cat /proc/sys/net/ipv4/ip_forward >"$work/forwarding"
    # As it comes; else without what a kernel or a sandbox may not have.
    local try
    for try in "" "--storage-driver=vfs" "--storage-driver=vfs --iptables=false --ip6tables=false"; do
        say "starting a Docker of its own ${try:+($try)}"
        # shellcheck disable=SC2086
        dockerd --data-root "$work/docker" --exec-root "$work/exec" --pidfile "$work/docker.pid" \
            -H "$DOCKER_HOST" $try >"$work/dockerd.log" 2>&1 &
        dockerd_pid=$!
        while kill -0 "$dockerd_pid" 2>/dev/null; do
            docker info >/dev/null 2>&1 && return
            sleep 0.3
        done
        wait "$dockerd_pid" || true
        dockerd_pid=
    done
    tail -20 "$work/dockerd.log" >&2
    fail "dockerd does not start here"
}

# base NAME INCLUDED-PACKAGES: a minimal Debian 12 as an image.
base() {
    local tree=$bases/$1
    if [ ! -f "$tree.done" ]; then
        say "debootstrap: $1 ($2)"
        mkdir -p "$bases"
        rm -rf "$tree"
        debootstrap --variant=minbase --include="$2" bookworm "$tree" ${mirror:+"$mirror"} >"$work/debootstrap.log" 2>&1 ||
            { tail -20 "$work/debootstrap.log" >&2; fail "debootstrap failed"; }
        rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
        if [ -e "$tree/usr/share/i18n/locales/en_US" ]; then
            chroot "$tree" localedef -i en_US -f UTF-8 en_US.UTF-8
        fi
        touch "$tree.done"
    fi
    tar -C "$tree" --exclude ./proc/\* --exclude ./sys/\* --exclude ./dev/\* -c . |
        docker import - "$tag/$1" >/dev/null
}

missing=()
command -v dockerd >/dev/null || missing+=(docker.io)
has_compose || missing+=(docker-compose)
command -v debootstrap >/dev/null || missing+=(debootstrap)
command -v curl >/dev/null || missing+=(curl)
[ ${#missing[@]} = 0 ] || install "${missing[@]}"
for port in 80 443 26656 1992 9464; do
    ! (: </dev/tcp/127.0.0.1/$port) 2>/dev/null ||
        fail "port $port of this host is in use: deploy/compose.yaml publishes it"
done

binary=${OPSWARD_BINARY:-}
if [ -z "$binary" ]; then
    need_compiler
    say "building the release binary"
    cargo build --release --locked --bin opsward
    binary=${CARGO_TARGET_DIR:-target}/release/opsward
fi
start_docker

# --- images ------------------------------------------------------------------

base base ca-certificates
base node-base postgresql-15,locales,python3-minimal,python3

say "building the images"
mkdir -p "$work/image/bin" "$work/node"
cp "$binary" "$work/image/bin/opsward"
cp Dockerfile "$work/image/"
export DOCKER_BUILDKIT=0
docker build -q --target prebuilt --build-arg "BASE=$tag/base" --build-arg BINARY=bin/opsward \
    -t "$tag/opsward" "$work/image" >"$work/build.log" 2>&1 ||
    { cat "$work/build.log" >&2; fail "the image does not build"; }
cp tests/container/node.sh tests/container/node.py tests/fixtures/node-schema.sql "$work/node/"
docker build -q -f tests/container/Dockerfile --build-arg "BASE=$tag/node-base" \
    -t "$tag/node" "$work/node" >"$work/build.log" 2>&1 ||
    { cat "$work/build.log" >&2; fail "the stand-in does not build"; }

# --- the compose file, as an operator has it ---------------------------------

cp deploy/compose.yaml tests/container/override.yaml "$work/"
cat >"$work/.env" <<END
OPENAUDIO_NODE_ENDPOINT=http://self.example
OPENAUDIO_DATA=$work/data
END
export TEST_NODE_IMAGE=$tag/node TEST_OPSWARD_IMAGE=$tag/opsward

admin=http://127.0.0.1:9464
sweep=http://127.0.0.1:1992/internal/crud/sweep

ok() { printf '    \033[32mok\033[0m %s\n' "$*" >&2; }
container() { compose ps -q -a "$1" 2>/dev/null || compose ps -q "$1"; }
inspect() { docker inspect -f "$2" "$(container "$1")"; }
sql() { docker exec -i -u postgres "$(container openaudio)" psql -d openaudio -qtA -c "$1"; }

# until SECONDS WHAT COMMAND...: waits for a command to succeed.
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "it never happened: $what"
        sleep 0.2
    done
    ok "$what"
}
check() {
    local what=$1
    shift
    "$@" >/dev/null || fail "not so: $what"
    ok "$what"
}
# The body goes to the end even where grep has found what it looks for.
has() { [ "$(curl -fsS -m 5 "$1" | grep -c -- "$2")" -gt 0 ]; }
is() { [ "$(eval "$1" 2>/dev/null)" = "$2" ]; }
healthy() { is "inspect opsward '{{.State.Health.Status}}'" healthy; }
same_network() {
    is "inspect opsward '{{.HostConfig.NetworkMode}}'" "container:$(inspect openaudio '{{.Id}}')" &&
        is "inspect opsward '{{.State.Status}}'" running
}
pulled() { is 'sql "SELECT count(*) FROM ops WHERE host LIKE '"'http://peer%'"'"' "$1"; }
# How often the second peer was asked: at all, and from the very start.
asked() { docker logs "$(container peer2)" 2>/dev/null | grep -c "^sweep"; }
asked_from_start() { docker logs "$(container peer2)" 2>/dev/null | grep -c "^sweep .* '' "; }
asked_again() { [ "$(asked)" -gt "$before" ]; }
sessions() { sql "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'opsward%'"; }

say "the first week: read-only"
compose up -d 2>"$work/up.log" || { cat "$work/up.log" >&2; fail "compose up failed"; }
until_true 60 "the node's database is there" sql "SELECT 1 FROM ops LIMIT 1"
until_true 90 "ready" curl -fsS -m 5 "$admin/readyz"
until_true 60 "healthy, by the image's own check" healthy
check "alive" curl -fsS -m 5 "$admin/healthz"
check "scraped" has "$admin/metrics" '^opsward_build_info'
if command -v promtool >/dev/null; then
    curl -fsS "$admin/metrics" | promtool check metrics >"$work/promtool.log" 2>&1 ||
        { cat "$work/promtool.log" >&2; fail "promtool finds fault with the metrics"; }
    ok "promtool finds nothing"
fi
check "it sees the free disk" has "$admin/metrics" '^opsward_.*disk.*[1-9]'
check "no capability" is "docker exec $(container opsward) grep CapEff /proc/1/status" "CapEff:	0000000000000000"
check "not root" is "docker exec $(container opsward) grep Uid: /proc/1/status" "Uid:	65532	65532	65532	65532"
check "its root is read-only" is "inspect opsward '{{.HostConfig.ReadonlyRootfs}}'" true
check "the node's keys are not in sight" is "docker exec $(container opsward) ls /data 2>/dev/null; echo none" none

sql "INSERT INTO ops SELECT '01KF0000000000000000000' || lpad(n::text, 3, '0'), 'http://self.example', 'create',
     'audio_previews', '[{\"cid\":\"x\"}]' FROM generate_series(1, 25) n"
served() { is "curl -fsS -m 5 '$sweep?after=' | grep -o '\"ulid\"' | wc -l" 25; }
until_true 20 "serving the log" served
check "by its own header" is "curl -fsS -o /dev/null -D - '$sweep?after=' | grep -ci '^x-opsward-version'" 1
until_true 60 "discovered the peers, past a port that redirects" is \
    'sql "SELECT count(*) FROM opsward.peers WHERE active"' 2
check "read-only: nothing pulled" pulled 0
check "read-only: no cursor written" is 'sql "SELECT count(*) FROM cursors"' 0

say "after it: pulling"
export TEST_READ_ONLY=false
compose up -d 2>"$work/up.log" || { cat "$work/up.log" >&2; fail "compose up failed"; }
until_true 60 "ready again" curl -fsS -m 5 "$admin/readyz"
until_true 120 "both peers' logs are pulled" pulled 25300
check "their records are applied" is 'sql "SELECT count(*) FROM audio_previews"' 25300
until_true 30 "the node's cursors follow" is \
    "sql \"SELECT count(*) FROM cursors WHERE host LIKE 'http://peer%' AND last_ulid <> ''\"" 2
check "within its memory" is "inspect opsward '{{.State.OOMKilled}}'" false

check "read from the start once" is asked_from_start 1

say "the node's container is restarted under it"
before=$(inspect opsward '{{.RestartCount}}')
docker restart -t 10 "$(container openaudio)" >/dev/null
restarted() { [ "$(inspect opsward '{{.RestartCount}}')" -gt "$before" ]; }
until_true 60 "it noticed, ended, and was started again" restarted
# The exit code of its last death: the container's own state is of the life after.
died() {
    docker events --since 10m --until 0s --filter "container=$(container opsward)" \
        --filter event=die --format '{{.Actor.Attributes.exitCode}}' | tail -1
}
until_true 10 "it ended with 75" is died 75
until_true 60 "ready in the new network" curl -fsS -m 5 "$admin/readyz"
until_true 30 "serving in the new network" curl -fsS -m 5 -o /dev/null "$sweep?after="

say "the node's container is recreated under it"
old=$(container openaudio)
GENERATION=2 compose up -d openaudio 2>"$work/up.log" || { cat "$work/up.log" >&2; fail "compose up failed"; }
check "it is another container" test "$(container openaudio)" != "$old"
stopped() { is "inspect opsward '{{.State.Status}}'" exited && [ "$(died)" = 75 ]; }
until_true 60 "opsward ended with 75" stopped
before=$(asked)
# What deploy/compose.yaml tells the operator of docker-compose 1.x; of version 2
# the second command alone does.
docker compose version >/dev/null 2>&1 || compose rm -sf opsward >/dev/null 2>&1
GENERATION=2 compose up -d 2>"$work/up.log" || { cat "$work/up.log" >&2; fail "compose up failed"; }
until_true 30 "it is in the new container's network" same_network
until_true 60 "ready there" curl -fsS -m 5 "$admin/readyz"
until_true 60 "pulling there" asked_again
check "from where it was" is asked_from_start 1
check "and lost nothing" pulled 25300

say "stopped in order"
compose stop opsward 2>/dev/null
check "with exit code 0" is "inspect opsward '{{.State.ExitCode}}'" 0
check "no session is left behind" test "$(sessions)" = 0
