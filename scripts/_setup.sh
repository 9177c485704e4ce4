# Makes .venv with sunzip and its extras, for the scripts that source this, so that each is all the set-up there is.
# shellcheck shell=bash
#
# After `set_up EXTRA` in the repository root, commands are in .venv/bin. $PYTHON chooses the interpreter.

# Print the first interpreter that runs, is new enough and can make environments.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "no Python 3.11 or newer with venv and pip found; install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
    return 1
}

# Install the package in editable form with an extra, unless .venv has just that already.
set_up() {
    local extra=$1 python wanted stamp=.venv/sunzip-set-up
    # What .venv was made from: a change of either file or of the checkout's place means installing anew.
    wanted=$(cksum pyproject.toml constraints.txt; pwd)
    if [[ -x .venv/bin/sunzip && -f $stamp ]] && .venv/bin/python -c '' 2>/dev/null; then
        # `dev` includes what the other extra brings.
        if [[ $(<"$stamp") == "$wanted"$'\n'"$extra" || $(<"$stamp") == "$wanted"$'\ndev' ]]; then
            return
        fi
    fi
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        echo "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    echo "installing sunzip-codec[$extra] into .venv; the first time this takes some minutes"
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$extra]"
    printf '%s\n%s\n' "$wanted" "$extra" >"$stamp"
}
