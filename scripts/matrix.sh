#!/usr/bin/env bash
# The tests under every supported pair of Python and zarr that this machine has, each in an environment of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_setup.sh

if (($#)); then
    echo "usage: bash scripts/matrix.sh" >&2
    exit 2
fi

# The oldest supported zarr, and the newest that each Python can have: zarr 3.2 and later need Python 3.12.
pairs=("3.11 zarr>=3.1,<3.2" "3.12 zarr" "3.13 zarr" "3.14 zarr")

# Print the interpreter of a version, from PATH or from pyenv.
interpreter() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if "$candidate" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$1" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

results=() failed=0
for pair in "${pairs[@]}"; do
    read -r version zarr <<<"$pair"
    if ! PYTHON=$(interpreter "$version"); then
        results+=("Python $version: not on this machine, not tested")
        continue
    fi
    export PYTHON
    venv=.venv-$version
    printf '\n== Python %s, %s\n' "$version" "$zarr"
    set_up dev "$zarr"
    found=$("$venv/bin/python" -c \
        'import platform, zarr; print("Python", platform.python_version(), "with zarr", zarr.__version__)')
    if "$venv/bin/pytest" -m "not slow"; then
        results+=("$found: passed")
    else
        results+=("$found: FAILED")
        failed=1
    fi
done
printf '\n%s\n' "${results[@]}"
exit "$failed"
