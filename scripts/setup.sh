#!/usr/bin/env bash
# Set up everything that is needed to run the application (`base`), to develop (`dev`), or to run the
# orchestrator alone, without torch and Ray (`orchestrator`). Do nothing if it is there.
#
#   scripts/setup.sh orchestrator|base|dev
#
# 1. The digest of the locks, this script, the folder and the kind of the machine is compared with the
#    stamp of the last complete set-up. If they are equal, neither pip nor apt is called.
# 2. System tools are installed with apt-get if the user is root. Otherwise one line names the command.
# 3. .venv is made with Python 3.11, the build of torch that fits, and the locks, by hash and without
#    dependencies.
# 4. For `dev` the mmpose stack is installed. If that fails, its tests are skipped.
# 5. The commands `lipsync` and `serve` are written, the result is checked, and the stamp is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=.venv
readonly CACHE=.cache
readonly WANTED_PYTHON=3.11
readonly TORCH_INDEX=https://download.pytorch.org/whl
readonly SPEECH=usr/share/pocketsphinx/test/data/librivox

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'set-up: %s\n' "$*" >&2; exit 1; }

# --- what kind of machine is this -----------------------------------------------------------------

has_gpu() { compgen -G '/dev/nvidia[0-9]*' >/dev/null || nvidia-smi -L >/dev/null 2>&1; }

# The CUDA version that the driver supports, e.g. 13.0; empty without nvidia-smi.
driver_cuda() {
  local answer
  answer=$(nvidia-smi 2>/dev/null || true)
  if [[ $answer =~ CUDA[^:]*Version:\ *([0-9]+\.[0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; fi
}

# cpu, cu13 (the registry's own build) or cu126. torch 2.13 comes for CUDA 12.6, 13.0 and 13.2:
# 12.6 stops at Hopper, so a Blackwell card needs a driver for CUDA 13 (580 or newer).
# TORCH_BUILD decides if the machine that builds is not the one that runs, as in Dockerfile.gpu.
torch_build() {
  if [[ -n ${TORCH_BUILD:-} ]]; then echo "$TORCH_BUILD"; return; fi
  has_gpu || { echo cpu; return; }
  local cuda capability
  cuda=$(driver_cuda)
  if [[ -z $cuda || ${cuda%%.*} -ge 13 ]]; then echo cu13; return; fi
  # Wheels for CUDA 12.6 run with every driver of CUDA 12, and with none before it.
  [[ ${cuda%%.*} -ge 12 ]] || fail "the NVIDIA driver is too old: 525 or newer is needed; the one here is for CUDA $cuda"
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -rn | head -n 1)
  [[ ${capability%%.*} -lt 10 ]] || fail "this GPU (compute capability $capability) needs NVIDIA driver 580 or newer; the driver here is for CUDA $cuda"
  echo cu126
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} "python$WANTED_PYTHON" python3 python; do
    if [[ $("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) == "$WANTED_PYTHON" ]]; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python $WANTED_PYTHON was not found: install it (Debian 12: apt-get install python3 python3-venv; Ubuntu: add the deadsnakes PPA, then apt-get install python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3.11"
}

# --- system tools ---------------------------------------------------------------------------------

can_apt() { [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; }

apt_install() { apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }

# The lists of a fresh machine are empty, and those of an old one name files that are gone.
apt_get() { DEBIAN_FRONTEND=noninteractive apt_install "$@" 2>/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt_install "$@"; }; }

need_tools() {
  local missing=()
  command -v ffmpeg >/dev/null && command -v ffprobe >/dev/null || missing+=(ffmpeg)
  command -v curl >/dev/null || missing+=(curl)
  [[ ${#missing[@]} -gt 0 ]] || return 0
  can_apt || fail "${missing[*]} missing: run 'sudo apt-get install -y ${missing[*]}' and try again"
  say "installing ${missing[*]} with apt-get"
  apt_get "${missing[@]}" || fail "apt-get could not install ${missing[*]}; install them by hand and try again"
}

# Recorded speech for the demo and the tests. Everything else works without it, so no failure is fatal.
want_speech() {
  [[ ! -d /$SPEECH && ! -d $CACHE/speech/$SPEECH ]] || return 0
  say "fetching recorded speech for the demo (Debian package pocketsphinx-testdata)"
  if can_apt && apt_get pocketsphinx-testdata; then return; fi
  local folder
  folder=$(mktemp -d)
  if (cd "$folder" && apt-get download -qq pocketsphinx-testdata) 2>/dev/null && dpkg -x "$folder"/*.deb "$CACHE/speech"; then
    rm -rf "$folder"
    return
  fi
  rm -rf "$folder"
  if ! command -v espeak-ng >/dev/null; then
    say "no recorded speech could be fetched: 'make run' will need AUDIO=your-speech.wav"
  fi
}

want_espeak() {
  command -v espeak-ng >/dev/null && return
  if can_apt && apt_get espeak-ng; then return; fi
  say "espeak-ng is missing: tests that synthesise speech are skipped (sudo apt-get install -y espeak-ng)"
}

# --- Python ---------------------------------------------------------------------------------------

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

make_venv() {
  local python=$1
  # The scripts in a venv contain its path, so one that was moved is made again.
  if grep -qsF "$PWD/$VENV" "$VENV/bin/activate" && "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
    return
  fi
  say "making $VENV with $("$python" -V)"
  # Debian's Python comes without the module.
  if ! "$python" -c 'import ensurepip' 2>/dev/null && ! { can_apt && apt_get "python$WANTED_PYTHON-venv"; }; then
    fail "Python has no venv module: run 'sudo apt-get install -y python$WANTED_PYTHON-venv' and try again"
  fi
  # `--clear` would empty the environment that a link leads to, which belongs to somebody else.
  [[ ! -L $VENV ]] || rm "$VENV"
  "$python" -m venv --clear "$VENV"
}

# A machine without a GPU must not download gigabytes of CUDA. Listing the versions that the
# configured index and links offer downloads nothing, and only a build with "+cpu" is taken from there.
# Every name is requested from one index only, so that nobody can take it over on another. The build
# for CUDA 12.6 has no hashes here, because its index was out of reach (docs/dependencies.md).
install_torch() {
  local build=$1 version offered
  version=$(sed -n 's/^torch==//p' requirements/torch.in)
  say "installing torch $version ($build)"
  case $build in
    cpu)
      offered=$("$VENV/bin/python" -m pip index versions torch 2>/dev/null || true)
      if [[ $offered == *"$version+cpu"* ]]; then
        pip install --no-deps --require-hashes -r requirements/torch-cpu.lock
      else
        pip install --no-deps --require-hashes --index-url "$TORCH_INDEX/cpu" -r requirements/torch-cpu.lock
      fi ;;
    cu126)
      pip install --no-deps --index-url "$TORCH_INDEX/cu126" "torch==$version+cu126"
      # The CUDA libraries that it names come from the configured index, and the rest as it is locked. A
      # constraint with a hash would demand hashes of them too.
      sed -n 's/^\([A-Za-z0-9._-]*==[^ ]*\).*/\1/p' requirements/base.lock >"$CACHE/constraints.txt"
      pip install -c "$CACHE/constraints.txt" "torch==$version+cu126" ;;
    cu13) pip install --no-deps --require-hashes -r requirements/torch-cu13.lock ;;
    *) fail "TORCH_BUILD=$build is not known: cpu, cu126 or cu13" ;;
  esac
}

install_locks() {
  local profile=$1 files=(-r requirements/base.lock -r requirements/files.txt)
  [[ $profile == base ]] || files+=(-r requirements/dev.lock -r requirements/files-dev.txt)
  say "installing the pinned Python packages ($profile)"
  pip install --no-deps --require-hashes "${files[@]}"
}

# Without the stack its tests are skipped, and all others still run. It is tried again when the stamp
# no longer fits, after `make clean` or with a changed lock.
want_mm() {
  say "installing the mmpose stack, for its tests"
  local log=$CACHE/install-mm.log
  scripts/install-mm.sh "$VENV/bin/python" >"$log" 2>&1 ||
    say "the mmpose stack could not be installed, so its tests are skipped ($log; 'make mm' tries again)"
}

# Write the program $1, whose Python code is on standard input, for the Python of this .venv. Its first
# lines are shell to /bin/sh and a text to Python, because `#!` takes neither spaces nor long paths.
write_command() {
  local file=$VENV/bin/$1
  {
    printf '%s\n' '#!/bin/sh' "'''exec' \"$PWD/$VENV/bin/python\" \"\$0\" \"\$@\"" "' '''"
    cat
  } >"$file.new"
  chmod 755 "$file.new"
  mv "$file.new" "$file"
}

# `serve run` of this project's configurations is checked as `lipsync serve` is; the rest is Ray's.
write_serve_command() {
  write_command serve <<'PY'
# Ray's command `serve`; `serve run` of a lip-sync configuration starts serve_app.launch.
import os
import sys

sys.path.insert(0, os.getcwd())
try:
    from serve_app.serve_command import main
except ModuleNotFoundError:  # called from another project's folder
    from ray.serve.scripts import cli as main
sys.exit(main())
PY
}

# A script instead of an editable install: it needs no build, it works where the code comes later than
# the environment (Dockerfile.gpu), and it follows a checkout that links to the .venv of another one.
write_lipsync_command() {
  write_command lipsync <<'PY'
# The command `lipsync`; lipsync/app.py lists its commands.
import os
import sys

# The checkout by whose .venv this was called, else the one whose .venv it is.
checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0]))))
if not os.path.isfile(os.path.join(checkout, "lipsync", "__main__.py")):
    checkout = os.path.dirname(sys.prefix)
sys.path[0] = checkout
from lipsync.__main__ import main

main()
PY
}

check_orchestrator() {
  "$VENV/bin/python" -c 'import alembic, fastapi, httpx, jinja2, psycopg, sqlalchemy, typer, uvicorn'
}

check_result() {
  "$VENV/bin/python" - "$1" <<'PY'
import importlib.util
import sys

if importlib.util.find_spec("torchvision"):
    sys.exit("set-up: torchvision got installed; it breaks CPU torch. Run 'make clean' and start again.")
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reports home on import
import av, cv2, diffusers, fastapi, onnxruntime, ray.serve, torch, transformers  # noqa: E401

build = sys.argv[1]
if build == "cpu" and torch.version.cuda:
    sys.exit(f"set-up: a CUDA build of torch ({torch.__version__}) got installed on a machine without a GPU")
if build != "cpu" and not torch.cuda.is_available():
    print(f"set-up: warning: torch {torch.__version__} does not see the GPU; check the driver", file=sys.stderr)
PY
}

# --------------------------------------------------------------------------------------------------

digest_of() {
  local profile=$1 build=$2
  { cat scripts/setup.sh requirements/orchestrator.lock
    [[ $profile == orchestrator ]] || cat requirements/torch.in requirements/torch-*.lock requirements/base.lock requirements/files.txt
    [[ $profile != dev ]] || cat requirements/dev.lock requirements/files-dev.txt scripts/install-mm.sh requirements/mm*
    echo "$PWD"
    [[ $profile == orchestrator ]] || echo "$build"
  } | sha256sum | cut -d' ' -f1
}

has_stamp() { [[ $(cat "$VENV/.stamp-$1" 2>/dev/null) == "$2" && -x $VENV/bin/python ]]; }

is_done() {
  local profile=$1 digest=$2
  has_stamp "$profile" "$digest" || return 1
  [[ $profile == orchestrator ]] ||
    { command -v ffmpeg >/dev/null && command -v ffprobe >/dev/null && command -v curl >/dev/null; }
}

set_up_orchestrator() {
  make_venv "$1"
  say "installing the pinned Python packages of the orchestrator"
  pip install --no-deps --require-hashes -r requirements/orchestrator.lock
  write_lipsync_command
  check_orchestrator
}

set_up_application() {
  local python=$1 profile=$2 build=$3
  need_tools
  want_speech
  [[ $profile == base ]] || want_espeak
  make_venv "$python"
  install_torch "$build"
  install_locks "$profile"
  [[ $profile == base ]] || want_mm
  write_serve_command
  write_lipsync_command
  check_result "$build"
}

# What is complete holds all that the profiles before it need.
set_stamps() {
  local profile
  for profile in dev base orchestrator; do
    [[ $1 == orchestrator && $profile != orchestrator || $1 == base && $profile == dev ]] ||
      digest_of "$profile" "$2" >"$VENV/.stamp-$profile"
  done
}

main() {
  local profile=${1:-base} build="" digest python
  [[ $profile =~ ^(orchestrator|base|dev)$ ]] || fail "usage: scripts/setup.sh orchestrator|base|dev"
  [[ $profile == orchestrator ]] || build=$(torch_build)
  digest=$(digest_of "$profile" "$build")
  if is_done "$profile" "$digest"; then return; fi
  mkdir -p "$CACHE"
  exec 9>"$CACHE/setup.lock"
  flock 9  # two calls of make must not fill one .venv concurrently
  if is_done "$profile" "$digest"; then return; fi
  python=$(find_python)
  if [[ $profile == orchestrator ]]; then set_up_orchestrator "$python"
  else set_up_application "$python" "$profile" "$build"; fi
  set_stamps "$profile" "$build"
  say "set-up done; $VENV/bin/lipsync --help lists what it can do"
}

# The tests source this file and call the functions above one by one.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
