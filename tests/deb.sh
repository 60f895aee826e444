#!/usr/bin/env bash
# The package, really installed and run, in a Debian of its own:
#     bash tests/deb.sh            takes target/dist/opsward_*.deb, or builds it
#     DEB=path bash tests/deb.sh
# As root; installs debootstrap where it is missing. KEEP_BASES=dir keeps the tree.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

[ "$(id -u)" = 0 ] || fail "this needs root: it makes a file system"
need_postgres
command -v debootstrap >/dev/null || install debootstrap
work=$(mktemp -d /tmp/opsward-deb-XXXXXX)
bases=${KEEP_BASES:-$work}
tree=$work/tree
port=$((20000 + $$ % 20000))
bin=/usr/lib/postgresql/15/bin
as_postgres() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }
running=
cleanup() {
    local code=$?
    trap - EXIT
    [ -z "$running" ] || kill -9 "$running" 2>/dev/null || true
    as_postgres "$bin/pg_ctl" -D "$work/data" -s -m immediate stop 2>/dev/null || true
    umount "$tree/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
    exit "$code"
}
trap cleanup EXIT
ok() { printf '    \033[32mok\033[0m %s\n' "$*" >&2; }
is() { [ "$2" = "$3" ] || fail "$1: $2, not $3"; ok "$1"; }

deb=${DEB:-$(find target/dist -name 'opsward_*.deb' 2>/dev/null | head -1)}
[ -n "$deb" ] || { bash deploy/release.sh && deb=$(find target/dist -name 'opsward_*.deb' | head -1); }

say "a Debian of its own"
if [ ! -f "$bases/deb-base.done" ]; then
    mkdir -p "$bases"
    debootstrap --variant=minbase --include=ca-certificates bookworm "$bases/deb-base" \
        ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$work/debootstrap.log" 2>&1 ||
        { tail -5 "$work/debootstrap.log" >&2; fail "debootstrap failed"; }
    touch "$bases/deb-base.done"
fi
cp -a "$bases/deb-base" "$tree"
mount -t proc proc "$tree/proc"
cp "$deb" "$tree/tmp/opsward.deb"
inside() { chroot "$tree" "$@"; }

say "installed"
inside dpkg -i /tmp/opsward.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg -i"; }
ok "dpkg -i, with nothing missing"
is "it starts nothing" "$(inside sh -c 'ls /etc/systemd/system/multi-user.target.wants 2>/dev/null' | grep -c opsward || true)" 0
for file in /usr/bin/opsward /etc/opsward/opsward.toml /lib/systemd/system/opsward.service \
    /usr/share/bash-completion/completions/opsward /usr/share/doc/opsward/copyright; do
    [ -e "$tree$file" ] || [ -e "$tree/usr$file" ] || fail "it has no $file"
    ok "$file"
done
[ -n "$(find "$tree/usr/share/man/man1" -name 'opsward-reclaim.1*' 2>/dev/null)" ] ||
    grep -q 'path-exclude=/usr/share/man' -r "$tree/etc/dpkg" || fail "it has no man pages"
inside dpkg --verify opsward
ok "every file is as it was packed"
is "the settings are the operator's" "$(inside cat /var/lib/dpkg/info/opsward.conffiles)" /etc/opsward/opsward.toml

say "run as the unit runs it"
mkdir "$work/data" && chown postgres "$work" "$work/data" && chmod 755 "$work"
as_postgres "$bin/initdb" -D "$work/data" --encoding=UTF8 --locale=en_US.UTF-8 -A trust >/dev/null
(cd / && as_postgres "$bin/pg_ctl" -D "$work/data" -s -w -l "$work/data/log" \
    -o "-p $port -k $work/data -c listen_addresses=127.0.0.1" start)
psql -qX -h 127.0.0.1 -p "$port" -U postgres -c "CREATE DATABASE openaudio"
psql -qX -h 127.0.0.1 -p "$port" -U postgres -d openaudio -o /dev/null -f tests/fixtures/node-schema.sql
cat >"$tree/etc/opsward/opsward.toml" <<EOF
db_url = "postgresql://postgres@127.0.0.1:$port/openaudio"
node_endpoint = "https://me.example"
peers = "none"
listen = "127.0.0.1:$((port + 1))"
admin_listen = "127.0.0.1:$((port + 2))"
EOF
start=$(sed -n 's/^ExecStart=//p' "$tree"/lib/systemd/system/opsward.service)
# As a user without a name, without capabilities, as DynamicUser= has it.
setpriv --reuid 65532 --regid 65532 --clear-groups --bounding-set -all --no-new-privs \
    chroot --userspec=65532:65532 "$tree" true 2>/dev/null || true
chroot --userspec=65532:65532 "$tree" $start 2>"$work/run.log" &
running=$!
end=$((SECONDS + 60))
until curl -fsS -m 5 "http://127.0.0.1:$((port + 2))/readyz" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { cat "$work/run.log" >&2; fail "it is never ready"; }
    sleep 0.2
done
ok "ready"
inside opsward status >/dev/null && ok "opsward status"
kill -TERM "$running"
code=0
wait "$running" || code=$?
running=
is "SIGTERM ends it in order" "$code" 0
echo 'nonsense = 1' >>"$tree/etc/opsward/opsward.toml"
code=0
inside opsward run >/dev/null 2>&1 || code=$?
is "a mistaken setting ends it with 64, at which the unit does not try again" "$code" 64
grep -q '^RestartPreventExitStatus=64' "$tree/lib/systemd/system/opsward.service"

if command -v systemd-analyze >/dev/null; then
    # This machine's systemd judges it: the Debian above has none.
    sed 's,^ExecStart=.*,ExecStart=/bin/true run,; /^Documentation=/d' \
        "$tree/lib/systemd/system/opsward.service" >"$work/opsward.service"
    systemd-analyze verify "$work/opsward.service" >"$work/verify.log" 2>&1 ||
        { cat "$work/verify.log" >&2; fail "systemd finds fault with the unit"; }
    exposure=$(systemd-analyze security --offline=true --no-pager "$tree/lib/systemd/system/opsward.service" |
        sed -n 's/.*exposure level for.*: \([0-9.]*\).*/\1/p')
    [ -n "$exposure" ] && [ "$(echo "$exposure < 2" | bc 2>/dev/null || awk "BEGIN { print ($exposure < 2) }")" = 1 ] ||
        fail "the unit's exposure is $exposure"
    ok "the unit's exposure is $exposure of 10"
fi

say "removed"
inside dpkg -P opsward >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg -P"; }
is "nothing is left" "$(find "$tree/usr" "$tree/etc" "$tree/lib" -name '*opsward*' | wc -l)" 0
say "the package passed in ${SECONDS} s"
