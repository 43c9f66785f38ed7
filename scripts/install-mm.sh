#!/usr/bin/env bash
# Install the mm stack, which the `mmpose` landmark detector and the export to ONNX need:
#   mmpose 1.3.2, mmdet 3.3.0, mmcv 2.1.0 (with compiled operators where possible), mmengine 0.10.7.
#
#   scripts/install-mm.sh [PYTHON]     default: .venv/bin/python of this project, else python3
#
# torchvision is never installed, and nothing of requirements/base.lock is changed: every step has
# --no-deps. Run it again and it does nothing. Everything has its hash in requirements/, except the
# tools that build xtcocotools and mmcv, and wheels that are on this machine already.
#
# mmcv with operators comes from, in this order:
#   1. MMCV_WHEEL, a wheel file or a folder of wheels;
#   2. ../shared/wheels next to the project, if a wheel there fits this Python;
#   3. a build from source, with MMCV_BUILD=1 (minutes; CUDA operators too where nvcc is found).
# Otherwise mmcv-lite: RTMPose needs no compiled operator, and musetalk_pipeline/faces/mmpose.py
# says which imports of other models it then fills in.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
readonly SOURCES=$root/requirements/mm-source.lock
MMCV=$(sed -n 's/^mmcv==\([^ ]*\).*/\1/p' "$SOURCES")
XTCOCOTOOLS=$(sed -n 's/^xtcocotools==\([^ ]*\).*/\1/p' "$SOURCES")
python=${1:-$root/.venv/bin/python}
[ $# -gt 0 ] || [ -x "$python" ] || python=$(command -v python3)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }

has() { # NAME VERSION: whether exactly this is installed
    "$python" -c 'import sys
from importlib.metadata import PackageNotFoundError, version
try:
    sys.exit(version(sys.argv[1]) != sys.argv[2])
except PackageNotFoundError:
    sys.exit(1)' "$1" "$2"
}

# A build environment of its own, because mmcv and xtcocotools need a setuptools older than 81,
# whose pkg_resources they import, and PYTHON keeps the one that it has. NumPy and torch are seen
# from PYTHON, so that what is compiled fits them.
build_python() {
    if [ ! -x "$work/build/bin/python" ]; then
        "$python" -m venv "$work/build" >&2
        "$work/build/bin/python" -m pip --disable-pip-version-check install -q \
            "setuptools>=70,<81" "wheel>=0.45" "cython>=3" "ninja>=1.11" >&2
        "$python" -c 'import sys; print(*(p for p in sys.path if "-packages" in p), sep="\n")' \
            > "$("$work/build/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/target.pth"
    fi
    echo "$work/build/bin/python"
}

build_wheel() { # NAME: build it into $work/wheels, from the source that has its hash
    grep -A1 "^$1==" "$SOURCES" > "$work/$1.txt"
    "$(build_python)" -m pip --disable-pip-version-check wheel -q --no-build-isolation --no-deps \
        --require-hashes --no-binary :all: --wheel-dir "$work/wheels" -r "$work/$1.txt"
}

mmcv_wheels() { # the folder or file that a ready wheel of mmcv may come from
    if [ -n "${MMCV_WHEEL:-}" ]; then
        echo "$MMCV_WHEEL"
    elif [ -d "$root/../shared/wheels" ]; then
        echo "$root/../shared/wheels"
    fi
}

install_mmcv() {
    if has mmcv "$MMCV" || { has mmcv-lite "$MMCV" && [ -z "${MMCV_WHEEL:-}${MMCV_BUILD:-}" ]; }; then
        return
    fi
    local from
    from=$(mmcv_wheels)
    pip uninstall -q -y mmcv-lite 2> /dev/null # the two share their files
    if [ -f "$from" ]; then
        pip install -q --no-deps "$from"
    elif [ -d "$from" ] &&
        pip install -q --no-deps --no-index --find-links "$from" "mmcv==$MMCV" 2> "$work/mmcv.log"; then
        :
    elif [ -n "${MMCV_WHEEL:-}" ]; then
        echo "install-mm: no wheel of mmcv $MMCV for this Python in MMCV_WHEEL=$MMCV_WHEEL" >&2
        exit 1
    elif [ -n "${MMCV_BUILD:-}" ]; then
        MMCV_WITH_OPS=1 build_wheel mmcv
        pip install -q --no-deps "$work"/wheels/mmcv-*.whl
    else
        pip install -q --no-deps --require-hashes -r "$root/requirements/mm-lite.txt"
    fi
}

if ! "$python" -c 'import cv2, numpy, scipy, torch' 2> "$work/import.log"; then
    echo "install-mm: $python lacks the project's packages: run scripts/setup.sh base first" >&2
    exit 1
fi

pip install -q --no-deps --require-hashes -r "$root/requirements/mm.txt"
install_mmcv
if ! has xtcocotools "$XTCOCOTOOLS"; then
    build_wheel xtcocotools # its published wheel was built for NumPy 1
    pip install -q --no-deps "$work"/wheels/xtcocotools-*.whl
fi

"$python" - <<'CHECK'
from importlib.metadata import PackageNotFoundError, version

names = ("mmpose", "mmdet", "mmcv", "mmcv-lite", "mmengine", "xtcocotools")
for name in names:
    try:
        print(f"{name} {version(name)}")
    except PackageNotFoundError:
        pass
CHECK
