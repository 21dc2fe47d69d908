#!/bin/sh
# Builds, tests and measures everything for the GPU, in two runs that each fit a short loan:
#
#     bench/gpu.sh 1 FOLDER     240 s: build, every kernel once, kernels and labelling measured
#     bench/gpu.sh 2 FOLDER     400 s: sanitizers, all GPU tests, all benchmarks at full size
#
# FOLDER gets results1.tgz or results2.tgz, written again after every step, so that what was measured
# is there when the time runs out: benchmarks as JSON, traces, a log of every step, and summary.json
# with seconds and exit code of each (124: out of time). What fails is named at the end, and nothing
# is left out because of it. The first run builds in the checkout; the second uses that, or builds.
#
# PYTHON  an interpreter with torch, pybind11, cmake, pytest, pytest-benchmark; python3 by default
# WHEELS  a folder of wheels for what it lacks, where nothing can be downloaded
set -u
case "${1:-}" in
  1) seconds=240 ;;
  2) seconds=400 ;;
  *)
    echo "usage: bench/gpu.sh 1|2 FOLDER (gets results1.tgz or results2.tgz)" >&2
    exit 2
    ;;
esac
if [ $# -ne 2 ]; then
  echo "usage: bench/gpu.sh 1|2 FOLDER (gets results1.tgz or results2.tgz)" >&2
  exit 2
fi
number=$1
mkdir -p "$2" || exit 1
folder=$(cd "$2" && pwd)
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
start=$(date +%s)
deadline=$((start + seconds))
scratch=$(mktemp -d)
results="$scratch/results"
mkdir "$results"
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$PWD:$scratch/site" PYTHONUNBUFFERED=1 WEAKTR_TEST_REQUIRE=cpu,cuda,triton
export CUDACXX="${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}"
unset TRITON_INTERPRET # kernels are compiled, not interpreted

save() { # everything so far, whole or not at all
  {
    printf '{"run": %d, "seconds": %d, "steps": [\n' "$number" $(($(date +%s) - start))
    cat "$results"/*.step 2>/dev/null | sed '$!s/$/,/'
    printf ']}\n'
  } > "$results/summary.json"
  tar -czf "$folder/.part" -C "$results" --exclude='*.step' . &&
    mv "$folder/.part" "$folder/results$number.tgz"
}

# step NAME SECONDS COMMAND...: run it with a limit; its output goes to NAME.log
step() {
  name=$1 limit=$2
  shift 2
  begin=$(date +%s)
  left=$((deadline - begin))
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  code=124
  if [ "$limit" -gt 0 ]; then
    timeout -s INT -k 5 "$limit" "$@" > "$results/$name.log" 2>&1
    code=$?
  else
    echo "no time left" > "$results/$name.log"
  fi
  took=$(($(date +%s) - begin))
  printf '{"step": "%s", "seconds": %d, "code": %d}\n' "$name" "$took" "$code" \
    > "$results/$name.step"
  echo "$name: $took s, exit code $code"
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
    --benchmark-max-time=0.3 --benchmark-json="$results/$name.json" "$@"
  save
}

build() {
  step build 150 env WEAKTR_BUILD=require WEAKTR_CUDA=ON WEAKTR_CUDA_ARCHITECTURES=native \
    CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" "$PYTHON" setup.py --quiet build_ext --inplace
}

build_blocks() { # the CUDA code's block-level checks
  step check_blocks_build 120 "$CUDACXX" -std=c++17 -O3 -arch=native -lineinfo -fmad=false \
    -DWEAKTR_WITH_CUDA -Icsrc -Itests/native tests/native/sanitizers/check_blocks.cpp \
    tests/native/emulation/emulation.cpp csrc/dense_crf/cuda/launch.cu -o "$scratch/check_blocks"
}

compile_kernels() { # Triton's compilers do the benchmarks' work before anything is timed
  # what is tuned beside others would be tuned wrongly: that cache is thrown away
  WEAKTR_CACHE="$scratch/tuned" pytest_of compile_benchmarks "$1" bench/bench_attention.py \
    bench/bench_cam_cuda.py bench/bench_clipped_cross_entropy.py --benchmark-disable
}

counters() { # counters LABELS: hardware counters of the CRF's programs
  step "ncu_dense_crf_L$1" 25 ncu --clock-control none --section SpeedOfLight \
    --section MemoryWorkloadAnalysis --section Occupancy --kernel-name regex:run_program \
    --launch-count 40 "$PYTHON" bench/kernel_times.py coco_cam "$1" 4 textured
}

first_run() {
  build &
  build_blocks &
  compile_kernels 60 &
  wait
  save
  step check_blocks 20 "$scratch/check_blocks"
  step short_run 40 "$PYTHON" -m tests.ops.short_run
  save
  # times, with the GPU to themselves
  step label_trace 40 "$PYTHON" bench/label_trace.py 64 "$results/label_trace.json"
  step label_trace_half 30 "$PYTHON" bench/label_trace.py 64 "$results/label_trace_half.json" \
    --amp auto
  save
  bench_of dense_crf_cuda 40
  bench_of cam_cuda 30
  bench_of attention 15
  bench_of clipped_cross_entropy 20
  step kernel_times_L4 15 "$PYTHON" bench/kernel_times.py coco_cam 4 64 textured
  step kernel_times_L21 15 "$PYTHON" bench/kernel_times.py voc_seg 21 64 textured
  counters 4
  counters 21
  save
  pytest_of dense_crf_tests 40 tests/ops/test_dense_crf_cuda.py
  pytest_of large_shapes_tests 40 tests/ops/test_large_shapes.py
  pytest_of sdpa_tests 30 tests/ops/test_attention_sdpa.py
}

sanitized() { # a short run of every Triton kernel; without torch's memory pool, which hides overruns
  for tool in memcheck racecheck; do
    step "kernels_$tool" 120 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 WEAKTR_TUNE=0 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" -m tests.ops.short_run
  done
}

sanitized_blocks() {
  build_blocks
  for tool in memcheck racecheck initcheck synccheck; do
    step "check_blocks_$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$scratch/check_blocks"
  done
}

second_run() {
  build # before any test: it replaces the module that tests import
  save
  sanitized &
  sanitized_blocks &
  for op in attention_triton head_stats fuse_heads clipped_cross_entropy \
    clipped_cross_entropy_triton large_shapes dense_crf_cuda dense_crf attention_dispatch \
    attention_sdpa; do
    pytest_of "${op}_tests" 200 "tests/ops/test_$op.py" &
  done
  pytest_of kernels_tests 120 tests/kernels/test_kernels.py &
  pytest_of labelling_tests 150 tests/models/test_packing.py tests/inference tests/refine \
    tests/stages/test_label.py tests/cli/test_photographs.py &
  pytest_of compiled_training_tests 200 tests/stages/test_compiled_training.py &
  wait
  save
  # benchmarks have the GPU to themselves
  step label_trace_large 60 "$PYTHON" bench/label_trace.py 1024 "$results/label_trace_large.json" \
    --amp auto
  bench_of label 60 --all-cells
  bench_of cam_cuda 50
  bench_of dense_crf_cuda 50
  bench_of clipped_cross_entropy 40
  bench_of cam 30
  bench_of attention 20
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader \
  | tee "$results/gpu.txt"
if [ -n "${WHEELS:-}" ]; then
  step wheels 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
    --target "$scratch/site" "$WHEELS"/*.whl
fi
step environment 60 "$PYTHON" -m weaktr.cli env
if [ "$number" -eq 1 ]; then first_run; else second_run; fi
save
failed=$(grep -L '"code": 0}' "$results"/*.step)
for file in $failed; do
  name=$(basename "$file" .step)
  echo "failed: $name"
  tail -n 5 "$results/$name.log"
done
echo "$(($(date +%s) - start)) s; results in $folder/results$number.tgz"
[ -z "$failed" ]
