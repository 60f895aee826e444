"""A stand-in for what opsward asks of a node: its API behind port 80, which
sends everything on to https unless a proxy says it came by https, and, as a
peer, its log. No dependencies.

    SELF   this node's host
    PEERS  hosts of the others, comma-separated
    OPS    how many ops its log holds (as a peer)
"""

import json
import os
import signal
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

SELF = os.environ.get("SELF", "http://node")
PEERS = [p for p in os.environ.get("PEERS", "").split(",") if p]
DISCOVERY = "/eth.v1.EthService/GetRegisteredEndpoints"
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
START_MS = 1_767_225_600_000  # 2026-01-01


def ulid(ms, number):
    text = ""
    for value, length in ((ms, 10), (number, 16)):
        text += "".join(CROCKFORD[(value >> (5 * i)) & 31] for i in reversed(range(length)))
    return text


def log(count):
    """Previews: a small record of a table that every node holds whole."""
    for n in range(count):
        yield {
            # No two hosts write the same one.
            "ulid": ulid(START_MS + 1000 * n, (zlib.crc32(SELF.encode()) << 32) + n),
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


LOG = list(log(int(os.environ.get("OPS", "0"))))


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
        if url.path != "/internal/crud/sweep":
            return self.answer(404)
        after = parse_qs(url.query).get("after", [""])[0]
        page = [op for op in LOG if op["ulid"] > after][:10_000]
        print("sweep", self.headers.get("User-Agent"), repr(after), len(page), flush=True)
        self.answer(200, json.dumps(page).encode())

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    # The first process of a container has no default for this one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ThreadingHTTPServer(("", 80), Handler).serve_forever()
