#!/usr/bin/env bash
# Ends what is left of trainings: the processes of these YAML files' runs, gently, then hard, and no others.
#
#   launch/kill_npu_process.sh train_yaml/gsn/202507152000/a.yaml
#   launch/kill_npu_process.sh --dry-run train_yaml/gsn/202507152000/*.yaml     names them, ends none
#
# A run is known by TRAINING_YAML in its environment, which launch/scheduled_train.sh and `ms-resume recover --run` set.
# Who else holds an NPU is named, and left alone. Exit codes: 0, 2, 40 where something
# cannot be ended, 61 where --dry-run finds any.
set -euo pipefail
top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
export PYTHONPATH="${top}${PYTHONPATH:+:${PYTHONPATH}}"

code=0
python -m ms_resume.recover.leftovers "$@" || code=$?
if command -v npu-smi >/dev/null; then # rows like: | 0  0 | 2153456 | python | 3157 |; tried with a stand-in only
    npu-smi info | awk -F'|' '$2 ~ /^ *[0-9]+ +[0-9]+ *$/ && $3 ~ /^ *[0-9]+ *$/ {
        split($2, npu, " "); gsub(/ /, "", $3); gsub(/ /, "", $4)
        printf "leftovers: NPU %s is held by process %s (%s), of another run: left alone\n", npu[1], $3, $4
    }' >&2
fi
exit "${code}"
