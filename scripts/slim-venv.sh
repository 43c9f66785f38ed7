#!/usr/bin/env bash
# Remove from a virtual environment what a running worker never opens.
#
#   scripts/slim-venv.sh VENV
#
# - Headers and static libraries serve compilers, and the image has none. COMPILER=1 keeps triton, which
#   calls one at run time, for `speedup: compile`.
# - Tests of packages and type stubs are not needed.
# - Of CUDA's libraries those go that nothing else links or opens by name (docs/images.md has the list
#   and how it was found): cuSOLVER for several GPUs, wrappers with other interfaces, a second copy of
#   NVRTC, tools that read hardware counters, and what NVSHMEM has for kernels.
# - Bytecode stays: without it every process of Ray would compile what it imports.
set -euo pipefail

venv=$1
before=$(du -sm "$venv" | cut -f1)
site=$(echo "$venv"/lib/python3*/site-packages)
rm -rf "$site"/pip "$site"/pip-*.dist-info "$venv"/bin/pip* "$venv"/include
rm -rf "$site"/torch/include "$site"/torch/share/cmake "$site"/torch/test "$site"/torch/bin/protoc*
find "$site" -type d \( -name tests -o -name test \) \
  -path '*/site-packages/*' ! -path '*/torch/*' ! -path '*/numpy/*' ! -path '*/ray/*' -prune -exec rm -rf {} +
find "$site" -type d -path '*/nvidia/*/include' -prune -exec rm -rf {} +
rm -f "$site"/nvidia/*/lib/lib{cusolverMg,cufftw,nvblas,nvrtc.alt,nvrtc-builtins.alt,nvtx3interop}.so*
rm -f "$site"/nvidia/*/lib/lib{nvperf_host,nvperf_target,pcsamplingutil,checkpoint}.so* "$site"/nvidia/*/lib/*.bc
if [[ ${COMPILER:-0} != 1 ]]; then rm -rf "$site"/triton "$site"/triton-*.dist-info; fi
find "$site" \( -name '*.a' -o -name '*.pyi' -o -name '*.pxd' -o -name '*.pyx' \) -delete
echo "$venv: $before MB before, $(du -sm "$venv" | cut -f1) MB after"
