#!/usr/bin/env bash
# Ends what is left of trainings on this node, gently, then hard, and nothing else: processes are known by the mark of
# their run in their environment, not by name. Who else holds an NPU is named, and left alone.
#
#   SAVE_DIR=out launch/kill_npu_process.sh              what a supervised run left when its supervisor was killed
#   launch/kill_npu_process.sh train_yaml/gsn/202507152000/a.yaml    what trainings of these YAML files left
#   launch/kill_npu_process.sh --dry-run FILE.yaml..., DRY_RUN=1 SAVE_DIR=out launch/kill_npu_process.sh    ends none
#
# A supervised run is marked by `ms-resume run`, the other by launch/scheduled_train.sh and `ms-resume recover --run`.
# Exit codes: 0, 2, 40 where something cannot be ended, 61 where --dry-run finds any.
set -euo pipefail
top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
export PYTHONPATH="${top}${PYTHONPATH:+:${PYTHONPATH}}"

if (($# == 0)); then
    SAVE_DIR="${SAVE_DIR:-output/grpo}"
    LOG_DIR="${LOG_DIR:-${SAVE_DIR%/}.logs}"
    VENV="${VENV:-${VIRTUAL_ENV:-${top}/.venv}}" # its Python is used where it has one
    python=python
    if [[ -x "${VENV}/bin/python" ]]; then python="${VENV}/bin/python"; fi
    command=("${python}" -m ms_resume.supervisor "${LOG_DIR}")
    if [[ "${DRY_RUN:-0}" == 1 ]]; then command+=(--dry-run); fi
    exec "${command[@]}"
fi

code=0
python -m ms_resume.recover.leftovers "$@" || code=$?
if command -v npu-smi >/dev/null; then # rows like: | 0  0 | 2153456 | python | 3157 |; tried with a stand-in only
    npu-smi info | awk -F'|' '$2 ~ /^ *[0-9]+ +[0-9]+ *$/ && $3 ~ /^ *[0-9]+ *$/ {
        split($2, npu, " "); gsub(/ /, "", $3); gsub(/ /, "", $4)
        printf "leftovers: NPU %s is held by process %s (%s), of another run: left alone\n", npu[1], $3, $4
    }' >&2
fi
exit "${code}"
