#!/usr/bin/env bash
# Ends what a supervised run left on this node when its supervisor was killed, and nothing else: processes are known by
# the mark of their attempt, not by name. What others have on the NPUs is listed and left alone.
#
#   SAVE_DIR=out launch/kill_npu_process.sh            SIGTERM, five seconds later SIGKILL
#   DRY_RUN=1 SAVE_DIR=out launch/kill_npu_process.sh  shows what would be ended
set -euo pipefail
top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

SAVE_DIR="${SAVE_DIR:-output/grpo}"
LOG_DIR="${LOG_DIR:-${SAVE_DIR%/}.logs}"
VENV="${VENV:-${VIRTUAL_ENV:-${top}/.venv}}" # its Python is used where it has one
DRY_RUN="${DRY_RUN:-0}"

python=python
if [[ -x "${VENV}/bin/python" ]]; then python="${VENV}/bin/python"; fi
command=("${python}" -m ms_resume.supervisor "${LOG_DIR}")
if [[ "${DRY_RUN}" == 1 ]]; then command+=(--dry-run); fi
exec "${command[@]}"
