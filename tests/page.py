#!/usr/bin/env python3
"""The operator's page in a real browser, and the pictures of it in docs/:

    python3 tests/page.py [path of the binary, default target/release/opsward]

Needs chromium (apt-get install chromium) and PostgreSQL 15. A daemon runs beside a log of
400 days and 40 peers that fail. In light and dark, wide and 390 pixels narrow: the page
renders, the console stays silent, nothing runs off the screen, nothing is asked of
anybody else, it is under 60 kB, and its figures are those of /status.
"""

import base64
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "deploy/lib"))
from bed import ROOT, Bed, free_port

OPSWARD = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/opsward")
DAY = 86_400_000


def ok(words):
    print(f"    ok {words}", flush=True)


def check(words, is_so, *seen):
    if not is_so:
        raise SystemExit(f"not so: {words}: {seen}")
    ok(words)


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read()


def until(words, look, seconds=90):
    end = time.time() + seconds
    while time.time() < end:
        try:
            found = look()
            if found:
                ok(words)
                return found
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"it never happened: {words}")


class Browser:
    """Chromium by its own protocol, over the least of a WebSocket."""

    def __init__(self, work):
        port = free_port()
        self.process = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={port}",
             f"--user-data-dir={work}/chromium", "--no-first-run", "--hide-scrollbars", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        pages = until("chromium is up", lambda: json.loads(get(port, "/json")))
        url = next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
        path = url.split(f":{port}", 1)[1]
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass
        self.id, self.events = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def receive(self):
        data = b""
        while True:
            first, second = self.file.read(2)
            length = second & 127
            if length == 126:
                length = struct.unpack(">H", self.file.read(2))[0]
            elif length == 127:
                length = struct.unpack(">Q", self.file.read(8))[0]
            data += self.file.read(length)
            if first & 128:
                return json.loads(data)

    def call(self, method, **params):
        self.id += 1
        text = json.dumps({"id": self.id, "method": method, "params": params}).encode()
        mask = os.urandom(4)
        size = bytes([128 | len(text)]) if len(text) < 126 else bytes([128 | 126]) + struct.pack(">H", len(text))
        self.socket.sendall(b"\x81" + size + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text)))
        while True:
            message = self.receive()
            if message.get("id") == self.id:
                if "error" in message:
                    raise SystemExit(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def open(self, url, width, dark):
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self.receive())

    def value(self, script):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def picture(self, file, height):
        clip = {"x": 0, "y": 0, "width": self.value("innerWidth"), "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        pathlib.Path(file).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def main():
    bed, daemon, browser = Bed("page"), None, None
    try:
        now = int(time.time() * 1000)
        for day in range(400):
            # A log that grows a little every day, the last days whole.
            some = 20 + day // 8
            bed.insert([now - (400 - day) * DAY + i * DAY // some for i in range(some)])
        bed.psql(
            "UPDATE ops SET \"table\" = (ARRAY['uploads', 'uploads', 'storage_and_db_sizes', 'qm_audio_analyses',"
            " 'audio_previews'])[1 + (random() * 4)::int];"
            # Somebody pruned it, and gave nothing back.
            " DELETE FROM ops WHERE ulid < (SELECT ulid FROM ops ORDER BY ulid OFFSET 14000 LIMIT 1)"
        )
        admin = free_port()
        # Nobody answers there: 40 peers that fail.
        peers = ",".join(f"http://validator-with-a-rather-long-name-{n}.invalid" for n in range(40))
        def status():
            return json.loads(get(admin, "/status"))["result"]

        def run(peers):
            env = bed.env(
                SIDECAR_LISTEN=f"127.0.0.1:{free_port()}", SIDECAR_ADMIN_LISTEN=f"127.0.0.1:{admin}", PEERS=peers,
                OPS_RETENTION_DAYS=60, OPS_REPLAY_GUARD="true", MIN_FREE_DISK="64MiB",
            )
            log = open(bed.work / "log", "w")
            process = subprocess.Popen([OPSWARD, "run"], env=env, stderr=log, start_new_session=True)
            until("the daemon is ready", lambda: get(admin, "/readyz"))
            until("the log is counted", lambda: (status()["bounding"]["census"] or {}).get("finished_at"))
            until("it decided", lambda: b"Decided" in get(admin, "/"))
            return process

        def end(process):
            os.kill(process.pid, signal.SIGTERM)
            process.wait(40)

        # Counted, and at its second start decided on what was counted.
        end(run("none"))
        daemon = run("none")
        browser = Browser(bed.work)
        for width, dark, picture in ((1100, False, "page.png"), (390, True, "page-phone.png")):
            browser.open(f"http://127.0.0.1:{admin}/", width, dark)
            browser.picture(ROOT / "docs" / picture, min(1400, browser.value("document.documentElement.scrollHeight")))
        end(daemon)
        daemon = run(peers)
        page = get(admin, "/").decode()
        check(f"{len(page)} bytes of page are under 60 kB", len(page) < 60_000)
        check("it names nobody else", not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?(?!/|data:,|#)(?:https?:)?//", page))
        for width, dark in ((1100, False), (1100, True), (390, False), (390, True)):
            what = f"{width} pixels, {'dark' if dark else 'light'}"
            before = status()
            browser.open(f"http://127.0.0.1:{admin}/", width, dark)
            after = status()
            said = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")]
            check(f"{what}: the console is silent", not said, said)
            asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
            check(f"{what}: nothing else is asked for", all(u.startswith((f"http://127.0.0.1:{admin}/", "data:")) for u in asked), asked)
            widest = browser.value("document.documentElement.scrollWidth")
            check(f"{what}: nothing runs off", widest <= width, widest)
            over = browser.value(
                "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
                ".map(e => e.outerHTML.slice(0, 80))"
            )
            check(f"{what}: nor does any part of it", not over, over)
            shown = json.loads(browser.value("JSON.stringify(Object.fromEntries([...document.querySelectorAll('data')].map(d => [d.id, +d.value])))"))
            for name in ("ops_bytes", "index_bytes", "free_disk_bytes"):
                bounds = sorted((before["database"][name], after["database"][name]))
                # The disk is used by others, too.
                slack = 1 << 30 if name == "free_disk_bytes" else 0
                check(f"{what}: {name} is that of /status", bounds[0] - slack <= shown[name] <= bounds[1] + slack, shown, bounds)
            check(f"{what}: so is census_bytes", shown["census_bytes"] in (before["bounding"]["census"]["bytes"], after["bounding"]["census"]["bytes"]))
            sentence = browser.value("document.querySelector('.state').innerText")
            check(f"{what}: it begins with how it is: {sentence}", sentence.startswith("The log takes"))
            drawn = browser.value("document.querySelectorAll('svg path').length")
            check(f"{what}: the log is drawn, by table", drawn >= 3, drawn)
        print("the page is well; pictures: docs/page.png, docs/page-phone.png")
    finally:
        for process in (browser and browser.process, daemon):
            if process and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        bed.stop()
        bed.remove()


if __name__ == "__main__":
    main()
