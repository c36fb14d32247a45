#!/usr/bin/env bash
# Starts a GRPO run on several nodes: prints one line for each node; copied there, each starts that node's share.
#
#   NODES='10.0.0.1 10.0.0.2' WORKERS=16 SAVE_DIR=/shared/out launch/multi_node.sh [--resume_training ...]
#
# The nodes' supervisors agree by files in LOG_DIR, which all must see. Before each start node 0 checks that every node is
# ready, sees the same save directory, and has the same toolkit, trainer, configuration and versions; an attempt that failed
# on one node is ended on all, and all make the same next start. Knobs that are set go into the lines.
set -euo pipefail
top="$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")")"

NODES="${NODES:-}"         # addresses, the first one is where msrun's scheduler listens
NODE_RANK="${NODE_RANK:-}" # set in the lines: start this node's share
MASTER_PORT="${MASTER_PORT:-8118}"
WORKERS="${WORKERS:-16}" # ranks of the whole job

die() {
    printf 'multi_node: %s\n' "$1" "  -> $2" >&2
    exit 2
}

if [[ "${SUPERVISE:-1}" == 0 ]]; then
    die "SUPERVISE=0: nobody would check that all nodes see the same" "leave it out, or use launch/run_grpo.sh"
fi
if [[ -n "${NODE_RANK}" ]]; then
    export WORKERS MASTER_PORT NODE_RANK
    exec "${top}/launch/run_grpo.sh" "$@"
fi

read -r -d '' -a addresses <<<"${NODES}" || true # at blanks and newlines
if ((${#addresses[@]} < 2)); then die "NODES is '${NODES}', expected two addresses or more" "NODES='10.0.0.1 10.0.0.2'"; fi
knobs=("WORKERS=${WORKERS}" "NUM_NODES=${#addresses[@]}" "MASTER_ADDR=${MASTER_ADDR:-${addresses[0]}}"
    "MASTER_PORT=${MASTER_PORT}")
for name in SAVE_DIR LOG_DIR STRATEGY_DIR STRATEGY CONFIG EPOCHS TRAINER BASE_MODEL VENV CONDA_ENV ASCEND_ENV DEVICE_TARGET \
    DRY_RUN "${!HCCL_@}" "${!MS_RESUME_@}"; do
    if [[ -n "${!name:-}" ]]; then knobs+=("${name}=${!name}"); fi
done
for rank in "${!addresses[@]}"; do
    printf '# on %s\ncd %q && env' "${addresses[rank]}" "${PWD}"
    printf ' %q' "NODE_RANK=${rank}" "${knobs[@]}" "${top}/launch/multi_node.sh" "$@"
    echo
done
