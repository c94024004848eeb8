"""mAP of every calibrator and precision against fp32, as the table of the calibrators' README.

    python tests/bench/accuracy.py --weights yolov5n.pt --calib-data images/calib --data coco.yaml [--part val]

Engines run in onnxruntime on the CPU. Each row has the difference to fp32 on the same images with the
95% interval of paired resamples; `--part train` judges on the calibration images, which is how the
defaults were chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from yolotrt_core.api import Detector
from yolotrt_core.datasets import reader
from yolotrt_core.evaluation.coco_map import Bootstrap
from yolotrt_core.evaluation.evaluator import Evaluation, Evaluator
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.location import open_store

CALIBRATORS = {
    "minmax": ("minmax", {}),
    "percentile 99.999": ("percentile", {}),
    "percentile 99.99": ("percentile", {"percent": "99.99"}),
    "percentile 99.9": ("percentile", {"percent": "99.9"}),
    "mse": ("mse", {}),
    "entropy": ("entropy", {}),
}


def _rows() -> Iterator[tuple[str, str, str, dict[str, dict[str, str]]]]:
    """Yield what is shown, precision, calibrator and stage flags."""
    yield "fp16", "fp16", "", {}
    for head in ("float", "int8"):
        for shown, (name, options) in CALIBRATORS.items():
            flags = {name: dict(options), "int8": {"head": "on" if head == "int8" else "off"}}
            yield f"int8, {shown}, head {head}", "int8", name, flags
    for name in ("minmax", "percentile", "mse"):
        yield f"fp8, {name}", "fp8", name, {}
    yield "fp8, minmax, one weight scale per layer", "fp8", "minmax", {"fp8": {"weights": "tensor"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--calib-data", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("train", "val"), default="val")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--only", default="", help="rows that contain this text")
    asked = parser.parse_args()
    registry, store = Registry.discover(), open_store(asked.store)

    def evaluate(precision: str, calibrator: str, flags: dict[str, dict[str, str]]) -> tuple[Evaluator, Evaluation]:
        with Detector.open(
            asked.weights,
            store=store,
            registry=registry,
            precision=precision,
            builder="onnxruntime",
            calibrator=calibrator or None,
            calib_data=asked.calib_data,
            flags={**flags, "gate": {"check": "off"}},
        ) as detector:
            data = reader.read(asked.data, detector.labels, asked.part)
            judge = Evaluator(data, store, registry, bootstrap=Bootstrap(200))
            return judge, judge.evaluate(detector)

    judge, fp32 = evaluate("fp32", "", {})
    print("| engine | mAP50 | mAP50-95 | change of mAP50 (95%) | change of mAP50-95 (95%) |")
    print("|---|---|---|---|---|")
    print(f"| fp32 | {fp32.map50.value:.4f} | {fp32.map50_95.value:.4f} | | |")
    for shown, precision, calibrator, flags in _rows():
        if asked.only not in shown:
            continue
        _, found = evaluate(precision, calibrator, flags)
        change = judge.compare(fp32, found)
        cells = [
            f"{c.value:+.4f}" + ("" if c.low is None else f" ({c.low:+.4f} to {c.high:+.4f})")
            for c in (change.map50, change.map50_95)
        ]
        print(f"| {shown} | {found.map50.value:.4f} | {found.map50_95.value:.4f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
