#!/usr/bin/env bash
# Makes .venv, with this repository and MindSpore's CPU build in it, or finds it ready and does nothing (offline too).
#
#   VENV     where (default .venv at the top of the repository)
#   PYTHON   which Python (default: the newest of 3.12, 3.11, 3.10 on PATH that runs)
#   EXTRAS   which extras (default cpu,dev)
#
# A stamp inside, written last, says what was installed, from which path. Without it, or after a move, the environment
# is made anew, because an interrupted pip leaves packages that import and then fail.
set -euo pipefail

top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="${VENV:-${top}/.venv}"
EXTRAS="${EXTRAS:-cpu,dev}"
stamp="${VENV}/.ms_resume_stamp" # says: ready, and for what
mark="${VENV}/.ms_resume_setup"  # says: made by this script, so it may remove it

die() {
    printf 'setup: %s\n' "$1" >&2
    shift
    if (($#)); then printf '  -> %s\n' "$@" >&2; fi
    exit 2
}

wanted() { # what the stamp must say
    printf '%s\n' "${VENV}" "${EXTRAS}"
    cat "${top}/pyproject.toml" "${top}/setup.py" | cksum
}

ready() { [[ -f "${stamp}" && "$(<"${stamp}")" == "$(wanted)" ]] && "${VENV}/bin/python" -c '' 2>/dev/null; }

version_of() { # of a Python that runs and can make environments; a pyenv shim may exist and not run
    "$1" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() {
    local name version found=""
    for name in ${PYTHON:+"${PYTHON}"} python3.12 python3.11 python3.10 python3 python; do
        version="$(version_of "${name}")" || version="does not run, or lacks venv"
        case "${version}" in
            3.10 | 3.11 | 3.12)
                command -v "${name}"
                return
                ;;
        esac
        if command -v "${name}" >/dev/null; then found+="${name} (${version}) "; fi
        if [[ -n "${PYTHON:-}" ]]; then break; fi
    done
    die "found ${found:-no Python${PYTHON:+ named ${PYTHON}} on PATH}; expected Python 3.10, 3.11 or 3.12 with its venv module" \
        "install one (Debian and Ubuntu: python3 and python3-venv), or name one: make PYTHON=/path/to/python3.11"
}

make_empty() {
    if [[ -e "${VENV}" && ! -f "${mark}" ]]; then
        die "${VENV} exists and was not made by this script" "move it away, or choose another place with VENV="
    fi
    rm -rf "${VENV}"
    mkdir -p "${VENV}"
    : >"${mark}"
    "$1" -m venv "${VENV}"
}

install() { # no build isolation: a later change of pyproject.toml alone then needs no network
    local pip=("${VENV}/bin/python" -m pip --disable-pip-version-check install)
    "${pip[@]}" --quiet "setuptools>=65.5" wheel
    "${pip[@]}" --no-build-isolation --editable "${top}[${EXTRAS}]"
}

if ready; then exit 0; fi
# An activated .venv must not be the Python that makes its own successor.
PATH=":${PATH}:"
PATH="${PATH//":${VENV}/bin:"/:}"
PATH="${PATH#:}" PATH="${PATH%:}"
python="$(find_python)"
if command -v flock >/dev/null; then # two terminals, `make demo` and `make test`: one sets up, one waits
    exec 9>"${VENV}.lock"
    flock 9
    if ready; then exit 0; fi
fi
echo "setup: ${VENV} with $("${python}" -V 2>&1) (${python}); MindSpore takes about 2.5 GB of disk" >&2
if [[ -f "${stamp}" && "$(head -n 1 "${stamp}")" == "${VENV}" ]] && "${VENV}/bin/python" -m pip --version >/dev/null 2>&1; then
    rm "${stamp}" # pyproject.toml changed: install on top
else
    make_empty "${python}"
fi
install || die "pip failed in ${VENV}; it is made anew next time" "look at the lines above; without a network nothing can be installed"
wanted >"${stamp}.part"
mv "${stamp}.part" "${stamp}"
echo "setup: ready in ${SECONDS} s" >&2
