#!/usr/bin/env bash
# Runs the LLaMA-Factory trainings of one user and date, one after the other, at that time; recovers those that fail.
#
#   launch/scheduled_train.sh --user gsn --date 202507152000
#   launch/scheduled_train.sh --user gsn --date 202507152000 --devices 0,1,2,3 --auto-recovery
#   launch/scheduled_train.sh --user gsn --date 202507152000 --dry-run     prints what would happen
#
# The files are ${TRAIN_YAML_DIR}/<user>/<date>/*.yaml, in the order of their names; each has its log beside it. One that
# fails gets a recovery file, from its newest whole checkpoint (docs/scheduled_train.md); --auto-recovery runs that too.
#
# Exit code: the largest of all files. 0 trained, 1 failed and a recovery file waits, 2 usage, 10 failed without a
# checkpoint, 40 disk, 60 not to be helped by trying, 61 these files are being run already; 130 and 143 when interrupted.
set -euo pipefail
top="$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")")"

TRAIN_YAML_DIR="${TRAIN_YAML_DIR:-train_yaml}"
VENV="${VENV:-${VIRTUAL_ENV:-${top}/.venv}}" # first on PATH unless CONDA_ENV is set; it holds llamafactory-cli
CONDA_ENV="${CONDA_ENV:-}"
ASCEND_ENV="${ASCEND_ENV:-}" # for example /usr/local/Ascend/ascend-toolkit/set_env.sh
RULES="${RULES:-}"           # a site's own rules for why a training failed, see docs/supervisor.md

user="" date="" devices="" auto=0 dry=0
files=() results=() worst=0 child="" current=""
path="${top}${PYTHONPATH:+:${PYTHONPATH}}" # for the toolkit's Python, not for the trainings

# shellcheck disable=SC1091  # lies beside this one, and is checked by itself
source "${top}/launch/common.sh"

read_arguments() {
    local name
    while (($#)); do
        name="${1%%=*}"
        case "${name}" in
            --user | --date | --devices)
                if [[ "$1" == *=* ]]; then set -- "${name}" "${1#*=}" "${@:2}"; fi
                (($# > 1)) || die "${name} needs a value" "see the head of ${BASH_SOURCE[0]}"
                printf -v "${name#--}" '%s' "$2"
                shift
                ;;
            --auto-recovery | --dry-run)
                [[ "$1" != *=* ]] || die "${name} takes no value, found '$1'" "leave it out for no"
                if [[ "$1" == --dry-run ]]; then dry=1; else auto=1; fi
                ;;
            --help | -h)
                sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
                exit 0
                ;;
            *) die "unknown argument '$1'" "known are --user, --date, --devices, --auto-recovery, --dry-run" ;;
        esac
        shift
    done
}

check_toolkit() { # now, and not when a training has failed after hours
    PYTHONPATH="${path}" python -c 'import ms_resume.recover.running' 2>/dev/null ||
        die "$(command -v python || echo 'no python on PATH, which') cannot run ms_resume" "into that environment: pip install ${top}"
    if [[ -n "${RULES}" && ! -f "${RULES}" ]]; then die "RULES=${RULES} is no file" "correct RULES, or unset it"; fi
}

check_names() {
    [[ "${user}" =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] ||
        die "--user is '${user}', expected letters, digits, '_', '.' and '-'" "give the name of a directory in ${TRAIN_YAML_DIR}"
    if [[ ! "${date}" =~ ^[0-9]{12}$ ]] || ! start="$(seconds_of "${date}" 2>/dev/null)"; then
        die "--date is '${date}', expected a time as YYYYMMDDHHMM" "for example --date $(date +%Y%m%d2000)"
    fi
}

seconds_of() { date -d "${1:0:4}-${1:4:2}-${1:6:2} ${1:8:2}:${1:10:2}" +%s; }

check_devices() {
    if [[ -z "${devices}" ]]; then return; fi
    local device known
    [[ "${devices}" =~ ^[0-9]{1,4}(,[0-9]{1,4})*$ ]] ||
        die "--devices is '${devices}', expected numbers with commas between" "for example --devices 0,1,2,3"
    [[ -z "$(tr , '\n' <<<"${devices}" | sort | uniq -d)" ]] || die "--devices ${devices} names a device twice" "name it once"
    export ASCEND_RT_VISIBLE_DEVICES="${devices}"
    if ! command -v npu-smi >/dev/null; then
        say "warning: no npu-smi here, so it is not known whether devices ${devices} exist"
        return
    fi
    # Rows: NPU ID, chip ID, logic ID, name; the controller's have no logic ID. Tried with a stand-in only.
    known="$(npu-smi info -m | awk '$1 ~ /^[0-9]+$/ && $3 ~ /^[0-9]+$/ { print $3 }')" ||
        die "npu-smi info -m failed" "look at it by hand: are the drivers loaded?"
    for device in ${devices//,/ }; do
        grep -qx -- "${device}" <<<"${known}" ||
            die "device ${device} does not exist, there are ${known//$'\n'/,}" "correct --devices; npu-smi info shows them"
    done
}

find_files() {
    local file skipped=0 dir="${TRAIN_YAML_DIR%/}/${user}/${date}"
    [[ -d "${dir}" ]] || die "${dir}: no such directory" "make it and put the YAML files in it, or set TRAIN_YAML_DIR"
    files=()
    for file in "${dir}"/*.yaml; do
        if [[ "${file}" =~ _recovery_[0-9]{8}_[0-9]{6}(_[0-9]+)?\.yaml$ ]]; then
            skipped=$((skipped + 1))
        elif [[ -f "${file}" ]]; then
            files+=("${file}")
        fi
    done
    if ((skipped)); then say "${skipped} recovery files there are left out: llamafactory-cli train FILE runs one"; fi
    ((${#files[@]})) || die "${dir}: no *.yaml in it" "put the YAML files there"
}

lock() { # by the directory itself: no file is written, and the lock goes with this process
    exec 9<"$1"
    flock -n 9 || die "$1: another scheduled_train.sh runs these files, or waits to" "let it, or end it" 61
}

wait_for_start() {
    local left=$((start - $(date +%s)))
    if ((left <= 0)); then
        say "$(date -d "@${start}" '+%F %R') is past: starting at once"
        return
    fi
    say "waiting until $(date -d "@${start}" '+%F %R %Z'), $((left / 3600)) h $((left % 3600 / 60)) min, for:" "${files[@]/#/  }"
    while ((left > 0)); do # a clock that is set, or a host that slept, is noticed within a minute
        attend sleep "$((left < 60 ? left : 60))"
        left=$((start - $(date +%s)))
    done
    find_files # more may have come
}

attend() { # runs a command so that a signal is heard at once, and not after it
    local code=0
    "$@" 9<&- &
    child=$!
    wait "${child}" 2>/dev/null || code=$? # where a signal ended it, bash would print this line
    child=""
    return "${code}"
}

# shellcheck disable=SC2329  # the traps call it
stop() {
    trap '' INT TERM HUP
    if [[ -n "${child}" ]]; then kill -TERM "${child}" 2>/dev/null || true; fi
    if [[ -n "${current}" ]]; then "${top}/launch/kill_npu_process.sh" "${current}" || true; fi
    if [[ -n "${child}" ]]; then wait "${child}" || true; fi
    note "$1" interrupted "${current:-before the first file}"
    summary
    exit "$1"
}

note() { # code, what became of it, file
    results+=("$(printf '%-13s %3d  %s' "$2" "$1" "$3")")
    if (($1 > worst)); then worst="$1"; fi
}

# exec: what `attend` signals is then the command itself.
# shellcheck disable=SC2329  # `attend` calls both
train() { exec env TRAINING_YAML="$(realpath -- "$1")" llamafactory-cli train "$1" >>"$2" 2>&1; }
# shellcheck disable=SC2329
recover() { exec env PYTHONPATH="${path}" python -m ms_resume.cli recover "$@"; }

run_one() {
    local yaml="$1" log="${1%.yaml}.log" code=0 recovered=0 words=("$1") begin alive
    if ! alive="$("${top}/launch/kill_npu_process.sh" --dry-run "${yaml}" 2>&1)"; then
        say "${yaml}: is being trained already" "${alive}" "  -> let it end, or ${top}/launch/kill_npu_process.sh ${yaml}"
        note 61 "not started" "${yaml}"
        return
    fi
    current="${yaml}"
    if ! : >>"${log}"; then
        say "${yaml}: ${log} cannot be written" "  -> make the directory writable, or free space there"
        note 40 "no log" "${yaml}"
        return
    fi
    begin="$(stat -L -c %s -- "${log}")"
    say "training ${yaml}, log ${log}"
    attend train "${yaml}" "${log}" || code=$?
    if ((code == 0)); then
        note 0 trained "${yaml}"
        return
    fi
    say "${yaml}: failed (${code}), see ${log}"
    attend "${top}/launch/kill_npu_process.sh" "${yaml}" || say "${yaml}: something of it is left, see above"
    words+=(--exit-code "${code}" --log-from "${begin}")
    if [[ -n "${RULES}" ]]; then words+=(--rules "${RULES}"); fi
    if ((auto)); then words+=(--run); fi
    attend recover "${words[@]}" || recovered=$?
    case "${recovered}" in
        0) if ((auto)); then note 0 recovered "${yaml}"; else note 1 failed "${yaml}"; fi ;;
        10) note 10 "no checkpoint" "${yaml}" ;;
        60) note 60 "gave up" "${yaml}" ;;
        *) note "${recovered}" "not recovered" "${yaml}" ;;
    esac
}

summary() {
    local result
    say "summary: what became of it, exit code, file"
    for result in "${results[@]}"; do say "  ${result}"; done
}

print_plan() {
    local yaml command run=""
    if ((auto)); then run=" --run"; fi
    echo "at $(date -d "@${start}" '+%F %R'), in this order:"
    for yaml in "${files[@]}"; do
        command=(llamafactory-cli train "${yaml}")
        if [[ -n "${devices}" ]]; then command=("ASCEND_RT_VISIBLE_DEVICES=${devices}" "${command[@]}"); fi
        printf '%q ' "${command[@]}"
        printf '>>%q 2>&1\n' "${yaml%.yaml}.log"
    done
    echo "where one fails:"
    printf '%q FILE\nms-resume recover FILE%s\n' "${top}/launch/kill_npu_process.sh" "${run}"
}

read_arguments "$@"
check_names
enter_environment llamafactory-cli "pip install llamafactory"
check_toolkit
check_devices
find_files
if ((dry)); then
    print_plan
    exit 0
fi
lock "${TRAIN_YAML_DIR%/}/${user}/${date}"
trap 'stop 130' INT
trap 'stop 143' TERM HUP
wait_for_start
for file in "${files[@]}"; do run_one "${file}"; done
summary
exit "${worst}"
