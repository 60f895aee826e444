# deploy/compose.yaml as it is: the first week, pulling, the node restarted and recreated.

for port in 80 443 26656 1992 9464; do
    ! (: </dev/tcp/127.0.0.1/$port) 2>/dev/null ||
        fail "port $port of this host is in use: deploy/compose.yaml publishes it"
done
directory=$work/full
mkdir -p "$directory"
cp deploy/compose.yaml tests/container/override.yaml "$directory/"
cat >"$directory/.env" <<EOF
OPENAUDIO_NODE_ENDPOINT=http://self.example
OPENAUDIO_DATA=$directory/data
EOF
files=(compose.yaml override.yaml)

admin=http://127.0.0.1:9464
sweep=http://127.0.0.1:1992/internal/crud/sweep
pulled() { is 'sql "SELECT count(*) FROM ops WHERE host LIKE '"'http://peer%'"'"' "$1"; }
# How often the second peer was asked: at all, and from the very start.
asked() { docker logs "$(container peer2)" 2>/dev/null | grep -c "^sweep"; }
asked_from_start() { docker logs "$(container peer2)" 2>/dev/null | grep -c "^sweep .* '' "; }
asked_again() { [ "$(asked)" -gt "$before" ]; }

say "the first week: read-only"
up
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
up
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
until_true 10 "it ended with 75" is died 75
until_true 60 "ready in the new network" curl -fsS -m 5 "$admin/readyz"
until_true 30 "serving in the new network" curl -fsS -m 5 -o /dev/null "$sweep?after="

say "the node's container is recreated under it"
before=$(asked)
recreate
until_true 60 "ready there" curl -fsS -m 5 "$admin/readyz"
until_true 60 "pulling there" asked_again
check "from where it was" is asked_from_start 1
check "and lost nothing" pulled 25300

say "stopped in order"
compose stop opsward 2>/dev/null
check "with exit code 0" is "inspect opsward '{{.State.ExitCode}}'" 0
check "no session is left behind" test "$(sessions)" = 0

say "out again"
check "uninstalled" once uninstall --yes
check "no schema is left behind" test "$(sql "SELECT count(*) FROM pg_namespace WHERE nspname = 'opsward'")" = 0
compose down -v -t 10 >/dev/null 2>&1
files=()
