#!/bin/sh
# Builds, tests and measures everything for the GPU, in a time that is known before:
#
#     bench/gpu.sh FOLDER [SECONDS [PART...]]
#
# SECONDS: 600 by default. PART: warm tests times counters sanitizers; all of them by default, in this
# order. The first two, which leave the GPU idle for the most part, run side by side.
#
#   warm        the benchmarks without clocks: kernels are compiled, and their configurations chosen
#   tests       all tests of the GPU's code
#   times       the benchmarks, which have the GPU to themselves
#   counters    hardware counters of the dense CRF's programs
#   sanitizers  memory and races, of the CRF's blocks and of a short run of every kernel
#
# FOLDER gets results.tgz, written again after every step, so that what was measured is there when
# the time runs out: benchmarks as JSON, a trace, a log of every step, and summary.json with seconds
# and exit code of each (124: out of time). What fails is named at the end, and nothing is left out
# because of it.
#
# PYTHON  an interpreter with torch, pybind11, cmake, pytest, pytest-benchmark; python3 by default
# WHEELS  a folder of wheels for what it lacks, where nothing can be downloaded
# PHOTOS  a folder of JPEGs that are labelled; without it pictures are drawn
set -u
usage() {
  echo "usage: bench/gpu.sh FOLDER [SECONDS [warm|tests|times|counters|sanitizers ...]]" >&2
  exit 2
}
[ $# -ge 1 ] || usage
folder=$1
seconds=${2:-600}
case "$seconds" in '' | *[!0-9]*) usage ;; esac
if [ $# -gt 2 ]; then
  shift 2
else
  set -- warm tests times counters sanitizers
fi
for part in "$@"; do
  case "$part" in warm | tests | times | counters | sanitizers) ;; *) usage ;; esac
done
parts=" $* "
mkdir -p "$folder" || exit 1
folder=$(cd "$folder" && pwd)
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

wanted() { case "$parts" in *" $1 "*) true ;; *) false ;; esac }

save() { # everything so far, whole or not at all
  {
    printf '{"seconds": %d, "steps": [\n' $(($(date +%s) - start))
    cat "$results"/*.step 2>/dev/null | sed '$!s/$/,/'
    printf ']}\n'
  } > "$results/summary.json"
  tar -czf "$folder/.part" -C "$results" --exclude='*.step' . &&
    mv "$folder/.part" "$folder/results.tgz"
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

build() { # unless it was built before
  if ! "$PYTHON" -c 'import weaktr.ops.dense_crf.cuda' 2> /dev/null; then
    step build 200 env WEAKTR_BUILD=require WEAKTR_CUDA=ON WEAKTR_CUDA_ARCHITECTURES=native \
      CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" "$PYTHON" setup.py --quiet build_ext --inplace
  fi
}

warm_up() { # what is chosen beside other work would be chosen wrongly: that cache is thrown away
  for name in attention cam_cuda clipped_cross_entropy training_cuda; do
    WEAKTR_CACHE="$scratch/tuned" pytest_of "warm_$name" 100 "bench/bench_$name.py" \
      --benchmark-disable &
  done
  WEAKTR_CACHE="$scratch/tuned" step warm_label 100 "$PYTHON" bench/label_trace.py 32 \
    "$scratch/trace.json" &
}

run_tests() {
  for file in attention_triton head_stats fuse_heads clipped_cross_entropy \
    clipped_cross_entropy_triton large_shapes dense_crf_cuda dense_crf attention_dispatch \
    attention_sdpa; do
    pytest_of "test_$file" 150 "tests/ops/test_$file.py" &
  done
  pytest_of test_kernels 120 tests/kernels/test_kernels.py &
  pytest_of test_labelling 150 tests/models/test_packing.py tests/inference tests/refine \
    tests/stages/test_label.py tests/cli/test_photographs.py tests/cli/test_photographs_labels.py \
    tests/cli/test_photographs_places.py tests/cli/test_photographs_turned.py &
  pytest_of test_compiled_training 150 tests/stages/test_compiled_training.py &
}

# bench_of FILE SECONDS ARGUMENTS...: bench/bench_FILE.py -> FILE.json
bench_of() {
  name=$1 limit=$2
  shift 2
  pytest_of "bench_$name" "$limit" "bench/bench_$name.py" --benchmark-max-time=0.3 \
    --benchmark-min-rounds=5 --benchmark-json="$results/$name.json" "$@"
  save
}

run_benchmarks() {
  bench_of dense_crf_cuda 60
  bench_of cam_cuda 60
  bench_of training_cuda 90
  bench_of clipped_cross_entropy 40
  bench_of attention 30
  for amp in none fp16; do
    step "label_$amp" 60 "$PYTHON" bench/label_trace.py 512 "$results/label_$amp.trace.json" \
      --amp "$amp" --photographs "${PHOTOS:-}" --results "$results/label_$amp.json"
    save
  done
}

read_counters() {
  for labels in 4 21; do
    step "ncu_dense_crf_L$labels" 40 ncu --clock-control none --section SpeedOfLight \
      --section MemoryWorkloadAnalysis --section Occupancy --section WarpStateStats \
      --kernel-name regex:run_program --launch-count 40 "$PYTHON" bench/kernel_times.py \
      coco_cam "$labels" 8 textured
    save
  done
}

sanitized() { # a short run of every Triton kernel; without torch's memory pool, which hides overruns
  for tool in memcheck racecheck; do
    step "kernels_$tool" 120 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 WEAKTR_TUNE=0 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" -m tests.ops.short_run
  done
}

sanitized_blocks() { # the CUDA code's block-level checks
  step check_blocks_build 120 "$CUDACXX" -std=c++17 -O3 -arch=native -lineinfo -fmad=false \
    -DWEAKTR_WITH_CUDA -Icsrc -Itests/native tests/native/sanitizers/check_blocks.cpp \
    tests/native/emulation/emulation.cpp csrc/dense_crf/cuda/launch.cu -o "$scratch/check_blocks"
  for tool in memcheck racecheck initcheck synccheck; do
    step "check_blocks_$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$scratch/check_blocks"
  done
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader \
  | tee "$results/gpu.txt"
if [ -n "${WHEELS:-}" ]; then
  step wheels 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
    --target "$scratch/site" "$WHEELS"/*.whl
fi
step environment 60 "$PYTHON" -m weaktr.cli env
build # before any test: it replaces the module that tests import
save
if wanted warm; then warm_up; fi
if wanted tests; then run_tests; fi
wait
save
if wanted times; then run_benchmarks; fi
if wanted counters; then read_counters; fi
if wanted sanitizers; then
  sanitized &
  sanitized_blocks &
  wait
fi
save
failed=$(grep -L '"code": 0}' "$results"/*.step)
for file in $failed; do
  name=$(basename "$file" .step)
  echo "failed: $name"
  tail -n 5 "$results/$name.log"
done
echo "$(($(date +%s) - start)) s; results in $folder/results.tgz"
[ -z "$failed" ]
