#!/usr/bin/env python3
"""A real PgBouncer between opsward and the server, in both of its modes, as it comes and with
opsward's start-up options ignored: each command ends with 64, says once that a pooler is in
the way and that the server itself is to be named, and writes nothing.

    python3 tests/pooler.py [--binary target/debug/opsward]

Takes pgbouncer out of Debian's package where it is not installed.
"""

import argparse
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "deploy/lib"))
from bed import AS_POSTGRES, ROOT, Bed, free_port

arguments = argparse.ArgumentParser()
arguments.add_argument("--binary", default=str(ROOT / "target/debug/opsward"))
OPSWARD = os.path.abspath(arguments.parse_args().binary)
ADVICE = "name the server itself in OPENAUDIO_DB_URL"
COMMANDS = (["run"], ["status"], ["plan"], ["prune"], ["census"], ["reclaim", "--plan", "--policy", "window"],
            ["reclaim", "--policy", "window", "--yes"], ["uninstall", "--yes"])


def pgbouncer():
    found = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    if found:
        return found
    to = ROOT / "target/tools/pgbouncer"
    to.mkdir(parents=True, exist_ok=True)
    subprocess.run("apt-get -qq download pgbouncer libcares2 libevent-2.1-7 && for p in *.deb; do dpkg-deb -x $p .; done",
                   shell=True, cwd=to, check=True, stdout=subprocess.DEVNULL)
    os.environ["LD_LIBRARY_PATH"] = str(to / "usr/lib/x86_64-linux-gnu")
    return str(to / "usr/sbin/pgbouncer")


def start(bed, program, mode, ignored):
    port = free_port()
    settings = bed.work / f"{port}.ini"
    settings.write_text(
        f"[databases]\nopenaudio = host=127.0.0.1 port={bed.port} dbname=openaudio user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = {mode}\n"
        f"ignore_startup_parameters = {ignored}\nunix_socket_dir =\nlogfile = {bed.work}/pgbouncer.log\n"
    )
    running = subprocess.Popen([*AS_POSTGRES, program, "-q", str(settings)], cwd="/", stderr=subprocess.DEVNULL)
    end = time.time() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return running, port
        except OSError:
            if time.time() > end:
                raise
            time.sleep(0.1)


def main():
    program, bed = pgbouncer(), Bed("pooler")
    faults = []
    try:
        now = int(time.time() * 1000)
        bed.insert([now - hour * 3_600_000 for hour in range(500)])
        for mode in ("session", "transaction"):
            for ignored in ("", "options, extra_float_digits"):
                running, port = start(bed, program, mode, ignored)
                env = bed.env(SIDECAR_LISTEN=f"127.0.0.1:{free_port()}", SIDECAR_ADMIN_LISTEN=f"127.0.0.1:{free_port()}")
                env["OPENAUDIO_DB_URL"] = f"postgresql://postgres@127.0.0.1:{port}/openaudio"
                for words in COMMANDS:
                    ran = subprocess.run([OPSWARD, *words], env=env, text=True, capture_output=True, timeout=60)
                    said = " ".join((ran.stdout + ran.stderr).split())
                    if ran.returncode != 64 or "a pooler" not in said or said.count(ADVICE) != 1:
                        faults.append(f"{mode}, {' '.join(words)}: exit {ran.returncode}: {said}")
                ran = subprocess.run([OPSWARD, "doctor"], env=env, text=True, capture_output=True, timeout=60)
                said = " ".join(ran.stdout.split())
                if ran.returncode != 1 or "a pooler" not in said or ADVICE not in said:
                    faults.append(f"{mode}, doctor: exit {ran.returncode}: {said}")
                running.terminate()
                running.wait()
                what = "as it comes" if not ignored else "with the options ignored"
                print(f"ok: pool_mode = {mode}, {what}", flush=True)
        if bed.number_of("SELECT count(*) FROM pg_namespace WHERE nspname = 'opsward'"):
            faults.append("a schema was made")
    finally:
        bed.stop()
        bed.remove()
    for fault in faults:
        print("FAILED:", fault, file=sys.stderr)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
