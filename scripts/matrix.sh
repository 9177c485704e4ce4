#!/usr/bin/env bash
# The tests under every supported pair of Python and zarr that this machine has, and under the oldest releases of all
# that is used, each in an environment of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_setup.sh

if (($#)); then
    echo "usage: bash scripts/matrix.sh" >&2
    exit 2
fi

# The newest zarr that each Python can have: zarr 3.2 and later need Python 3.12.
pairs=("3.11 zarr>=3.1.3,<3.2" "3.12 zarr" "3.13 zarr" "3.14 zarr" "3.11 oldest")

# Print what pyproject.toml asks for, each in the oldest release that it takes; but for PyTorch, of which constraints.txt
# names one, and for the tools of development.
oldest() {
    "$PYTHON" - <<'END'
import itertools, re, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = (names for extra, names in project["optional-dependencies"].items() if extra not in ("all", "dev"))
found = {re.sub(r">=([\d.]+).*", r"==\1", name) for name in itertools.chain(project["dependencies"], *extras)}
print(*sorted(name for name in found if not name.startswith("torch==")))
END
}

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
    requirements=("$zarr")
    if [[ $zarr == oldest ]]; then
        venv+=-oldest
        read -ra requirements <<<"$(oldest)"
    fi
    printf '\n== Python %s, %s\n' "$version" "$zarr"
    set_up dev "${requirements[@]}"
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
