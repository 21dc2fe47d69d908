#!/bin/sh
# Builds, checks and measures the CUDA code on a machine with a GPU, in under ten minutes:
#
#     bench/gpu.sh
#
# PYTHON: an interpreter with torch, pybind11, cmake, pytest and pytest-benchmark; python3 by default.
# OUT: folder for the results; by default benchmarks go where bench/report.py looks for them.
# What fails is named at the end, and nothing is left out because of it.
set -u
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
RESULT=${OUT:+$OUT/dense_crf.json}
RESULT=${RESULT:-$("$PYTHON" bench/report.py --where)}
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 WEAKTR_TEST_REQUIRE=cpu,cuda
export CUDACXX="${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=""

# step SECONDS COMMAND...: run it, with a limit
step() {
  limit=$1
  shift
  echo "== $*"
  begin=$(date +%s)
  timeout "$limit" "$@" || failed="$failed
  $*"
  echo "== $(($(date +%s) - begin)) s"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
step 200 env WEAKTR_BUILD=require WEAKTR_CUDA=ON WEAKTR_CUDA_ARCHITECTURES=native \
  CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" "$PYTHON" setup.py --quiet build_ext --inplace

step 120 "$CUDACXX" -std=c++17 -O3 -arch=native -lineinfo -fmad=false -DWEAKTR_WITH_CUDA -Icsrc \
  tests/ops/native/check_blocks.cpp csrc/dense_crf_cuda.cu csrc/dense_crf_emulation.cpp \
  -o "$folder/check_blocks"
step 30 "$folder/check_blocks"
for tool in memcheck racecheck initcheck synccheck; do
  step 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$folder/check_blocks"
done

step 120 "$PYTHON" -m pytest -q -p no:cacheprovider tests/ops/test_dense_crf_cuda.py \
  tests/ops/test_dense_crf.py
step 200 "$PYTHON" -m pytest -q -p no:cacheprovider bench/bench_dense_crf_cuda.py \
  --benchmark-max-time=0.5 --benchmark-json="$RESULT"
step 60 "$PYTHON" bench/kernel_times.py

if [ -n "$failed" ]; then
  echo "failed:$failed"
  exit 1
fi
echo "all well; results in $RESULT"
