"""Time our calibrators beside onnxruntime's own on the same ONNX and images, each in its own process.

    python tests/bench/calibrate.py --weights yolov5n.pt --images DIR [--count 128] [--entropy]

Order is shuffled; wall and CPU seconds and the peak memory of each process are printed, with the ratio
to the peer. onnxruntime's entropy takes minutes, so it runs only when asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (640, 640)
OURS = ("minmax", "percentile", "mse", "entropy")


def _batches(files: list[Path]) -> Iterator[np.ndarray]:
    from yolotrt_core.inference.letterbox import preprocess
    from yolotrt_core.media import images

    for file in files:
        yield preprocess([images.read(file)], SIZE)[0]


def _ours(method: str, onnx: Path, files: list[Path], out: Path) -> None:
    import yolotrt_calibrators
    from yolotrt_core.types import BuildRequest, ModelSpec, OnnxModel

    stage: Any = next(c for c in yolotrt_calibrators.yolotrt_calibrators() if c.name == method)
    model = OnnxModel(onnx, "0" * 64, ModelSpec((), (), (), ()))
    stage.calibrate(model, _batches(files), BuildRequest("fp32", 1, *SIZE), stage.Options(), out)


def _peer(method: str, onnx: Path, files: list[Path], out: Path) -> None:
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.source = _batches(files)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.source, None)
            return None if batch is None else {"images": batch}

    kinds = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "percentile": (CalibrationMethod.Percentile, {"num_bins": 2048, "percentile": 99.999}),
        # Its default of 128 bins leaves a single threshold to choose from.
        "entropy": (CalibrationMethod.Entropy, {"num_bins": 2048}),
    }
    kind, options = kinds[method]
    calibrator = create_calibrator(
        onnx,
        ["Conv"],
        augmented_model_path=str(out / "augmented.onnx"),
        calibrate_method=kind,
        extra_options={"symmetric": True, **options},
    )
    calibrator.set_execution_providers(["CPUExecutionProvider"])
    calibrator.collect_data(Reader())
    calibrator.compute_data()


def _measure(whose: str, method: str, onnx: Path, files: list[Path], results: Any) -> None:
    import cv2
    import onnxruntime

    del cv2, onnxruntime  # imported before the clock starts
    with tempfile.TemporaryDirectory() as folder:
        began, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):  # onnxruntime prints as it goes
            (_ours if whose == "ours" else _peer)(method, onnx, files, Path(folder))
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    results.put((wall, cpu, _peak_mb()))


def _peak_mb() -> float:
    """Peak resident memory of this process; `getrusage` would count the parent's before `exec`."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _export(weights: Path, folder: Path) -> Path:
    from yolotrt_core.api import build_engine
    from yolotrt_core.pipeline.build_options import BuildSettings
    from yolotrt_core.plugin.registry import Registry
    from yolotrt_core.store.location import open_store

    settings = BuildSettings(weights=weights, precision="fp32", imgsz=SIZE, builder="onnxruntime")
    return build_engine(settings, store=open_store(folder / "store"), registry=Registry.discover(), out=folder).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--entropy", action="store_true", help="run onnxruntime's entropy too (minutes)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    files = sorted(asked.images.glob("*.jpg"))[: asked.count]
    jobs = [("ours", m) for m in OURS] + [("onnxruntime", m) for m in ("minmax", "percentile")]
    jobs += [("onnxruntime", "entropy")] if asked.entropy else []
    order = jobs * asked.rounds
    random.Random(asked.seed).shuffle(order)
    spawn = multiprocessing.get_context("spawn")
    times: dict[tuple[str, str], list[tuple[float, float, float]]] = {job: [] for job in jobs}
    with tempfile.TemporaryDirectory() as folder:
        onnx = _export(asked.weights, Path(folder))
        for whose, method in order:
            results = spawn.Queue()
            process = spawn.Process(target=_measure, args=(whose, method, onnx, files, results))
            process.start()
            times[whose, method].append(results.get())
            process.join()
    print(f"{len(files)} images, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; best of {asked.rounds}")
    print(f"{'method':12} {'whose':12} {'wall s':>8} {'CPU s':>8} {'peak MB':>8} {'ratio':>6}")
    for whose, method in jobs:
        wall, cpu, peak = (min(t[i] for t in times[whose, method]) for i in range(3))
        peer = times.get(("onnxruntime", method))
        ratio = f"{wall / min(t[0] for t in peer):.2f}" if peer and whose == "ours" else ""
        print(f"{method:12} {whose:12} {wall:8.1f} {cpu:8.1f} {peak:8.0f} {ratio:>6}")


if __name__ == "__main__":
    main()
