# deploy/compose.opsward.yaml laid over an operator's own file, as README says, beside a node
# of today (STAND_IN=A: one of old): looked at, upgraded over an unfinished reclaim, the node
# recreated in the middle of one, the log reset, opsward uninstalled.

directory=$work/addition
mkdir -p "$directory/opsward/bin" "$directory/data/opsward-empty"
cp tests/container/operator.yaml "$directory/docker-compose.yml"
cp deploy/compose.opsward.yaml deploy/opsward.toml tests/container/built.yaml "$directory/"
cp Dockerfile "$directory/opsward/"
cp -r deploy "$directory/opsward/"
cp "$work"/image/bin/* "$directory/opsward/bin/"
export TEST_BASE=$tag/base TEST_BINARY=bin/before OPENAUDIO_NODE_ENDPOINT=http://self.example
settings=$directory/opsward.toml

state() { sql "SELECT checkpoint->>'phase' FROM opsward.reclaim"; }
in_state() { is state "$1"; }
all_there() {
    docker exec "$(container openaudio)" bash -c 'sort -u /data/written' >"$work/written"
    sql 'SELECT ulid FROM ops' | LC_ALL=C sort >"$work/there"
    [ -s "$work/written" ] && [ -z "$(LC_ALL=C comm -23 "$work/written" "$work/there" | head -1)" ]
}
size() { sql "SELECT pg_total_relation_size('ops')"; }
smaller() { [ "$(size)" -lt "$(($1 * 9 / 10))" ]; }
# refused COMMAND...: with the exit code that says a daemon is connected. (docker-compose 1.x
# has no `run` beside a service that shares a network and is up.)
refused() {
    local code=0
    opsward "$@" || code=$?
    [ "$code" = 4 ]
}
# What `reset` compares with is mounted: the container has no place to keep standard input.
reset() {
    printf '    $ docker compose run --rm -v …/digest.gz:/digest.gz:ro opsward reset --reference /digest.gz\n' >&2
    compose run --rm -T -v "$directory/digest.gz:/digest.gz:ro" opsward reset --reference /digest.gz --yes 2>&1 |
        sed 's/^/      /' >&2
    return "${PIPESTATUS[0]}"
}
ready() { compose exec -T opsward opsward healthcheck --ready; }
restart() {
    check "README: ${readme[3]}" typed 3
    until_true 60 "ready again" ready
}
# A reclaim that an operator began, and whose terminal is gone when it is in PHASE.
reclaim_until() {
    local phase=$1
    shift
    printf '    $ opsward reclaim %s\n' "$*" >&2
    compose exec -T opsward opsward reclaim "$@" >"$work/reclaim.log" 2>&1 &
    until_true 400 "it is in the middle of: $phase" in_state "$phase"
}

say "the node, before there is an opsward"
files=(docker-compose.yml)
up
until_true 60 "its database is there" sql "SELECT 1 FROM ops LIMIT 1"
docker exec "$(container openaudio)" python3 /stand-in/node.py fill 60000 20 |
    docker exec -i -u postgres "$(container openaudio)" \
        psql -qX -d openaudio -c 'COPY ops (ulid, host, action, "table", data) FROM STDIN'
until_true 30 "it writes" sh -c "docker exec $(container openaudio) test -s /data/written"
schema_dump >"$work/before.sql"

# What README has an operator type, in its order; -T because nobody sits at a terminal here.
mapfile -t readme < <(sed -n '/^## Beside your validator/,/^## What it touches/s/^    docker compose //p' README.md)
typed() {
    local words
    read -ra words <<<"${readme[$1]/exec/exec -T}"
    printf '    $ docker compose %s\n' "${readme[$1]}" >&2
    compose "${words[@]}" 2>&1 | tee "$work/typed.log" | grep -v -e '^Step' -e '^ --->' | sed 's/^/      /' >&2
    return "${PIPESTATUS[0]}"
}

say "ten minutes with README"
files=(docker-compose.yml compose.opsward.yaml built.yaml)
compose --profile monitoring config >"$work/config.yml"
while read -r mounted; do
    check "the profile monitoring finds ${mounted#"$directory/"}" test -f "$mounted"
done < <(grep -o "$directory/[^: ]*\.\(ya\?ml\|json\)" "$work/config.yml" | sort -u)
check "README: ${readme[0]}" typed 0
until_true 60 "ready" ready
until_true 60 "healthy, by the image's own check" healthy
until_true 60 "the log is counted" sql "SELECT 1 / count(*) FROM opsward.census"
check "README: ${readme[1]}" typed 1
check "README: ${readme[2]}" typed 2
check "status" opsward status
if [ "${STAND_IN:-C}" = C ]; then
    check "the node was recognised" eval "compose exec -T opsward opsward status --output json | grep -q '\"replication\":\"chain\"'"
fi
check "read-only: nothing of opsward outside its schema" test "$(sql "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'opsward%'")" = 0

say "let it work: a swap, and opsward is upgraded in the middle of it"
sed -i -e '/^read_only/d' -e 's/^#ops_replay_guard/ops_replay_guard/' -e 's/^#ops_retention_days.*/ops_retention_days = 16/' "$settings"
restart
was=$(size)
reclaim_until copy --policy window --mode swap --pace 1% --yes
# `git pull` in ./opsward, and the command of README again.
TEST_BINARY=bin/opsward
up --build opsward
check "it runs the new image" test "$(inspect opsward '{{index .Config.Labels "binary"}}')" = bin/opsward
until_true 60 "ready" ready
check "status" opsward status
check "the reclaim is still unfinished" test -n "$(state)"
check "gone on with, to its end" opsward reclaim --resume --pace full --yes
check "the log is smaller" smaller "$was"
check "and holds all that the node wrote" all_there

say "another one, in place, and the node is recreated in the middle of it"
sed -i 's/^ops_retention_days.*/ops_retention_days = 12/' "$settings"
restart
was=$(size)
reclaim_until move --policy window --mode in-place --pace 3% --yes
recreate
until_true 60 "ready" ready
check "status" opsward status
check "gone on with, to its end" opsward reclaim --resume --pace full --yes
check "the log is smaller" smaller "$was"
check "and holds all that the node wrote" all_there

say "reset, on the proof of another validator"
export WRITE=0
recreate
until_true 60 "ready" ready
# The other validator holds the same records in a database of its own.
docker exec -u postgres "$(container openaudio)" bash -c \
    'createdb other && pg_dump -n public openaudio | grep -v "^CREATE SCHEMA public" | psql -qX -v ON_ERROR_STOP=1 -o /dev/null other'
compose exec -T -e OPENAUDIO_NODE_ENDPOINT=http://other.example \
    -e OPENAUDIO_DB_URL=postgresql://postgres:postgres@localhost:5432/other \
    opsward opsward digest --gzip >"$directory/digest.gz"
compose stop opsward >/dev/null 2>&1
was=$(size)
check "reset" reset
check "the log is smaller" smaller "$was"

say "out again"
up
until_true 60 "ready" ready
check "a daemon is connected: refused" refused uninstall --yes
check "README: ${readme[5]}" typed 5
check "stopped in order" is "inspect opsward '{{.State.ExitCode}}'" 0
check "no session is left behind" test "$(sessions)" = 0
readme[6]="${readme[6]/run/run -T} --yes"
check "README: ${readme[6]}" typed 6
schema_dump >"$work/after.sql"
check "a dump of the schema is what it was, byte for byte" cmp "$work/before.sql" "$work/after.sql"
compose down -v -t 10 >/dev/null 2>&1
files=()
