#!/usr/bin/env bash
# Every check from a bare checkout: style, types, layers, tests. CI runs this and nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_setup.sh

select=(-m "not slow")
for argument in "$@"; do
    case $argument in
        --all) select=() ;;
        *)
            echo "usage: bash scripts/test.sh [--all]    (--all includes the tests that take minutes)" >&2
            exit 2
            ;;
    esac
done
set_up dev

# All checks run even if one fails, so that one run tells everything; pytest is last, and its last line with it.
failed=()
check() {
    printf '\n$ %s\n' "$*"
    ".venv/bin/$1" "${@:2}" || failed+=("$*")
}
check ruff check
check ruff format --check
check mypy
check lint-imports
check pytest ${select[@]+"${select[@]}"}
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
