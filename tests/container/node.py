"""A stand-in for what opsward asks of a node: its API behind port 80, which
sends everything on to https unless a proxy says it came by https, and, as a
peer, its log. No dependencies.

    SELF      this node's host
    PEERS     hosts of the others, comma-separated
    OPS       how many old ops its log holds (as a peer)
    GROW      how many ops a second its log grows by (as a peer), since BORN (ms)
    STAND_IN  A, or C: no sweep, and a block a second
    WRITE     how many ops a second it writes into its own database; the ULID of each
              that was committed stands in /data/written

    python3 node.py fill N DAYS   prints N ops of that many days, for COPY
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

SELF = os.environ.get("SELF", "http://node")
PEERS = [p for p in os.environ.get("PEERS", "").split(",") if p]
GROW = int(os.environ.get("GROW", "0"))
BORN = int(os.environ.get("BORN") or "0")
CHAIN = os.environ.get("STAND_IN", "A") == "C"
WRITE = int(os.environ.get("WRITE") or "0")
DISCOVERY = "/eth.v1.EthService/GetRegisteredEndpoints"
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
START_MS = 1_767_225_600_000  # 2026-01-01


def ulid(ms, number):
    text = ""
    for value, length in ((ms, 10), (number, 16)):
        text += "".join(CROCKFORD[(value >> (5 * i)) & 31] for i in reversed(range(length)))
    return text


def op(ms, n):
    """A preview: a small record of a table that every node holds whole."""
    return {
        # No two hosts write the same one.
        "ulid": ulid(ms, (zlib.crc32(SELF.encode()) << 32) + n),
        "host": SELF,
        "action": "create",
        "table": "audio_previews",
        "data": [
            {
                "cid": f"{SELF}/{n}",
                "SourceCID": f"source {n}",
                "PreviewStartSeconds": "12.5",
                "created_by": SELF,
                "created_at": "2026-01-01T00:00:00.123456789Z",
            }
        ],
        "transient": False,
    }


LOG = [op(START_MS + 1000 * n, n) for n in range(int(os.environ.get("OPS", "0")))]


def log():
    """What a peer has by now; the same after it was restarted."""
    if GROW:
        n = len(LOG)
        while (ms := BORN + n * 1000 // GROW) <= time.time() * 1000:
            LOG.append(op(ms, 1_000_000 + n))
            n += 1
    return LOG


def live():
    """The node's own writes and the chain's, in a session that nobody else uses."""
    command = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
    command += ["psql", "-qtAX", "-v", "ON_ERROR_STOP=1", "-d", "openaudio"]
    psql = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")

    def run(sql):
        psql.stdin.write(sql + ";\n\\echo done\n")
        psql.stdin.flush()
        for line in psql.stdout:
            if line == "done\n":
                return
        print("the node's own session ended", file=sys.stderr, flush=True)
        os._exit(1)

    written = open("/data/written", "a")
    n = int(time.time() * 1000)
    while True:
        began = time.time()
        made = [op(int(began * 1000), n + i) for i in range(WRITE)]
        n += len(made)
        for one in made:
            data, record = json.dumps(one["data"]), one["data"][0]
            columns, values = ("", "") if not CHAIN else (", core_tx_status", ", 'pending'")
            run(
                f"BEGIN; INSERT INTO ops (ulid, host, action, \"table\", data{columns}) VALUES"
                f" ('{one['ulid']}', '{SELF}', 'create', 'audio_previews', '{data}'{values});"
                f" INSERT INTO audio_previews (cid, source_c_id, preview_start_seconds, created_by, created_at)"
                f" VALUES ('{record['cid']}', '{record['SourceCID']}', '12.5', '{SELF}', now()); COMMIT"
            )
            written.write(one["ulid"] + "\n")
            written.flush()
        if CHAIN:
            names = ", ".join(f"'{one['ulid']}'" for one in made) or "''"
            run(
                f"UPDATE ops SET core_tx_status = 'confirmed', core_confirmed_at = now() WHERE ulid IN ({names});"
                " INSERT INTO core_blocks (height, chain_id, hash, proposer, created_at)"
                " SELECT coalesce(max(height), 0) + 1, 'stand-in', '', '', now() AT TIME ZONE 'utc' FROM core_blocks;"
                " INSERT INTO cursors VALUES ('core_mediorum_blocks', (SELECT max(height)::text FROM core_blocks))"
                " ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid"
            )
        time.sleep(max(0, 1 - (time.time() - began)))


def fill(count, days):
    """Ops of this host that the chain has had for long."""
    step = days * 86_400_000 // count
    first = int(time.time() * 1000) - days * 86_400_000
    for n in range(count):
        one = op(first + n * step, n)
        one["data"][0]["SourceCID"] = os.urandom(300).hex()
        print(one["ulid"], SELF, "create", "audio_previews", json.dumps(one["data"]), sep="\t")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def to_https(self):
        if self.headers.get("X-Forwarded-Proto") == "https":
            return False
        self.answer(301, Location=f"https://{self.headers.get('Host')}{self.path}")
        return True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.to_https():
            return
        path = urlparse(self.path).path
        if path != DISCOVERY or not isinstance(json.loads(body or b"null"), dict):
            return self.answer(404, b'{"code":"unimplemented"}')
        kinds = ["content-node", "Validator"]
        endpoints = [
            {
                "id": str(n),
                "owner": "0x0",
                "endpoint": host,
                "delegateWallet": f"0x{n:040x}",
                "serviceType": kinds[n % 2],
            }
            for n, host in enumerate([SELF, *PEERS])
        ]
        endpoints.append(
            {"endpoint": "http://discovery.invalid", "delegateWallet": "", "serviceType": "discovery-node"}
        )
        self.answer(200, json.dumps({"endpoints": endpoints}).encode())

    def do_GET(self):
        url = urlparse(self.path)
        if url.path != "/internal/crud/sweep" or CHAIN:
            return self.answer(404)
        after = parse_qs(url.query).get("after", [""])[0]
        page = [op for op in log() if op["ulid"] > after][:10_000]
        print("sweep", self.headers.get("User-Agent"), repr(after), len(page), flush=True)
        self.answer(200, json.dumps(page).encode())

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    if sys.argv[1:2] == ["fill"]:
        fill(*map(int, sys.argv[2:]))
        raise SystemExit
    # The first process of a container has no default for this one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if CHAIN or WRITE:
        threading.Thread(target=live, daemon=True).start()
    ThreadingHTTPServer(("", 80), Handler).serve_forever()
