#!/usr/bin/env bash
# Starts this node's share of a MindRLHF GRPO job under msrun, with the adapter that makes its checkpoints whole. Every
# knob is a variable; arguments go to MindRLHF's main.py and win. docs/mindrlhf.md goes through it step by step.
#
#   MAIN=main.py CONFIG=grpo.yaml MODEL=/models/qwen SAVE_DIR=out launch/run_mindrlhf.sh    from the start
#   ... launch/run_mindrlhf.sh --resume_training     on from the newest whole checkpoint in out
#   BRANCH=dev ... launch/run_mindrlhf.sh            hydra's overrides instead of flags
#   ADAPTER=0 ... launch/run_mindrlhf.sh             stock MindRLHF, in the same directory
#   DRY_RUN=1 ... launch/run_mindrlhf.sh             prints the command; makes, clears and starts nothing
set -euo pipefail
top="$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")")"

BRANCH="${BRANCH:-master}"  # of MindRLHF: master (flags) or dev (overrides)
ADAPTER="${ADAPTER:-1}"     # 0 goes back to stock
MAIN="${MAIN:-}"            # MindRLHF's entry point: examples/grpo/qwen_grpo_tutorial/main.py
CONFIG="${CONFIG:-}"        # its YAML file; on dev empty leaves the one beside MAIN
MODEL="${MODEL:-}"          # directory of the model that a fresh run trains from
SAVE_DIR="${SAVE_DIR:-output/mindrlhf}"
WORKERS="${WORKERS:-8}" # ranks of the whole job
NUM_NODES="${NUM_NODES:-1}"
NODE_RANK="${NODE_RANK:-}" # of this node, from 0; must be given when there are several
MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"
MASTER_PORT="${MASTER_PORT:-9190}"
LOG_DIR="${LOG_DIR:-${SAVE_DIR%/}.logs/$(date -u +%Y%m%dT%H%M%SZ)-node${NODE_RANK:-0}}"
STRATEGY_DIR="${STRATEGY_DIR:-${SAVE_DIR%/}.strategy}" # rl_config.save_strategy_dir; cleared before each start
STRATEGY="${STRATEGY:-}"                               # checked against WORKERS: a name in strategy_templates/, or a file
VENV="${VENV:-${VIRTUAL_ENV:-${top}/.venv}}"           # first on PATH unless CONDA_ENV is set
CONDA_ENV="${CONDA_ENV:-}"
ASCEND_ENV="${ASCEND_ENV:-}" # for example /usr/local/Ascend/ascend-toolkit/set_env.sh
DRY_RUN="${DRY_RUN:-0}"

# shellcheck disable=SC1091  # lies beside this one, and is checked by itself
source "${top}/launch/common.sh"

check_mindrlhf() {
    [[ "${BRANCH}" == master || "${BRANCH}" == dev ]] || die "BRANCH is '${BRANCH}'" "use master or dev"
    [[ -f "${MAIN}" ]] || die "MAIN='${MAIN}' is no file" "give the path of MindRLHF's main.py"
    if [[ "${BRANCH}" == master && ! -f "${CONFIG}" ]]; then
        die "CONFIG='${CONFIG}' is no file" "give MindRLHF's YAML file"
    fi
    if [[ -z "${MODEL}" ]] && ! given --resume_training && ! given --actor_checkpoint_path && ! given actor_config.load; then
        die "MODEL is empty, and this is a fresh run" "give the model's directory, or --resume_training"
    fi
}

sort_arguments() { # into the adapter's own words, and MindRLHF's
    local argument
    for argument in "${arguments[@]}"; do
        case "${argument}" in
            --take_over | --allow_fresh_start) own+=("${argument}") ;;
            --resume_training) resume=1 ;;
            *) words+=("${argument}") ;;
        esac
    done
    if ((resume)); then actor="${SAVE_DIR}/train" ref="${SAVE_DIR}/ref"; fi
}

flags() { # master
    command+=(--config "${CONFIG}" --save_checkpoint_dir "${SAVE_DIR}")
    # Stock MindRLHF does not know this flag; the adapter makes it the key that it is.
    if [[ "${ADAPTER}" == 1 ]]; then command+=(--save_strategy_dir "${STRATEGY_DIR}"); fi
    if ((resume)); then command+=(--resume_training); fi
    if ! given --actor_checkpoint_path; then command+=(--actor_checkpoint_path "${actor}"); fi
    if ! given --ref_checkpoint_path; then command+=(--ref_checkpoint_path "${ref}"); fi
}

overrides() { # dev; hydra may go to another directory before MindRLHF looks at a path
    local name
    for name in SAVE_DIR STRATEGY_DIR actor ref; do
        if [[ -n "${!name}" ]]; then printf -v "${name}" %s "$(realpath -m -- "${!name}")"; fi
    done
    if [[ -n "${CONFIG}" ]]; then
        command+=(--config-path "$(cd "$(dirname -- "${CONFIG}")" && pwd -P)" --config-name "$(basename -- "${CONFIG%.*}")")
    fi
    command+=("actor_config.save=${SAVE_DIR}" "rl_config.save_strategy_dir=${STRATEGY_DIR}")
    if ((resume)); then command+=(rl_config.resume_training=True); fi
    if ! given actor_config.load; then command+=("actor_config.load=${actor}"); fi
    if ! given ref_config.load; then command+=("ref_config.load=${ref}"); fi
}

arguments=("$@") own=() words=() resume=0 actor="${MODEL}" ref="${MODEL}"
check_mindrlhf
enter_environment msrun "make setup"
check_numbers
set_timeouts
check_strategy_dir
sort_arguments

command=(
    msrun --worker_num="${WORKERS}" --local_worker_num="$((WORKERS / NUM_NODES))" --node_rank="${NODE_RANK}"
    --master_addr="${MASTER_ADDR}" --master_port="${MASTER_PORT}" --join=True --log_dir="${LOG_DIR}"
)
if [[ "${ADAPTER}" == 1 ]]; then command+=(python -m ms_resume.adapters.mindrlhf "${own[@]}"); fi
command+=("${MAIN}")
if [[ "${BRANCH}" == dev ]]; then overrides; else flags; fi
command+=("${words[@]}")

say "${WORKERS} ranks, MindRLHF ${BRANCH}, checkpoints in ${SAVE_DIR}, logs in ${LOG_DIR}"
start_msrun
