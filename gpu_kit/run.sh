#!/usr/bin/env bash
# Run pieces of the GPU measurements; `--help` lists them. Installs nothing.
#
#   gpu_kit/run.sh [PIECE...]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python3}" -m gpu_kit.run "$@"
