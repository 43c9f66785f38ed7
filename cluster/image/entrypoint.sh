#!/bin/sh
# What a container of the worker image does is its first argument; anything else is run as it is.
set -eu

# Only an image with heavy models has a list of them. Status 3: this machine or this image is unfit.
verify_weights() {
  [ -z "${WEIGHTS_LIST:-}" ] || lipsync weights verify --list "$WEIGHTS_LIST" || exit 3
}

case "${1:-serve}" in
  serve) shift $(($# > 0)); verify_weights; exec lipsync serve "${1:-$SERVE_CONFIG}" ;;
  salad-queue) shift; verify_weights; exec salad-queue "${1:-$SERVE_CONFIG}" ;;
  run-job | run_job) shift; verify_weights; exec lipsync run-job "$@" ;;
  bench) shift; exec lipsync bench "$@" ;;
  *) exec "$@" ;;
esac
