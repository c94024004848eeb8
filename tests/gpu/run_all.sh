#!/usr/bin/env bash
# Every GPU test, compute-sanitizer over the kernels, and every GPU benchmark, on a GPU host.
#
#   tests/gpu/run_all.sh OUT [tests] [sanitizer] [bench] [BENCH_SECTION ...]
#
# Without a part's name all of them run; a section of tests/bench/gpu_runner.py stands for itself.
# Run from the repository's root with an environment that imports TensorRT, pycuda, OpenCV and pytest: `pip install
# -e '.[gpu,rtx,torch,opencv,eval,dev]'`, or an offline bundle's folder in PYTHONPATH, with the project's wheel in it.
# YOLOTRT_TEST_DATA names the test data; YOLOTRT_GPU_ENGINES a folder for the engines (default OUT/engines), see
# engines.py. OUT receives tests.xml with the measured figures, memcheck.txt, racecheck.txt, bench.json and detections for scoring.
set -uo pipefail
out=${1:?usage: run_all.sh OUT [tests] [sanitizer] [bench] [BENCH_SECTION ...]}; shift
mkdir -p "$out"
export PYTHONPATH=$PWD:$PWD/plugins:${PYTHONPATH:-} PYTHONUNBUFFERED=1
export YOLOTRT_GPU_ENGINES=${YOLOTRT_GPU_ENGINES:-$out/engines}
parts=" ${*:-tests sanitizer bench} "
failed=0
python3 tests/gpu/engines.py --data "$YOLOTRT_TEST_DATA" --out "$YOLOTRT_GPU_ENGINES" || exit 1
if [[ $parts == *" tests "* ]]; then
  python3 -m pytest -q -n 0 -p no:cacheprovider -m gpu tests/gpu tests/plugins/tensorrt_plugin/test_on_gpu.py --durations 8 \
    -o junit_family=xunit1 \
    --junitxml "$out/tests.xml" || failed=1
fi
if [[ $parts == *" sanitizer "* ]]; then
  for tool in memcheck racecheck; do
    # cuda-python asks the driver for calls that it may not have: memcheck would count each answer as an error.
    options=(--tool "$tool" --error-exitcode 9)
    [[ $tool == memcheck ]] && options+=(--report-api-errors no)
    compute-sanitizer "${options[@]}" \
      python3 -m pytest -q -n 0 -p no:cacheprovider -m gpu tests/gpu/test_gpu_kernels.py \
      -k "nv12 or graph or thousands" > "$out/$tool.txt" 2>&1 || failed=1
    echo "$tool: $(grep -a 'ERROR SUMMARY\|RACECHECK SUMMARY' "$out/$tool.txt" | tail -1)," \
      "$(grep -a 'passed\|failed' "$out/$tool.txt" | tail -1)"
  done
fi
sections=${parts// tests / }; sections=${sections// sanitizer / }
if [[ $sections == *" bench "* ]]; then sections=; elif [[ -z ${sections// /} ]]; then exit $failed; fi
# shellcheck disable=SC2086 # one word a section
python3 tests/bench/gpu_runner.py --engines "$YOLOTRT_GPU_ENGINES" --data "$YOLOTRT_TEST_DATA" \
  --out "$out/bench.json" $sections || failed=1
exit $failed
