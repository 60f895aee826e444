#!/usr/bin/env python3
"""Half an hour of life beside a node, and what came of it. Run by tests/soak.sh, which sets up
the containers:

    python3 tests/soak.py MINUTES COMPOSE-COMMAND

The node writes 20 ops a second all the time; three peers have logs that grow, one of them
comes and goes; a reader asks for the log; opsward pulls, serves and prunes once a minute.
After three tenths the node is upgraded (its container is recreated as one whose ops come by
the chain), and opsward after it; after a half the disk is given back by a swap, after three
quarters, when the node's own pruner has deleted, in place. At the end: every op that was
written is there, nothing panicked, no task is failing, no error was logged that nobody
handles, and memory was flat over the last two thirds (5 MiB either way). What it measured
is written to docs/soak.log.
"""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

MINUTES, COMPOSE = float(sys.argv[1]), sys.argv[2].split()
SECONDS = MINUTES * 60
LOG = pathlib.Path(__file__).resolve().parent.parent / "docs/soak.log"
SWEEP = "/internal/crud/sweep?after="
began = time.time()
stop, away = threading.Event(), threading.Event()
lines, faults, memory = [], [], []
answers, errors, failures = collections.Counter(), [], 0


def say(words):
    line = f"{time.time() - began:7.0f} s  {words}"
    lines.append(line)
    print(line, flush=True)


def run(*command, data=None, env=None):
    ran = subprocess.run(command, text=True, input=data, capture_output=True, env={**os.environ, **(env or {})})
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)[-200:]}: exit {ran.returncode}: {ran.stderr[-600:]}")
    return ran.stdout


def compose(*words, **more):
    return run(*COMPOSE, *words, **more)


def container(service):
    return compose("ps", "-q", service).strip()


def sql(text):
    return run("docker", "exec", "-i", "-u", "postgres", container("openaudio"), "psql", "-qtAX", "-d", "openaudio", "-c", text).strip()


def address(service):
    return run("docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container(service)).strip()


def get(url, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30).read().decode()


def ulid_of(seconds):
    """The least ULID of a time."""
    alphabet, ms = "0123456789ABCDEFGHJKMNPQRSTVWXYZ", int(seconds * 1000)
    return "".join(alphabet[(ms >> (5 * i)) & 31] for i in reversed(range(10))) + "0" * 16


def metrics():
    text = get(f"http://{host}:9464/metrics")
    return {m[1]: float(m[2]) for m in re.finditer(r"^([a-z_]+(?:\{[^}]*\})?) ([-0-9.e+]+)$", text, re.M)}


def until_ready():
    global host
    end = time.time() + 120
    while True:
        try:
            host = address("openaudio")
            return get(f"http://{host}:9464/readyz")
        except (OSError, RuntimeError):
            if time.time() > end:
                raise
            time.sleep(0.5)


def read():
    """A peer that reads the log from here."""
    while not stop.wait(5):
        try:
            get(f"http://{host}:1992{SWEEP}{ulid_of(began - 86_400)}", **{"User-Agent": "mediorum http://peer1"})
            answers["a page"] += 1
        except urllib.error.HTTPError as error:
            answers[f"{error.code} {error.read(200).decode()}"] += 1
        except OSError as error:
            # While the node's container is recreated nobody is there.
            answers["nobody there" if away.is_set() else f"failed: {error}"] += 1


def keep_errors():
    """Errors of its log, and which tasks failed at last; one that works again is well."""
    global failures
    failing = {}
    for line in compose("logs", "--no-color", "opsward").splitlines():
        if " ERROR " in line or "panicked" in line:
            errors.append(line)
        if "supervisor::failures: " in line and (task := re.search(r'task="([^"]+)"', line)):
            failing[task[1]] = line
            failures += "failed: " in line
    return [line for line in failing.values() if "works again" not in line]


def upgrade():
    keep_errors()
    away.set()
    env = {"STAND_IN": "C"}
    os.environ.update(env)
    compose("up", "-d", "--no-deps", "openaudio")
    # docker-compose 1.x cannot move it to the new container's network.
    compose("rm", "-sf", "opsward")
    compose("up", "-d")
    until_ready()
    away.clear()


def reclaim(mode):
    words = ("reclaim", "--policy", "window", "--mode", mode, "--pace", "full", "--yes")
    try:
        said = compose("exec", "-T", "opsward", "opsward", *words).strip().splitlines()[-1]
    except RuntimeError as error:
        faults.append(str(error))
        said = f"FAILED: {error}"
    say(f"opsward {' '.join(words)}: {said}")


def come_and_go(n):
    how = (("stop", "stopped"), ("start", "started"), ("pause", "paused"), ("unpause", "goes on"))[n % 4]
    compose(how[0], "peer3")
    say(f"the third peer: {how[1]}")


def resident():
    """MiB of the daemon's memory: all of it, and without what is mapped of the program's file,
    which grows with each part of it that runs for the first time."""
    pid = run("docker", "inspect", "-f", "{{.State.Pid}}", container("opsward")).strip()
    found = dict(re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M))
    return int(found["VmRSS"]) / 1024, int(found["RssAnon"]) / 1024


def look():
    found = metrics()
    whole, own = resident()
    memory.append(((time.time() - began) / SECONDS, whole, own))
    if len(memory) % 12 != 1:
        return
    deleted = sum(v for k, v in found.items() if k.startswith("opsward_rows_deleted_total"))
    rows, size = sql("SELECT count(*), pg_total_relation_size('ops') >> 20 FROM ops").split("|")
    say(f"{whole:.1f} MiB resident, {own:.1f} without the program; {int(rows):,} ops in {size} MiB, {found.get('opsward_ops_applied_total', 0):,.0f} pulled,"
        f" {deleted:,.0f} deleted; {answers['a page']:,} pages read")


def nothing_lost(upgraded):
    written = run("docker", "exec", container("openaudio"), "cat", "/data/written").split()
    sent = []
    for peer in ("peer1", "peer2"):
        after, until = "", ulid_of(upgraded - 60)
        while after < until:
            page = json.loads(get(f"http://{address(peer)}{SWEEP}{after}"))
            sent += [op for op in page if op["ulid"] < until]
            after = page[-1]["ulid"] if page else until
    there, records = set(sql("SELECT ulid FROM ops").split()), set(sql("SELECT cid FROM audio_previews").split("\n"))
    lost = [u for u in written if u not in there]
    missing = [op["ulid"] for op in sent if op["ulid"] not in there or op["data"][0]["cid"] not in records]
    say(f"{len(written):,} ops written by the node, {len(lost)} of them lost")
    say(f"{len(sent):,} ops of two peers sent up to a minute before the upgrade, {len(missing)} of them missing")
    faults.extend(f"lost: {u}" for u in (lost + missing)[:3])
    if not written or not sent:
        faults.append("nothing was written, or nothing sent")


def main():
    until_ready()
    say("ready")
    threading.Thread(target=read, daemon=True).start()
    upgraded = None
    steps = [(0.30, "upgrade"), (0.50, "swap"), (0.75, "in-place"), *((0.05 + n * 0.06, n) for n in range(12))]
    steps.sort(key=lambda step: step[0])
    while time.time() - began < SECONDS:
        while steps and steps[0][0] <= (time.time() - began) / SECONDS:
            step = steps.pop(0)[1]
            if step == "upgrade":
                upgraded = time.time()
                upgrade()
                say("the node was upgraded: its ops come by the chain now")
            elif step == "in-place":
                # As the node's own pruner does it.
                sql(f"DELETE FROM ops WHERE ulid < '{ulid_of(time.time() - 8 * 86_400)}'")
                say("the node pruned what is older than eight days")
                reclaim(step)
            elif step == "swap":
                reclaim(step)
            else:
                come_and_go(step)
        look()
        stop.wait(5)
    stop.set()
    # What is under way may end; its answers count.
    time.sleep(3)
    found = metrics()
    nothing_lost(upgraded)
    for name, value in found.items():
        if name.startswith(("opsward_task_panics_total", "opsward_guard_failed_total")) and value:
            faults.append(f"{name} {value}")
    say("pages: " + ", ".join(f"{count:,} × {what}" for what, count in answers.most_common()))
    faults.extend(what for what in answers if what.startswith("failed"))
    # An asker comes again after a 503; more than a few of them are a fault.
    if sum(count for what, count in answers.items() if what.startswith("503")) * 50 > answers["a page"]:
        faults.append("more than one page in fifty was refused")
    for what, which in (("memory", 1), ("memory without the program", 2)):
        late = [look[which] for look in memory if look[0] > 1 / 3]
        middle = sorted(late)[len(late) // 2]
        say(f"{what} over the last two thirds: {min(late):.1f} to {max(late):.1f} MiB, half of the time below {middle:.1f}")
        if max(late) - middle > 5 or middle - min(late) > 5:
            faults.append(f"{what} was not flat")
    ended = container("opsward")
    compose("stop", "opsward")
    code = run("docker", "inspect", "-f", "{{.State.ExitCode}}, killed for memory: {{.State.OOMKilled}}", ended).strip()
    say(f"stopped: exit {code}")
    if code != "0, killed for memory: false":
        faults.append(f"exit {code}")
    failing = keep_errors()
    say(f"{len(errors)} lines of its log are errors; {failures} times a task failed, {len(failing)} did not work again")
    faults.extend(errors[:5] + failing)
    say("passed" if not faults else "FAILED: " + "; ".join(faults[:8]))
    LOG.write_text("\n".join(lines) + "\n")
    raise SystemExit(1 if faults else 0)


host = None
if __name__ == "__main__":
    main()
