#!/usr/bin/env bash
# Prints the table of parity with the golden set next to the repository, of weights made on the spot.
# Fails on a miss. Without the set it says so and succeeds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shared=../shared
golden=$shared/golden
maker=$shared/tools/make_weights.py
python=${PYTHON:-.venv/bin/python}

for needed in "$golden" "$maker"; do
  if [[ ! -e $needed ]]; then
    echo "parity: skipped, $needed is not there"
    exit 0
  fi
done

weights=$(mktemp -d)
trap 'rm -rf "$weights"' EXIT
PYTHONWARNINGS=ignore "$python" "$maker" "$weights" tiny --seed 1234 >/dev/null
"$python" -m tests.parity --golden "$golden" --models "$weights/models" \
  --frames "$golden/astro" --landmarks "$golden/astro_landmarks.npz" --wav "$golden/sp.wav"
