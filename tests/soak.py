#!/usr/bin/env python3
"""Half an hour of life beside a node, and what came of it:

    bash tests/soak.sh [--minutes 30] [--binary target/release/opsward]

A private PostgreSQL 15 with a node's tables and a log of twenty days. A writer writes all
the time; three peers send ops, one of them comes and goes; a reader asks for the log;
opsward pulls, serves and prunes once a minute. After two fifths the node is upgraded under
it (to a chain node's columns, its index and its habit of updating each op), after three
fifths the disk is given back by a swap, after four fifths in place. At the end: every op
that was written and is younger than the window is there, nothing panicked, no task is
failing, no error was logged that nobody handles, and memory was flat over the last two
thirds (5 MiB either way). What it measured is written to docs/soak.log.
"""

import argparse
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "deploy/lib"))
from bed import ROOT, SELF, Bed, free_port, ulid

arguments = argparse.ArgumentParser()
arguments.add_argument("--minutes", type=float, default=30)
arguments.add_argument("--binary", default=str(ROOT / "target/release/opsward"))
arguments.add_argument("--log", default=str(ROOT / "docs/soak.log"))
given = arguments.parse_args()
OPSWARD = os.path.abspath(given.binary)
SECONDS = given.minutes * 60
DAY = 86_400_000
began = time.time()
stop = threading.Event()
lines, faults, written, asked = [], [], [], []


def say(words):
    line = f"{time.time() - began:7.0f} s  {words}"
    lines.append(line)
    print(line, flush=True)


class Peer:
    """A validator that has a log of its own, growing, and sends it."""

    def __init__(self, number):
        self.port, self.ops, self.up, self.number = free_port(), [], True, number
        self.url = f"http://127.0.0.1:{self.port}"
        peer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if not peer.up:
                    self.close_connection = True
                    return
                after = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query).get("after", [""])[0]
                body = json.dumps([op for op in list(peer.ops) if op["ulid"] > after][:2_000]).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def grow(self):
        n = len(self.ops)
        self.ops.append({
            "ulid": ulid(int(time.time() * 1000), (self.number << 40) + n), "host": self.url, "action": "create",
            "table": "audio_previews", "transient": False,
            "data": [{"cid": f"{self.url}/{n}", "SourceCID": "x" * 300, "PreviewStartSeconds": "1", "created_by": self.url,
                      "created_at": "2026-01-01T00:00:00Z"}],
        })


def main():
    bed = Bed("soak", "-c max_wal_size=512MB")
    bed.psql(
        "CREATE TABLE core_blocks (rowid bigserial, height bigint, chain_id text, hash text, proposer text, created_at timestamp);"
        " INSERT INTO core_blocks (height, chain_id, created_at) VALUES (1, 'soak', now() AT TIME ZONE 'utc')"
    )
    now = int(time.time() * 1000)
    old = bed.insert([now - 20 * DAY + i * DAY // 2_000 for i in range(38_000)])
    peers = [Peer(n) for n in range(1, 4)]
    admin, public = free_port(), free_port()
    env = bed.env(
        SIDECAR_LISTEN=f"127.0.0.1:{public}", SIDECAR_ADMIN_LISTEN=f"127.0.0.1:{admin}",
        PEERS=",".join(p.url for p in peers), SWEEP_INTERVAL="15s", OPS_RETENTION_DAYS=12, OPS_REPLAY_GUARD="true",
        OPS_RETENTION_SWEEP_INTERVAL="1m", OPS_RETENTION_READER_HOLD="0", MIN_FREE_DISK="64MiB",
    )
    chain = threading.Event()

    def forever(work, every):
        def loop():
            while not stop.is_set():
                try:
                    work()
                except Exception as error:
                    faults.append(f"{work.__name__}: {error}")
                stop.wait(every)
        threading.Thread(target=loop, daemon=True).start()

    def write():
        made = bed.insert([int(time.time() * 1000)] * 5)
        written.extend(made)
        if chain.is_set():
            names = ", ".join(f"'{u}'" for u in made)
            bed.psql(
                f"UPDATE ops SET core_tx_status = 'confirmed', core_confirmed_at = now() WHERE ulid IN ({names});"
                " UPDATE core_blocks SET height = height + 1, created_at = now() AT TIME ZONE 'utc';"
                " INSERT INTO cursors VALUES ('core_mediorum_blocks', (SELECT height::text FROM core_blocks))"
                " ON CONFLICT (host) DO UPDATE SET last_ulid = excluded.last_ulid"
            )

    def send():
        for peer in peers:
            peer.grow()

    def read():
        request = urllib.request.Request(
            f"http://127.0.0.1:{public}/internal/crud/sweep?after={old[-1]}", headers={"User-Agent": f"mediorum {peers[0].url}"}
        )
        try:
            urllib.request.urlopen(request, timeout=30).read()
            asked.append(True)
        except urllib.error.HTTPError as error:
            # Overload is answered so, and the asker comes again.
            if error.code != 503:
                raise
            asked.append(False)

    def metrics():
        text = urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=30).read().decode()
        return {m[1]: float(m[2]) for m in re.finditer(r"^([a-z_]+(?:\{[^}]*\})?) ([-0-9.e+]+)$", text, re.M)}

    def opsward(*words, expect=0):
        ran = subprocess.run([OPSWARD, *words], env=env, text=True, capture_output=True)
        said = (ran.stdout.strip().splitlines() or ran.stderr.strip().splitlines() or [""])[-1]
        say(f"opsward {' '.join(words)}: exit {ran.returncode}, {said}")
        if ran.returncode != expect:
            faults.append(f"opsward {' '.join(words)}: {ran.returncode}: {ran.stderr[-400:]}")

    log = open(bed.work / "opsward.log", "w")
    daemon = subprocess.Popen([OPSWARD, "run"], env=env, stderr=log, start_new_session=True)
    memory = []
    try:
        end = time.time() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5)
                break
            except OSError:
                if time.time() > end:
                    raise
                time.sleep(0.2)
        say(f"ready; a log of {len(old):,} ops")
        forever(write, 0.25)
        forever(send, 0.5)
        forever(read, 5)
        steps = [
            (0.40, "upgrade"), (0.60, "swap"), (0.80, "in-place"),
            *((n / 20, "come" if n % 4 == 1 else "go") for n in range(3, 20, 2)),
        ]
        steps.sort()
        while time.time() - began < SECONDS:
            passed = (time.time() - began) / SECONDS
            while steps and steps[0][0] <= passed:
                step = steps.pop(0)[1]
                if step in ("come", "go"):
                    peers[2].up = step == "come"
                    say("the third peer comes back" if peers[2].up else "the third peer goes away")
                elif step == "upgrade":
                    bed.psql(
                        "BEGIN; ALTER TABLE ops ADD COLUMN IF NOT EXISTS core_tx_hash text, ADD COLUMN IF NOT EXISTS core_tx_status text,"
                        " ADD COLUMN IF NOT EXISTS core_tx_error text, ADD COLUMN IF NOT EXISTS core_attempted_at timestamptz,"
                        " ADD COLUMN IF NOT EXISTS core_confirmed_at timestamptz; COMMIT"
                    )
                    bed.psql(
                        "CREATE INDEX CONCURRENTLY IF NOT EXISTS ops_core_pending_idx ON ops (host, core_tx_status, ulid)"
                        " WHERE core_tx_status IN ('pending', 'error')"
                    )
                    bed.psql("ALTER TABLE uploads ADD COLUMN IF NOT EXISTS user_id bigint")
                    chain.set()
                    say("the node was upgraded under it")
                else:
                    opsward("reclaim", "--policy", "window", "--mode", step, "--pace", "full", "--yes")
            found = metrics()
            resident = found["process_resident_memory_bytes"] / 2**20
            memory.append((passed, resident))
            if len(memory) % 12 == 1:
                applied, deleted = found.get("opsward_ops_applied_total", 0), sum(v for k, v in found.items() if k.startswith("opsward_rows_deleted_total"))
                on_disk = bed.number_of("SELECT pg_total_relation_size('ops')") >> 20
                say(f"{resident:.1f} MiB resident; {len(written):,} written, {applied:,.0f} pulled, {deleted:,.0f} deleted; log {on_disk} MiB")
            stop.wait(5)
        stop.set()
        time.sleep(1)
        found = metrics()
        there = set(bed.psql("SELECT ulid FROM ops").splitlines())
        lost = [u for u in written if u not in there]
        say(f"{len(written):,} ops written, {len(lost)} of them lost")
        if lost:
            faults.append(f"lost: {lost[:3]}")
        missing = [op["ulid"] for p in peers[:2] for op in p.ops if op["ulid"] < ulid(int(began * 1000 + SECONDS * 350), 0) and op["ulid"] not in there]
        say(f"of what peers sent before the upgrade {len(missing)} are missing")
        if missing:
            faults.append(f"missing: {missing[:3]}")
        for name, value in found.items():
            if name.startswith(("opsward_task_panics_total", "opsward_guard_failed_total")) and value:
                faults.append(f"{name} {value}")
        say(f"{len(asked):,} pages asked for, {asked.count(False)} answered with 503")
        if asked.count(False) * 50 > len(asked):
            faults.append("more than one page in fifty was refused")
        late = [mib for passed, mib in memory if passed > 1 / 3]
        middle = sorted(late)[len(late) // 2]
        say(f"memory over the last two thirds: {min(late):.1f} to {max(late):.1f} MiB, half of the time below {middle:.1f}")
        if max(late) - middle > 5 or middle - min(late) > 5:
            faults.append("memory was not flat")
        os.kill(daemon.pid, signal.SIGTERM)
        code = daemon.wait(35)
        say(f"SIGTERM: exit {code}")
        if code:
            faults.append(f"exit {code}")
        errors = [line for line in (bed.work / "opsward.log").read_text().splitlines() if " ERROR " in line]
        say(f"{len(errors)} lines of the log are errors")
        faults.extend(errors[:5])
    finally:
        stop.set()
        if daemon.poll() is None:
            os.killpg(daemon.pid, signal.SIGKILL)
        bed.stop()
    say("passed" if not faults else "FAILED: " + "; ".join(faults[:8]))
    pathlib.Path(given.log).write_text("\n".join(lines) + "\n")
    if faults:
        print((bed.work / "opsward.log").read_text()[-3000:], file=sys.stderr)
        raise SystemExit(1)
    bed.remove()


if __name__ == "__main__":
    main()
