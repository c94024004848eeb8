#!/usr/bin/env bash
# Every GPU test, compute-sanitizer over the kernels, and every GPU benchmark, on a GPU host.
#
#   tests/gpu/run_all.sh OUT [BENCH_SECTION ...]
#
# Run from the repository's root with an environment that imports TensorRT, pycuda, OpenCV and pytest: `pip install
# -e '.[gpu,rtx,opencv,dev]'`, or an offline bundle's folder in PYTHONPATH. YOLOTRT_TEST_DATA names the test data;
# YOLOTRT_GPU_ENGINES a folder of engines as tests/gpu/conftest.py lists them (needed by the benchmarks).
# OUT receives tests.xml, sanitizer.txt, bench.json and the detections for scoring.
set -uo pipefail
out=${1:?usage: run_all.sh OUT [BENCH_SECTION ...]}; shift
mkdir -p "$out"
export PYTHONPATH=${PYTHONPATH:-}:$PWD:$PWD/plugins PYTHONUNBUFFERED=1
failed=0
python3 -m pytest -q -p no:cacheprovider -m gpu tests/gpu tests/plugins/tensorrt/test_on_gpu.py \
  --junitxml "$out/tests.xml" || failed=1
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 \
      python3 -m pytest -q -p no:cacheprovider -m gpu tests/gpu/test_gpu_kernels.py \
      -k "nv12 or graph or thousands" >> "$out/sanitizer.txt" 2>&1 || failed=1
    echo "$tool: $(grep -a 'ERROR SUMMARY\|RACECHECK SUMMARY' "$out/sanitizer.txt" | tail -1)"
  done
fi
if [[ -n ${YOLOTRT_GPU_ENGINES:-} ]]; then
  python3 tests/bench/gpu_runner.py --engines "$YOLOTRT_GPU_ENGINES" --data "$YOLOTRT_TEST_DATA" \
    --out "$out/bench.json" "$@" || failed=1
fi
exit $failed
