# Makes .venv with sunzip and its extras, for the scripts that source this, so that each is all the set-up there is.
# shellcheck shell=bash
#
# After `set_up EXTRA` in the repository root, commands are in $venv/bin. $PYTHON chooses the interpreter.

venv=.venv

# Print the first interpreter that runs, is new enough and can make environments.
find_python() {
    local candidate candidates=(python3.11 python3.12 python3.13 python3.14 python3)
    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "none of these is a Python 3.11 or newer with venv and pip: ${candidates[*]}; name one with PYTHON=…" >&2
    return 1
}

# Install the package in editable form with an extra, unless $venv has just that already. Further arguments are
# requirements that narrow the versions of its dependencies.
set_up() {
    local extra=$1 stamp=$venv/sunzip-set-up python known='' wanted
    shift
    wanted=$(cksum pyproject.toml constraints.txt)" $*"
    if [[ -f $stamp ]]; then
        known=$(<"$stamp")
    fi
    # An environment does not survive a move of the checkout, nor a change of its interpreter.
    if [[ -n $known && $known != "$PWD"$'\n'* ]] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
        ! same_version; then
        python=$(find_python)
        echo "making $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
        known=''
    fi
    # `dev` includes what the other extra brings.
    if [[ $known == "$PWD"$'\n'"$wanted"$'\n'"$extra" || $known == "$PWD"$'\n'"$wanted"$'\ndev' ]]; then
        return
    fi
    echo "installing sunzip-codec[$extra] into $venv; the first time this takes some minutes"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$extra]" "$@"
    printf '%s\n' "$PWD" "$wanted" "$extra" >"$stamp"
}

# Tell whether .venv has the version of $PYTHON, if that is given.
same_version() {
    local version='import sys; print(sys.version_info[:3])'
    [[ -z ${PYTHON:-} || $("$PYTHON" -c "$version" 2>/dev/null) == "$("$venv/bin/python" -c "$version")" ]]
}
