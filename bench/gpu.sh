#!/bin/sh
# Builds, tests and measures everything for the GPU in one run of less than ten minutes:
#
#     bench/gpu.sh FOLDER
#
# FOLDER gets the benchmarks as JSON, a log of every step, and summary.json: seconds and exit code of
# each step (124: it ran out of time). What fails is named at the end, and nothing is left out
# because of it; only what ten minutes have no room for.
# PYTHON: an interpreter with torch, pybind11, cmake, pytest and pytest-benchmark; python3 by default.
set -u
if [ $# -ne 1 ]; then
  echo "usage: bench/gpu.sh FOLDER (gets JSON and logs)" >&2
  exit 2
fi
mkdir -p "$1" || exit 1
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 WEAKTR_TEST_REQUIRE=cpu,cuda,triton
export CUDACXX="${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}"
unset TRITON_INTERPRET # kernels are compiled, not interpreted
start=$(date +%s)
deadline=$((start + 590))
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
rm -f "$folder"/*.step

# step NAME SECONDS COMMAND...: run it with a limit; its output goes to NAME.log
step() {
  name=$1 limit=$2
  shift 2
  begin=$(date +%s)
  left=$((deadline - begin))
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  code=124
  if [ "$limit" -gt 0 ]; then
    timeout "$limit" "$@" > "$folder/$name.log" 2>&1
    code=$?
  else
    echo "no time left" > "$folder/$name.log"
  fi
  seconds=$(($(date +%s) - begin))
  printf '{"step": "%s", "seconds": %d, "code": %d}\n' "$name" "$seconds" "$code" \
    > "$folder/$name.step"
  echo "$name: $seconds s, exit code $code"
}

# pytest_of NAME SECONDS ARGUMENTS...
pytest_of() {
  name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$PYTHON" -m pytest -q -p no:cacheprovider "$@"
}

# bench_of FILE SECONDS ARGUMENTS...: bench/bench_FILE.py -> FILE.json
bench_of() {
  name=$1 limit=$2
  shift 2
  pytest_of "bench_$name" "$limit" "bench/bench_$name.py" \
    --benchmark-max-time=0.5 --benchmark-json="$folder/$name.json" "$@"
}

blocks() { # the CUDA code's block-level checks, and their sanitizers
  step check_blocks_build 120 "$CUDACXX" -std=c++17 -O3 -arch=native -lineinfo -fmad=false \
    -DWEAKTR_WITH_CUDA -Icsrc -Itests/native tests/native/sanitizers/check_blocks.cpp \
    tests/native/emulation/emulation.cpp csrc/dense_crf/cuda/launch.cu -o "$scratch/check_blocks"
  step check_blocks 30 "$scratch/check_blocks"
  for tool in memcheck racecheck initcheck synccheck; do
    step "check_blocks_$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$scratch/check_blocks"
  done
}

build_and_crf() {
  step build 200 env WEAKTR_BUILD=require WEAKTR_CUDA=ON WEAKTR_CUDA_ARCHITECTURES=native \
    CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" "$PYTHON" setup.py --quiet build_ext --inplace
  pytest_of dense_crf_tests 120 tests/ops/test_dense_crf_cuda.py tests/ops/test_dense_crf.py
}

sanitized() { # a short run of every Triton kernel; without torch's memory pool, which hides overruns
  for tool in memcheck racecheck; do
    step "kernels_$tool" 150 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 WEAKTR_TUNE=0 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" -m tests.ops.short_run
  done
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader \
  | tee "$folder/gpu.txt"
step environment 60 "$PYTHON" -m weaktr.cli env

# Tests share the GPU; most of their time compilers take.
build_and_crf &
blocks &
sanitized &
for op in attention_triton head_stats fuse_heads clipped_cross_entropy clipped_cross_entropy_triton \
  large_shapes; do
  pytest_of "${op}_tests" 300 "tests/ops/test_$op.py" &
done
# Compilers do the benchmarks' work too; what is tuned beside others would be tuned wrongly.
WEAKTR_CACHE="$scratch" pytest_of compile_benchmarks 300 bench/bench_attention.py \
  bench/bench_cam_cuda.py bench/bench_clipped_cross_entropy.py --benchmark-disable &
pytest_of kernels_tests 120 tests/kernels/test_kernels.py &
pytest_of models_tests 120 tests/models/test_packing.py tests/ops/test_attention_dispatch.py \
  tests/ops/test_attention_sdpa.py &
pytest_of compiled_training_tests 200 tests/stages/test_compiled_training.py &
wait

# Benchmarks have it to themselves.
bench_of cam_cuda 150
bench_of attention 40
bench_of clipped_cross_entropy 90
bench_of dense_crf_cuda 100
bench_of cam 60
step kernel_times 60 "$PYTHON" bench/kernel_times.py

{
  printf '{"seconds": %d, "steps": [\n' $(($(date +%s) - start))
  cat "$folder"/*.step | sed '$!s/$/,/'
  printf ']}\n'
} > "$folder/summary.json"
failed=$(grep -L '"code": 0}' "$folder"/*.step)
for file in $failed; do
  name=$(basename "$file" .step)
  echo "failed: $name, see $folder/$name.log"
  tail -n 5 "$folder/$name.log"
done
rm -f "$folder"/*.step
echo "$(($(date +%s) - start)) s; results in $folder"
[ -z "$failed" ]
