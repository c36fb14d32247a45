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
top="$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")")"
export PYTHONPATH="${top}${PYTHONPATH:+:${PYTHONPATH}}"

VENV="${VENV:-${VIRTUAL_ENV:-${top}/.venv}}" # its Python is used where it has one
python=python
if [[ -x "${VENV}/bin/python" ]]; then python="${VENV}/bin/python"; fi

if (($#)); then exec "${python}" -m ms_resume.recover.leftovers "$@"; fi
SAVE_DIR="${SAVE_DIR:-output/grpo}"
LOG_DIR="${LOG_DIR:-${SAVE_DIR%/}.logs}"
command=("${python}" -m ms_resume.supervisor "${LOG_DIR}")
if [[ "${DRY_RUN:-0}" == 1 ]]; then command+=(--dry-run); fi
exec "${command[@]}"
