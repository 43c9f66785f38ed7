#!/usr/bin/env bash
# Pack what a machine with a CUDA GPU and no network lacks; `--help` and docs/gpu-kit.md say how.
#
#   scripts/gpu_kit.sh [OUTDIR]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH=$root exec "${PYTHON:-$root/.venv/bin/python}" -m gpu_kit.pack "$@"
