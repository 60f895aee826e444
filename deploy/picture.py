#!/usr/bin/env python3
"""Draws docs/reclaim.svg from a real run, and prints what was done as a transcript.

    python3 deploy/picture.py [path of the binary, default target/release/opsward]

On a PostgreSQL 15 of its own, in a temporary directory: a log grows for 60 days (their
ops are written in a minute), the node's own pruner deletes what is older than 30 days,
`opsward reclaim` gives the disk back, and a writer goes on all the time. Every point is
what PostgreSQL says of the files of `ops` and of the copy that becomes it.
"""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from bed import ROOT, Bed, ulid

OPSWARD = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/opsward")
DAYS, KEPT, A_DAY = 60, 30, 8_000
NOW = int(time.time() * 1000)
FIRST = NOW - DAYS * 86_400_000
bed = Bed("picture", "-c max_wal_size=2GB")


def on_disk():
    return bed.number_of(
        "SELECT coalesce(pg_total_relation_size(to_regclass('public.ops')), 0)"
        " + coalesce(pg_total_relation_size(to_regclass('opsward.ops_next')), 0)"
    )


began = time.time()
points, marks, stop = [], [], threading.Event()
# Ops that are there; each figure has one thread that changes it.
count = {"loaded": 0, "written": 0, "gone": 0}


def watch():
    while not stop.is_set():
        try:
            there = count["loaded"] + count["written"] - count["gone"]
            points.append((time.time() - began, on_disk() / 1e6, there))
        except RuntimeError:
            pass
        stop.wait(0.25)


def write():
    """The node goes on: 50 ops a second."""
    while not stop.is_set():
        count["written"] += len(bed.insert([int(time.time() * 1000)] * 25))
        stop.wait(0.5)


def mark(words):
    marks.append((time.time() - began, words))
    print(f"--- {words}, after {marks[-1][0]:.0f} s", flush=True)


def opsward(*words):
    print(f"\n$ opsward {' '.join(words)}", flush=True)
    env = bed.env(OPS_RETENTION_DAYS=KEPT - 1, OPS_REPLAY_GUARD="true")
    ran = subprocess.run([OPSWARD, *words], env=env, text=True, capture_output=True)
    print(ran.stdout, end="", flush=True)
    if ran.returncode:
        print(ran.stderr, file=sys.stderr)
        raise SystemExit(f"exit code {ran.returncode}")


def svg():
    width, height, left, top = 700, 300, 70, 30
    last, most = points[-1][0], max(p[1] for p in points) * 1.05
    a_row = next(mb / n for _, mb, n in reversed(points) if n)

    def x(t):
        return left + width * t / last

    def y(mb):
        return top + height * (1 - mb / most)

    def line(values, color, more=""):
        xy = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in values)
        return f'<polyline fill="none" stroke="{color}" stroke-width="2" {more} points="{xy}"/>'

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {top + height + 60}"'
        ' font-family="sans-serif" font-size="13">',
        '<title>The log on disk through pruning and a reclaim</title>',
        f'<rect width="{left + width + 20}" height="{top + height + 60}" fill="#fff"/>',
    ]
    for part in range(5):
        mb = most * part / 4
        out.append(f'<path stroke="#ddd" d="M{left} {y(mb):.0f}h{width}"/>')
        out.append(f'<text x="{left - 8}" y="{y(mb) + 4:.0f}" text-anchor="end" fill="#444">{mb:.0f} MB</text>')
    for i, (t, words) in enumerate(marks):
        out.append(f'<path stroke="#999" stroke-dasharray="4" d="M{x(t):.0f} {top - 10}v{height + 10}"/>')
        anchor = "end" if x(t) > left + width * 0.75 else "start"
        dx = -5 if anchor == "end" else 5
        out.append(f'<text x="{x(t) + dx:.0f}" y="{top - 14 + 15 * (i % 2)}" text-anchor="{anchor}" fill="#444">{words}</text>')
    out.append(line([(t, v) for t, v, _ in points], "#b3261e"))
    out.append(line([(t, n * a_row) for t, _, n in points], "#2471a3", 'stroke-dasharray="6 3"'))
    foot = top + height + 22
    out.append(f'<text x="{left}" y="{foot}" fill="#444">0 s</text>')
    out.append(f'<text x="{left + width}" y="{foot}" text-anchor="end" fill="#444">{last:.0f} s</text>')
    out.append(f'<text x="{left}" y="{foot + 22}" fill="#b3261e">━ ops on disk, indexes and copy included</text>')
    out.append(f'<text x="{left + 300}" y="{foot + 22}" fill="#2471a3">╍ what the ops that are there need</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    threads = [threading.Thread(target=watch)]
    try:
        threads[0].start()
        mark("60 days of ops")
        for day in range(DAYS):
            step = 86_400_000 / A_DAY
            count["loaded"] += len(bed.insert([int(FIRST + day * 86_400_000 + i * step) for i in range(A_DAY)]))
        threads.append(threading.Thread(target=write))
        threads[1].start()
        mark("the node prunes")
        below = ulid(NOW - KEPT * 86_400_000, 0)
        while True:
            # The node's own statement.
            gone = int(bed.psql(
                "WITH gone AS (DELETE FROM ops WHERE ulid IN (SELECT ulid FROM ops"
                f" WHERE ulid < '{below}' ORDER BY ulid LIMIT 20000) RETURNING 1) SELECT count(*) FROM gone"
            ))
            count["gone"] += gone
            if not gone:
                break
            time.sleep(0.2)
        time.sleep(8)
        opsward("census")
        opsward("plan")
        opsward("reclaim", "--plan", "--policy", "window")
        mark("opsward reclaim")
        opsward("reclaim", "--policy", "window", "--yes")
        mark("done")
        left = bed.psql("SELECT count(*) FROM ops")
        count["gone"] = count["loaded"] + count["written"] - int(left)
        opsward("history")
        time.sleep(12)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        bed.stop()
    (ROOT / "docs/reclaim.svg").write_text(svg())
    print("\ndrawn: docs/reclaim.svg")
    bed.remove()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
