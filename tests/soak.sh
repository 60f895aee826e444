#!/usr/bin/env bash
# Half an hour of life beside a node, in compose, as README sets it up: see tests/soak.py.
#     bash tests/soak.sh [MINUTES]
# As root; Docker and the images as in tests/container/lib.sh. What it measured is written
# to docs/soak.log.
set -euo pipefail
cd "$(dirname "$0")/.."
name=soak
# shellcheck source=tests/container/lib.sh
. tests/container/lib.sh

start_docker
build_images
directory=$work/soak
mkdir -p "$directory/opsward/bin" "$directory/data/opsward-empty"
cp tests/container/operator.yaml "$directory/docker-compose.yml"
cp deploy/compose.opsward.yaml tests/container/built.yaml tests/container/peers.yaml "$directory/"
cp -r Dockerfile deploy "$directory/opsward/"
cp "$work/image/bin/opsward" "$directory/opsward/bin/"
sed -e '/^read_only/d' -e 's/^#ops_replay_guard/ops_replay_guard/' -e 's/^#ops_retention_days.*/ops_retention_days = 12/' \
    -e '1i sweep_interval = "15s"\nops_retention_sweep_interval = "1m"\nops_retention_reader_hold = "0"' \
    deploy/opsward.toml >"$directory/opsward.toml"
export TEST_BASE=$tag/base TEST_BINARY=bin/opsward OPENAUDIO_NODE_ENDPOINT=http://self.example
export STAND_IN=A PEERS=http://peer1,http://peer2,http://peer3 BORN
BORN=$(date +%s000)
files=(docker-compose.yml compose.opsward.yaml built.yaml peers.yaml)
say "set up"
up openaudio peer1 peer2 peer3
until_true 60 "the node's database is there" sql "SELECT 1 FROM ops LIMIT 1"
docker exec "$(container openaudio)" python3 /stand-in/node.py fill 60000 20 |
    docker exec -i -u postgres "$(container openaudio)" \
        psql -qX -d openaudio -c 'COPY ops (ulid, host, action, "table", data) FROM STDIN'
up --build opsward
python3 tests/soak.py "${1:-30}" "$(compose_command)"
