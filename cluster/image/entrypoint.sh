#!/bin/sh
# What a container of the worker image does is its first argument; anything else is run as it is.
set -eu

case "${1:-serve}" in
  serve) shift $(($# > 0)); exec lipsync serve "${1:-$SERVE_CONFIG}" ;;
  run-job | run_job) shift; exec lipsync run-job "$@" ;;
  bench) shift; exec lipsync bench "$@" ;;
  *) exec "$@" ;;
esac
