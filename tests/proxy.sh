#!/usr/bin/env bash
# The proxies of deploy/proxy/, really run, against stand-ins of node and opsward:
#     bash tests/proxy.sh
# Takes caddy and nginx out of Debian's packages where they are not installed; nothing is
# installed, no service started, no port below 1024 opened.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
# shellcheck source=deploy/lib/prepare.sh
. deploy/lib/prepare.sh

work=$(mktemp -d /tmp/opsward-proxy-XXXXXX)
pids=()
cleanup() {
    local code=$?
    trap - EXIT
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    [ "$code" = 0 ] || tail -n 20 "$work"/*.log >&2
    rm -rf "$work"
    exit "$code"
}
trap cleanup EXIT

# take COMMAND PACKAGE...: the command out of packages, unpacked, not installed.
take() {
    local command=$1 package
    shift
    command -v "$command" >/dev/null && return
    say "unpacking $*"
    mkdir -p "$root/target/tools"
    (cd "$root/target/tools" && apt-get -qq download "$@" >/dev/null 2>&1 || fail "cannot be had: $*"
        for package in *.deb; do dpkg-deb -x "$package" .; done
        rm -f ./*.deb)
}
PATH=$root/target/tools/usr/sbin:$root/target/tools/usr/bin:$PATH
take caddy caddy
take nginx nginx nginx-common
export XDG_DATA_HOME=$work/data XDG_CONFIG_HOME=$work/config HOME=$work

ok() { printf '    \033[32mok\033[0m %s\n' "$*" >&2; }
is() { [ "$2" = "$3" ] || fail "$1: $2, not $3"; ok "$1"; }
until_up() {
    local end=$((SECONDS + 20))
    until curl -ksS -m 2 -o /dev/null "$1" 2>/dev/null; do
        [ "$SECONDS" -lt "$end" ] || fail "$1 does not come up"
        sleep 0.1
    done
}
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
node=$(free_port) upload=$(free_port) opsward=$(free_port) front=$(free_port)

# --- stand-ins ---------------------------------------------------------------

# The node takes HTTP/1.1 and h2c on one port, says what reached it, counts uploads.
cat >"$work/node.caddy" <<EOF
{
	admin off
	auto_https off
	servers {
		protocols h1 h2c
	}
}
http://:$node {
	handle /upload {
		reverse_proxy 127.0.0.1:$upload
	}
	handle {
		respond "node {http.request.proto} {http.request.uri} {http.request.header.X-Forwarded-Proto}"
	}
}
EOF
cat >"$work/stand_in.py" <<'EOF'
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
port, kind = int(sys.argv[1]), sys.argv[2]
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def read(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            total = 0
            while size := int(self.rfile.readline(), 16):
                total += len(self.rfile.read(size)); self.rfile.readline()
            self.rfile.readline()
            return total
        left = total = int(self.headers.get("Content-Length", "0"))
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        return total
    def say(self):
        body = (f"uploaded {self.read()}" if kind == "upload" else f"opsward {self.path}").encode()
        self.send_response(200)
        if kind == "opsward":
            self.send_header("X-Opsward-Version", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    do_GET = do_HEAD = do_POST = do_PUT = say
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
EOF
caddy run --config "$work/node.caddy" --adapter caddyfile >"$work/node.log" 2>&1 &
pids+=($!)
python3 "$work/stand_in.py" "$upload" upload >"$work/upload.log" 2>&1 &
pids+=($!)
python3 "$work/stand_in.py" "$opsward" opsward >"$work/opsward.log" 2>&1 &
opsward_pid=$!
pids+=("$opsward_pid")
until_up "http://127.0.0.1:$node/"
until_up "http://127.0.0.1:$upload/"
until_up "http://127.0.0.1:$opsward/"
head -c 300000000 /dev/zero >"$work/large"

# through NAME URL: what has to be so, with opsward there and away.
through() {
    local name=$1 url=$2
    local sweep="$url/internal/crud/sweep?after=01ABC"
    is "$name: the log comes from opsward" "$(curl -ksS "$sweep")" "opsward /internal/crud/sweep?after=01ABC"
    is "$name: and says so" "$(curl -ksSI "$sweep" | tr -d '\r' | grep -ci '^x-opsward-version: 0')" 1
    is "$name: everything else from the node" "$(curl -ksS "$url/health_check" | cut -d' ' -f1,3,4)" "node /health_check https"
    is "$name: below the log's path, too" "$(curl -ksS "$url/internal/crud/sweep/x" | cut -d' ' -f1)" node
    is "$name: gRPC reaches it as h2c" \
        "$(curl -ksS -H 'Content-Type: application/grpc' -d x "$url/eth.v1.EthService/X" | cut -d' ' -f1,2)" "node HTTP/2.0"
    is "$name: 300 MB go up" "$(curl -ksS -T "$work/large" "$url/upload")" "uploaded 300000000"
    is "$name: of unknown length, too" \
        "$(curl -ksS -T - -H 'Transfer-Encoding: chunked' "$url/upload" <"$work/large")" "uploaded 300000000"
    kill "$opsward_pid" && wait "$opsward_pid" 2>/dev/null || true
    is "$name: opsward away, the log comes from the node" "$(curl -ksS "$sweep" | cut -d' ' -f1)" node
    is "$name: again" "$(curl -ksS "$sweep" | cut -d' ' -f1)" node
    python3 "$work/stand_in.py" "$opsward" opsward >"$work/opsward.log" 2>&1 &
    opsward_pid=$!
    pids+=("$opsward_pid")
    until_up "http://127.0.0.1:$opsward/"
    local end=$((SECONDS + 30))
    until [ "$(curl -ksS "$sweep" | cut -d' ' -f1)" = opsward ]; do
        [ "$SECONDS" -lt "$end" ] || fail "$name: opsward is back and not asked"
        sleep 0.5
    done
    ok "$name: opsward back, the log comes from it again"
}
mine() { sed -e "s/openaudio:1992/127.0.0.1:$opsward/; s/openaudio:80/127.0.0.1:$node/g" "$1"; }

# --- Caddy -------------------------------------------------------------------

mine deploy/proxy/Caddyfile | sed -e "s/^validator.example {/https:\/\/localhost:$front {\n\ttls internal/" \
    -e "0,/^{/s//{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects/" >"$work/Caddyfile"
caddy validate --config "$work/Caddyfile" --adapter caddyfile >"$work/validate.log" 2>&1 || fail "the Caddyfile is not valid"
caddy run --config "$work/Caddyfile" --adapter caddyfile >"$work/caddy.log" 2>&1 &
caddy_pid=$!
pids+=("$caddy_pid")
until_up "https://localhost:$front/"
through caddy "https://localhost:$front"
kill "$caddy_pid" && wait "$caddy_pid" 2>/dev/null || true

# --- nginx -------------------------------------------------------------------

openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost \
    -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
{
    echo "daemon off; error_log stderr; pid $work/nginx.pid; events {} http { access_log off;"
    for kind in client_body proxy fastcgi uwsgi scgi; do echo "${kind}_temp_path $work/$kind;"; done
    mine deploy/proxy/nginx.conf | sed -e "s/listen 443/listen 127.0.0.1:$front/; s/validator.example/localhost/" \
        -e "s,/etc/ssl/validator.pem,$work/cert.pem,; s,/etc/ssl/validator.key,$work/key.pem,"
    echo "}"
} >"$work/nginx.conf"
nginx -c "$work/nginx.conf" -p "$work" -e stderr >"$work/nginx.log" 2>&1 &
pids+=($!)
until_up "https://localhost:$front/"
through nginx "https://localhost:$front"
say "the proxies passed in ${SECONDS} s"
