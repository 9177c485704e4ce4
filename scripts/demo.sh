#!/usr/bin/env bash
# The main job from a bare checkout: makes a Sun, compresses it, and shows in demo/ what came of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_setup.sh

if (($#)); then
    echo "usage: bash scripts/demo.sh" >&2
    exit 2
fi
set_up plot

# Show each command as a user would type it, then run it.
run() {
    printf '\n$ %s\n' "$*"
    ".venv/bin/$1" "${@:2}"
}

mkdir -p demo
SECONDS=0
run sunzip synth demo/sun.zarr --frames 24 --start 2014-02-01 --force
run sunzip compress demo/sun.zarr demo/sun.lat --force
run sunzip info demo/sun.lat
run sunzip verify demo/sun.lat
run sunzip evaluate demo/sun.zarr demo/sun.lat
run sunzip decompress demo/sun.lat demo/decoded.zarr --force
run sunzip show demo/sun.lat demo/decoded.png --force
run sunzip show demo/sun.lat demo/compared.png --source demo/sun.zarr --force
printf '\nDone in %d s. Look at demo/decoded.png and demo/compared.png.\n' "$SECONDS"
