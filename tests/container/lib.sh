# What the tests in containers share: a Docker, the images, compose, and words to wait with.
# Sourced, from the repository's root, by a script that sets `name`. Takes everything down
# at the end.
#     OPSWARD_BINARY=path   takes a binary that is built already
#     OPSWARD_BEFORE=path   an older binary, to upgrade from
#     KEEP_BASES=dir        keeps the two debootstrapped trees there for next time
#     KEEP_RUNNING=1        leaves all of it running, to look at
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

[ "$(id -u)" = 0 ] || fail "this needs root: it makes file systems and starts Docker"
work=$(mktemp -d "/tmp/opsward-$name-XXXXXX")
bases=${KEEP_BASES:-$work/bases}
mirror=${DEBIAN_MIRROR:-} # none: the one that debootstrap knows
tag=opsward-$name-$$
export COMPOSE_PROJECT_NAME=$tag
dockerd_pid=
# The compose files that count now, and their directory.
directory=$work files=()

exec 3>&2
cleanup() {
    local code=$?
    trap - EXIT INT TERM
    # A signal may come in the middle of a command whose output goes nowhere.
    exec 2>&3
    set +e
    if [ "$code" != 0 ] && [ ${#files[@]} != 0 ]; then
        say "what was said before it failed"
        compose ps >&2
        compose logs --no-color --tail 40 opsward openaudio >&2
    fi
    if [ -n "${KEEP_RUNNING:-}" ]; then
        say "left running: DOCKER_HOST=${DOCKER_HOST:-} COMPOSE_PROJECT_NAME=$tag in $work"
        exit "$code"
    fi
    [ ${#files[@]} = 0 ] || compose down -v -t 5 >/dev/null 2>&1
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
    [ "$code" = 0 ] && say "the $name test passed in ${SECONDS} s"
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# --- Docker and compose --------------------------------------------------------

plugin() { docker compose version >/dev/null 2>&1; }
# The command that `compose` runs, for another program.
compose_command() {
    local command=(docker-compose) file
    plugin && command=(docker compose)
    command+=(--project-directory "$directory")
    for file in "${files[@]}"; do command+=(-f "$directory/$file"); done
    echo "${command[*]}"
}
compose() {
    local command
    read -ra command <<<"$(compose_command)"
    "${command[@]}" "$@"
}
# up SERVICE...: what it says is shown only where it fails.
up() { compose up -d "$@" >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; fail "compose up failed"; }; }

start_docker() {
    local missing=()
    command -v dockerd >/dev/null || missing+=(docker.io)
    plugin || command -v docker-compose >/dev/null || missing+=(docker-compose)
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    command -v curl >/dev/null || missing+=(curl)
    [ ${#missing[@]} = 0 ] || install "${missing[@]}"
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

# --- images ----------------------------------------------------------------------

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
# build IMAGE DIRECTORY OPTION...
build() {
    local image=$1 from=$2
    shift 2
    docker build -q "$@" -t "$tag/$image" "$from" >"$work/build.log" 2>&1 ||
        { cat "$work/build.log" >&2; fail "the image $image does not build"; }
}
# The images `opsward` and `node`.
build_images() {
    local binary=${OPSWARD_BINARY:-}
    if [ -z "$binary" ]; then
        need_compiler
        say "building the release binary"
        cargo build --release --locked --bin opsward
        binary=${CARGO_TARGET_DIR:-target}/release/opsward
    fi
    base base ca-certificates
    base node-base postgresql-15,locales,python3-minimal,python3
    say "building the images"
    mkdir -p "$work/image/bin" "$work/node"
    cp "$binary" "$work/image/bin/opsward"
    cp "${OPSWARD_BEFORE:-$binary}" "$work/image/bin/before"
    cp Dockerfile "$work/image/"
    export DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0
    build opsward "$work/image" --target prebuilt --build-arg "BASE=$tag/base" --build-arg BINARY=bin/opsward
    cp tests/container/node.* tests/container/upgrade.sql tests/fixtures/node-schema.sql "$work/node/"
    build node "$work/node" -f tests/container/Dockerfile --build-arg "BASE=$tag/node-base"
    export TEST_NODE_IMAGE=$tag/node TEST_OPSWARD_IMAGE=$tag/opsward
}

# --- words -------------------------------------------------------------------------

ok() { printf '    \033[32mok\033[0m %s\n' "$*" >&2; }
container() { compose ps -q -a "$1" 2>/dev/null || compose ps -q "$1"; }
inspect() { docker inspect -f "$2" "$(container "$1")"; }
sql() { docker exec -i -u postgres "$(container openaudio)" psql -d openaudio -qtA -c "$1"; }

# until_true SECONDS WHAT COMMAND...: waits for a command to succeed.
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
is() { [ "$(eval "$1" 2>/dev/null)" = "$2" ]; }
# The body goes to the end even where grep has found what it looks for.
has() { [ "$(curl -fsS -m 5 "$1" | grep -c -- "$2")" -gt 0 ]; }
healthy() { is "inspect opsward '{{.State.Health.Status}}'" healthy; }
same_network() {
    is "inspect opsward '{{.HostConfig.NetworkMode}}'" "container:$(inspect openaudio '{{.Id}}')" &&
        is "inspect opsward '{{.State.Status}}'" running
}
# The exit code of opsward's last death: the container's own state is of the life after.
died() {
    docker events --since 10m --until 0s --filter "container=$(container opsward)" \
        --filter event=die --format '{{.Actor.Attributes.exitCode}}' | tail -1
}
stopped() { is "inspect opsward '{{.State.Status}}'" exited && [ "$(died)" = 75 ]; }
sessions() { sql "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'opsward%'"; }
# What an operator types, and its output, read by whoever looks at this test's.
opsward() {
    printf '    $ opsward %s\n' "$*" >&2
    compose exec -T opsward opsward "$@" 2>&1 | sed 's/^/      /' >&2
    return "${PIPESTATUS[0]}"
}
once() {
    printf '    $ docker compose run --rm opsward %s\n' "$*" >&2
    compose run --rm -T opsward "$@" 2>&1 | sed 's/^/      /' >&2
    return "${PIPESTATUS[0]}"
}
# The node's container is recreated, as an updater does it, and opsward after it.
recreate() {
    local old
    old=$(container openaudio)
    RECREATED=$((${RECREATED:-1} + 1))
    export RECREATED
    up --no-deps openaudio
    check "the node's container is another one" test "$(container openaudio)" != "$old"
    until_true 60 "opsward ended with 75" stopped
    # What is told to the operator of docker-compose 1.x; of version 2 the second command
    # alone does.
    plugin || compose rm -sf opsward >/dev/null 2>&1
    up
    until_true 60 "opsward is in the new container's network" same_network
}
schema_dump() {
    docker exec -u postgres "$(container openaudio)" pg_dump --schema-only openaudio |
        sed '/^\\\(un\)\?restrict /d'
}
