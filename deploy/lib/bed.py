"""A PostgreSQL 15 of a script's own with a node's tables, and ops for it. No dependencies."""

import os
import pathlib
import shutil
import socket
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BIN = "/usr/lib/postgresql/15/bin"
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SELF = "https://me.example"
AS_POSTGRES = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"] if os.getuid() == 0 else []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ulid(ms, number):
    return "".join(
        ALPHABET[(value >> (5 * i)) & 31] for value, n in ((ms, 10), (number, 16)) for i in reversed(range(n))
    )


class Bed:
    """A server in a temporary directory, with a database `openaudio`."""

    def __init__(self, name, settings=""):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix=f"opsward-{name}-"))
        self.port = free_port()
        self.number = 0
        data = self.work / "data"
        data.mkdir()
        if AS_POSTGRES:
            shutil.chown(self.work, "postgres")
            shutil.chown(data, "postgres")
        self.server("initdb", "-D", data, "--encoding=UTF8", "--locale=en_US.UTF-8", "-A", "trust")
        self.options = f"-p {self.port} -k {self.work} -c listen_addresses=127.0.0.1 {settings}"
        self.start()
        self.psql("CREATE DATABASE openaudio", database="postgres")
        schema = (ROOT / "tests/fixtures/node-schema.sql").read_text()
        subprocess.run(self.client("openaudio", "-o", "/dev/null"), input=schema, text=True, check=True)

    def server(self, tool, *args):
        subprocess.run([*AS_POSTGRES, f"{BIN}/{tool}", *args], check=True, stdout=subprocess.DEVNULL, cwd="/")

    def start(self):
        data = self.work / "data"
        self.server("pg_ctl", "-D", data, "-s", "-w", "-l", data / "log", "-o", self.options, "start")

    def stop(self, how="immediate"):
        self.server("pg_ctl", "-D", self.work / "data", "-s", "-m", how, "stop")

    def remove(self):
        shutil.rmtree(self.work, ignore_errors=True)

    def client(self, database, *args):
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database]
        return ["psql", *address, "-qtAX", "-v", "ON_ERROR_STOP=1", *args]

    def psql(self, sql, data=None, database="openaudio"):
        ran = subprocess.run(self.client(database, "-c", sql), input=data, text=True, capture_output=True)
        if ran.returncode:
            raise RuntimeError(f"{sql[:80]}: {ran.stderr.strip()}")
        return ran.stdout.strip()

    def number_of(self, sql):
        return int(self.psql(sql) or 0)

    def insert(self, times, host=SELF, size=1_000):
        """Writes an op of a preview for each of the times; their ULIDs."""
        made, lines = [], []
        for ms in times:
            self.number += 1
            made.append(ulid(ms, self.number))
            filler = os.urandom((size - 250) // 2).hex()
            data = (
                f'[{{"cid":"{self.number:032x}","SourceCID":"{filler}",'
                f'"PreviewStartSeconds":"1","created_by":"{host}"}}]'
            )
            lines.append(f"{made[-1]}\t{host}\tcreate\taudio_previews\t{data}")
        self.psql('COPY ops (ulid, host, action, "table", data) FROM STDIN', "\n".join(lines) + "\n")
        return made

    def env(self, **more):
        """What opsward is started with; names as in OPENAUDIO_MEDIORUM_…"""
        env = {
            "PATH": os.environ["PATH"],
            "OPENAUDIO_DB_URL": f"postgresql://postgres@127.0.0.1:{self.port}/openaudio",
            "OPENAUDIO_NODE_ENDPOINT": SELF,
            "OPENAUDIO_MEDIORUM_PEERS": "none",
            "OPENAUDIO_MEDIORUM_PGDATA_PATH": str(self.work),
        }
        env.update({f"OPENAUDIO_MEDIORUM_{name}": str(value) for name, value in more.items()})
        return env
