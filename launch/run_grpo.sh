#!/usr/bin/env bash
# Starts this node's share of a GRPO run under msrun. Every knob is a variable; arguments go to the trainer and win.
#
#   SAVE_DIR=out launch/run_grpo.sh                      from the start
#   SAVE_DIR=out launch/run_grpo.sh --resume_training    on from the newest whole checkpoint in out
#   SAVE_DIR=out launch/run_grpo.sh --resume_from 100    back to global step 100; docs/starting.md has the other ways
#   DRY_RUN=1 launch/run_grpo.sh                         prints the command; makes, clears and starts nothing
#
# `ms-resume run` starts msrun again when a rank dies or hangs, and ends with the codes of ms_resume/errors.py. With
# SUPERVISE=0 it is msrun alone: 2 and 31 for what is found wrong before the start, then msrun's own, which makes every
# failure 1 and Ctrl-C 0.
set -euo pipefail
top="$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")")"

if command -v npu-smi >/dev/null; then device=Ascend; else device=CPU; fi
DEVICE_TARGET="${DEVICE_TARGET:-${device}}" # no npu-smi, no NPU
WORKERS="${WORKERS:-2}"                     # ranks of the whole job
NUM_NODES="${NUM_NODES:-1}"
NODE_RANK="${NODE_RANK:-}" # of this node, from 0; must be given when there are several
MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"
MASTER_PORT="${MASTER_PORT:-8118}"
SAVE_DIR="${SAVE_DIR:-output/grpo}"
SUPERVISE="${SUPERVISE:-1}" # 0: msrun alone, the first failure is the end
# Supervised: of all starts, and of several nodes the same on all. Else one directory a start, so that a restart keeps the
# logs of the crash.
LOG_DIR="${LOG_DIR:-}"
STRATEGY_DIR="${STRATEGY_DIR:-${SAVE_DIR%/}.strategy}" # what MindSpore writes when it compiles
STRATEGY="${STRATEGY:-}"                               # a name in strategy_templates/, or a YAML file
CONFIG="${CONFIG:-${top}/examples/grpo_arithmetic/config.yaml}"
EPOCHS="${EPOCHS:-}" # those of CONFIG when empty
TRAINER="${TRAINER:-${top}/examples/grpo_arithmetic/main.py}"
BASE_MODEL="${BASE_MODEL:-${top}/output/base-$(basename -- "${CONFIG%.*}")}" # a fresh run starts from it; made once
VENV="${VENV:-${VIRTUAL_ENV:-${top}/.venv}}"                                 # first on PATH unless CONDA_ENV is set
CONDA_ENV="${CONDA_ENV:-}"
ASCEND_ENV="${ASCEND_ENV:-}" # for example /usr/local/Ascend/ascend-toolkit/set_env.sh
DRY_RUN="${DRY_RUN:-0}"

# shellcheck disable=SC1091  # lies beside this one, and is checked by itself
source "${top}/launch/common.sh"

anything_saved() {
    [[ -n "$(find "${SAVE_DIR}/commits" "${SAVE_DIR}/train" -maxdepth 2 -name 'rank_*' -print -quit 2>/dev/null)" ]]
}

make_base_model() {
    # The file, not the directory: that may be what an interrupted pretrain.py left.
    if [[ -f "${BASE_MODEL}" || -f "${BASE_MODEL}/base_model.safetensors" ]]; then return; fi
    if given --resume_training && anything_saved; then return; fi
    if given --actor_checkpoint_path && given --ref_checkpoint_path; then return; fi
    say "making the base model once: ${BASE_MODEL}"
    mkdir -p -- "$(dirname -- "${BASE_MODEL}")"
    python "$(dirname -- "${TRAINER}")/pretrain.py" --config "${CONFIG}" --output "${BASE_MODEL}"
}

value_of() { # the last value that the trainer's arguments give a flag, or nothing
    local found="" previous="" argument
    for argument in "${arguments[@]}"; do
        if [[ "${previous}" == "$1" ]]; then found="${argument}"; fi
        if [[ "${argument}" == "$1="* ]]; then found="${argument#*=}"; fi
        previous="${argument}"
    done
    printf '%s' "${found}"
}

restart_flag() { # for the starts after the first; what a first start does once is not done again
    local flag
    for flag in --pretrained_checkpoint --checkpoint_path --resume_from --resume_from_iteration; do
        if given "${flag}"; then
            printf '%s' --restarted
            return
        fi
    done
    printf '%s' --resume_training
}

supervise() { # this script once more for each start, with the directory of that start in MS_RESUME_WATCH_DIR
    local save words=()
    save="$(value_of --save_checkpoint_dir)"
    save="${save:-${SAVE_DIR}}"
    if ((NODE_RANK == 0)); then words+=(--port "${MASTER_PORT}"); fi # msrun's scheduler listens there
    if ((NUM_NODES > 1)); then
        if [[ "${MS_RESUME_STORAGE:-}" == local && -z "${LOG_DIR}" ]]; then
            die "LOG_DIR is not set, and each node has a disk of its own" "set LOG_DIR to a directory that all nodes see"
        fi
        words+=(--nodes "${NUM_NODES}" --node "${NODE_RANK}" --same "$(dirname -- "${TRAINER}")" --same "${CONFIG}")
        words+=(--same "${top}/launch")
    fi
    exec python -m ms_resume.cli run --save "${save}" --log-dir "${LOG_DIR:-${save%/}.logs}" \
        --ranks "$((WORKERS / NUM_NODES))" "${words[@]}" --on-restart="$(restart_flag)" \
        -- "${BASH_SOURCE[0]}" "${arguments[@]}"
}

arguments=("$@")
enter_environment msrun "make setup"
check_numbers
set_timeouts
check_strategy_dir
if [[ "${SUPERVISE}" != 0 && "${DRY_RUN}" != 1 && -z "${MS_RESUME_WATCH_DIR:-}" ]]; then supervise; fi
LOG_DIR="${MS_RESUME_WATCH_DIR:-${LOG_DIR:-${SAVE_DIR%/}.logs/$(date -u +%Y%m%dT%H%M%SZ)-node${NODE_RANK:-0}}}"
export DEVICE_TARGET BASE_MODEL # the trainer reads them; a resume that finds nothing whole starts from the base model

actor="${BASE_MODEL}" ref="${BASE_MODEL}"
if given --resume_training; then actor="${SAVE_DIR}/train" ref="${SAVE_DIR}/ref"; fi
command=(
    msrun --worker_num="${WORKERS}" --local_worker_num="$((WORKERS / NUM_NODES))" --node_rank="${NODE_RANK}"
    --master_addr="${MASTER_ADDR}" --master_port="${MASTER_PORT}" --join=True --log_dir="${LOG_DIR}"
    "${TRAINER}" --config "${CONFIG}" --save_checkpoint_dir "${SAVE_DIR}" --save_strategy_dir "${STRATEGY_DIR}"
)
if [[ -n "${EPOCHS}" ]]; then command+=(--epochs "${EPOCHS}"); fi
if [[ -n "${STRATEGY}" ]]; then command+=(--strategy "${STRATEGY}"); fi
if ! given --actor_checkpoint_path; then command+=(--actor_checkpoint_path "${actor}"); fi
if ! given --ref_checkpoint_path; then command+=(--ref_checkpoint_path "${ref}"); fi
command+=("${arguments[@]}")

say "${WORKERS} ranks on ${DEVICE_TARGET}, checkpoints in ${SAVE_DIR}, logs in ${LOG_DIR}"
if [[ "${DRY_RUN}" != 1 ]]; then make_base_model; fi
start_msrun
