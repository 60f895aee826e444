#!/usr/bin/env bash
# The container, really run, on a base made by debootstrap, beside a stand-in of the node:
# deploy/compose.yaml with two peers (tests/container/full.sh), and deploy/compose.opsward.yaml
# laid over an operator's own file (tests/container/addition.sh). As root, on Debian; apart
# from the ordinary run:
#     bash tests/container.sh [full|addition]
# Installs what is missing (docker.io, docker-compose, debootstrap), starts a Docker of its
# own where none runs, and takes everything down again. More: tests/container/lib.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
name=container
# shellcheck source=tests/container/lib.sh
. tests/container/lib.sh

start_docker
build_images
case "${1:-both}" in
full | both)
    # shellcheck source=tests/container/full.sh
    . tests/container/full.sh
    ;;&
addition | both)
    # shellcheck source=tests/container/addition.sh
    . tests/container/addition.sh
    ;;
esac
