#!/usr/bin/env python3
"""What the binary is made of, by `cargo metadata`: normal and build dependencies for Linux.

    python3 deploy/lib/packages.py sbom       CycloneDX 1.5, as JSON; the same for the same sources
    python3 deploy/lib/packages.py licences   each licence is one that deny.toml allows, no crate
                                              one that it denies, all from one registry

The second is what `cargo deny check licenses bans sources` judges, for machines that have no
cargo-deny.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from datetime import datetime, timezone

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def packages():
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    by_id = {p["id"]: p for p in found["packages"]}
    needs = {
        node["id"]: sorted(d["pkg"] for d in node["deps"] if any(kind["kind"] in (None, "build") for kind in d["dep_kinds"]))
        for node in found["resolve"]["nodes"]
    }
    root = found["resolve"]["root"]
    reached, open_ids = set(), [root]
    while open_ids:
        one = open_ids.pop()
        if one not in reached:
            reached.add(one)
            open_ids += needs[one]
    return root, {i: by_id[i] for i in sorted(reached)}, needs


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def checksums():
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}


def sbom():
    root, reached, needs = packages()
    sums = checksums()
    at = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), timezone.utc)

    def component(package):
        told = {
            "type": "library",
            "bom-ref": reference(package),
            "name": package["name"],
            "version": package["version"],
            "licenses": [{"expression": (package["license"] or "").replace("/", " OR ").replace("  ", " ")}],
            "purl": reference(package),
        }
        checksum = sums.get((package["name"], package["version"]))
        if checksum:
            told["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return told

    own = component(reached[root]) | {"type": "application"}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": own},
        "components": [component(p) for i, p in reached.items() if i != root],
        "dependencies": [
            {"ref": reference(p), "dependsOn": [reference(reached[d]) for d in needs[i]]} for i, p in reached.items()
        ],
    }
    print(json.dumps(bill, indent=1))


def is_allowed(expression, allowed):
    """SPDX: OR binds weaker than AND; `/` is the old way to write OR."""
    words = re.findall(r"\(|\)|/|[^\s()/]+", expression)

    def either():
        one = both()
        while words and words[0] in ("OR", "/"):
            words.pop(0)
            other = both()
            one = one or other
        return one

    def both():
        one = single()
        while words and words[0] == "AND":
            words.pop(0)
            other = single()
            one = one and other
        return one

    def single():
        word = words.pop(0)
        if word == "(":
            inside = either()
            words.pop(0)
            return inside
        if words and words[0] == "WITH":
            word = f"{word} {words.pop(0)} {words.pop(0)}"
        return word in allowed

    return either()


def licences():
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    allowed, denied = set(rules["licenses"]["allow"]), {d["crate"] for d in rules["bans"]["deny"]}
    root, reached, _ = packages()
    faults, sources = [], {}
    for i, package in reached.items():
        name = f"{package['name']} {package['version']}"
        if not is_allowed(package["license"] or "none", allowed):
            faults.append(f"{name}: {package['license']} is not allowed")
        if package["name"] in denied:
            faults.append(f"{name} is denied")
        if i != root:
            sources.setdefault(package["source"], name)
    # The lock file has a checksum of each; all come from one registry.
    if len(sources) != 1 or not all((source or "").startswith("registry+") for source in sources):
        faults.append(f"not all come from one registry: {sources}")
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"{len(reached)} packages: licences, bans and sources are well")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    {"sbom": sbom, "licences": licences}[sys.argv[1]]()
