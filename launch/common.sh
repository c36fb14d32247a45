# What the launch scripts share; sourced by them, never run. Their knobs are set by then: VENV, CONDA_ENV, ASCEND_ENV;
# where msrun is started also WORKERS, NUM_NODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, LOG_DIR, STRATEGY, STRATEGY_DIR,
# DRY_RUN, and `arguments`, the words for the trainer.
# shellcheck shell=bash disable=SC2154  # the knobs

say() {
    local line
    for line in "$@"; do printf '%s: %s\n' "$(basename -- "$0" .sh)" "${line}" >&2; done
}
die() {
    say "$1" "  -> $2"
    exit "${3:-2}"
}

enter_environment() { # the program that must be in it, and what to do where it is not
    set +eu # neither conda's nor Ascend's scripts survive strict mode
    if [[ -n "${CONDA_ENV}" ]]; then
        # shellcheck disable=SC1091  # lies where conda is installed
        source "$(conda info --base)/etc/profile.d/conda.sh"
        conda activate "${CONDA_ENV}" || die "conda environment '${CONDA_ENV}' cannot be activated" "see: conda env list"
    elif [[ -x "${VENV}/bin/python" ]]; then
        PATH="${VENV}/bin:${PATH}"
    fi
    if [[ -n "${ASCEND_ENV}" ]]; then
        # shellcheck disable=SC1090  # the site's own
        source "${ASCEND_ENV}" || die "ASCEND_ENV=${ASCEND_ENV} failed" "give the path of CANN's set_env.sh"
    fi
    set -eu
    command -v "$1" >/dev/null || die "no $1 on PATH, nor in ${VENV}" "$2, or set CONDA_ENV or VENV"
}

check_numbers() {
    local name
    for name in WORKERS NUM_NODES; do
        [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || die "${name} is '${!name}', expected a whole number from 1" "correct ${name}"
    done
    ((WORKERS % NUM_NODES == 0)) || die "WORKERS=${WORKERS} cannot be shared by NUM_NODES=${NUM_NODES}" "use a multiple"
    if ((NUM_NODES == 1)); then NODE_RANK="${NODE_RANK:-0}"; fi
    if [[ ! "${NODE_RANK}" =~ ^(0|[1-9][0-9]*)$ ]] || ((NODE_RANK >= NUM_NODES)); then
        die "NODE_RANK is '${NODE_RANK}', expected 0 to $((NUM_NODES - 1))" "set it on each node: the first is 0"
    fi
    if [[ -n "${STRATEGY}" ]]; then python -m ms_resume.strategies check "${STRATEGY}" --workers "${WORKERS}" >&2; fi
}

set_timeouts() { # MindSpore's 600 s and CANN's 1836 s end a job that waits for a rank that compiles, loads or saves
    local name
    export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-2400}" HCCL_EXEC_TIMEOUT="${HCCL_EXEC_TIMEOUT:-7200}"
    for name in HCCL_CONNECT_TIMEOUT HCCL_EXEC_TIMEOUT; do
        [[ "${!name}" =~ ^(0|[1-9][0-9]*)$ ]] || die "${name} is '${!name}', expected seconds" "correct ${name}, or unset it"
    done
    # 0 waits without end, which the cap ends, too.
    if [[ "${HCCL_OP_EXPANSION_MODE:-}" == AIV ]] && ((HCCL_EXEC_TIMEOUT == 0 || HCCL_EXEC_TIMEOUT > 1091)); then
        say "warning: HCCL_OP_EXPANSION_MODE=AIV caps HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT} at 1091 s"
    fi
}

given() { # whether the trainer's arguments have a flag
    local argument
    for argument in "${arguments[@]}"; do
        if [[ "${argument}" == "$1" || "${argument}" == "$1="* ]]; then return 0; fi
    done
    return 1
}

holds_checkpoints() {
    [[ -n "$(find "$1" -maxdepth 4 \( -name 'rank_*' -o -name 'iteration_*' -o -name commits -o -name meta.json \
        -o -name '*.safetensors' -o -name '*.ckpt' ! -name '*strategy*' \) -print -quit)" ]]
}

strategy_subdirs=(train_policy_strategy infer_policy_strategy infer_ref_strategy old_policy_strategy
    other_policy_strategy merge_strategy)

check_strategy_dir() {
    local real home
    real="$(realpath -m -- "${STRATEGY_DIR}")"
    while IFS= read -r home; do
        if [[ "${real}" == "$(realpath -m -- "${home:-/}")" ]]; then
            die "STRATEGY_DIR=${STRATEGY_DIR} is / or a home directory: not cleared" "give it a directory of its own"
        fi
    done < <(printf '%s\n' / "${HOME:-/}"; cut -d: -f6 /etc/passwd)
    if [[ -d "${real}" ]] && holds_checkpoints "${real}"; then
        die "STRATEGY_DIR=${STRATEGY_DIR} holds checkpoints: not cleared" "give it a directory of its own"
    fi
}

clear_strategy_dir() { # when MindSpore merges, a stale file of another topology may win over a new one
    if ((NODE_RANK == 0)); then (cd -- "${STRATEGY_DIR}" && rm -rf -- "${strategy_subdirs[@]}"); fi
}

start_msrun() { # `command`, or shows it
    if [[ "${DRY_RUN}" == 1 ]]; then
        printf '%q ' "${command[@]}"
        echo
        exit 0
    fi
    mkdir -p -- "${LOG_DIR}" "${STRATEGY_DIR}"
    clear_strategy_dir
    exec "${command[@]}"
}
