"""Times of the GPU runner, beside a bare TensorRT loop and upstream's own pipeline, in one run.

    python tests/bench/gpu_runner.py --engines DIR --data DIR [--out results.json] [SECTION ...]

DIR holds one folder per variant of tests/gpu/engines.py. Sections: engine, frame, throughput, masks, jpeg, folder,
start, peer, accuracy; default all. `peer` needs torch and the package `yolov5`, and is left out, saying so, without
them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from gpu_accuracy import accuracy

from yolotrt_core.api import Detector
from yolotrt_core.benchmark.timer import measure_interleaved
from yolotrt_core.inference.engine_file import read_engine_spec
from yolotrt_core.inference.image_loader import decode_ahead, read_ahead
from yolotrt_core.media import images
from yolotrt_core.media.decode_pool import ImageProcesses, region_bytes
from yolotrt_core.media.prefetch import prefetched
from yolotrt_core.store.location import open_store
from yolotrt_core.types import Selection
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.runtime.session import EngineSession, open_session
from yolotrt_yolov5.device_program import device_program

SINGLE = Selection(conf=0.25, iou=0.45)


class Bench:
    """Where the engines and images are, and the store all sessions share."""

    def __init__(self, engines: Path, data: Path, store: Path, out: Path) -> None:
        self.engines, self.data, self.store, self.out = engines, data, store, out
        self.images = sorted((data / "coco" / "images" / "val").glob("*.jpg"))

    def path(self, variant: str) -> Path:
        (path,) = (self.engines / variant).glob("*.engine")
        return path

    def open(self, variant: str, **options: Any) -> EngineSession:
        path = self.path(variant)
        side_cache = open_store(self.store).side_cache()
        return open_session(path, read_engine_spec(path), TensorRTOptions(**options), side_cache)

    def has(self, variant: str) -> bool:
        return (self.engines / variant).is_dir()

    def frames(self, count: int, size: tuple[int, int]) -> list[np.ndarray]:
        return [cv2.resize(cv2.imread(str(self.images[i % 64])), size[::-1]) for i in range(count)]


def engine(bench: Bench) -> dict[str, Any]:
    """The engine through our runner against the same engine in a bare loop; GPU milliseconds, medians of 3 rounds."""
    results = {}
    for variant in [v for v in ("fp16-b1", "fp16-b32", "fp32-b1") if bench.has(v)]:
        with bench.open(variant) as session:
            batch = session.plan.image.shape[0]
            bare = BareLoop(session)
            ours, theirs = [], []
            for _ in range(5):
                ours += session.time_engine(batch, 100)
                theirs += bare.run(100)
            results[variant] = {
                "graph": session.graph,
                "ours_ms": median(ours),
                "bare_ms": median(theirs),
                "ratio": median(ours) / median(theirs),
            }
            bare.close()
    return results


class BareLoop:
    """`execute_async_v3` on a context of its own, nothing else."""

    def __init__(self, session: EngineSession) -> None:
        self.gpu, self.plan = session.gpu, session.plan
        with self.gpu.current():
            cuda = self.gpu.cuda
            self.stream = self.gpu.stream()
            self.context = self.plan.new_context(own_graph=True)
            self.context.set_input_shape(self.plan.image.name, self.plan.image.shape)
            self.memory = []
            for tensor in (self.plan.image, *self.plan.outputs.values()):
                size = int(np.prod(tensor.shape)) * (4 if tensor.dtype == "float32" else 2)
                self.memory.append(cuda.mem_alloc(size))
                self.context.set_tensor_address(tensor.name, int(self.memory[-1]))

    def run(self, repeats: int) -> list[float]:
        with self.gpu.current():
            event = self.gpu.cuda.Event
            for _ in range(10):
                self.context.execute_async_v3(self.stream.handle)
            marks = [event() for _ in range(repeats + 1)]
            marks[0].record(self.stream)
            for mark in marks[1:]:
                self.context.execute_async_v3(self.stream.handle)
                mark.record(self.stream)
            self.stream.synchronize()
            return [a.time_till(b) for a, b in pairwise(marks)]

    def close(self) -> None:
        with self.gpu.current():
            self.context = None
            for memory in self.memory:
                memory.free()


def frame(bench: Bench) -> dict[str, Any]:
    """One 1920x1080 frame, host to boxes, from pinned and from pageable memory."""
    results = {}
    (pageable,) = bench.frames(1, (1080, 1920))
    for variant in [v for v in ("fp16-b1", "fp16-b1-i16") if bench.has(v)]:
        with bench.open(variant) as session, bench.open(variant, cuda_graph=False) as plain:
            program = device_program(session.spec.model)
            (pinned,) = session.pinned_frames(1, pageable.shape)
            pinned[:] = pageable
            calls: dict[str, Callable[[], object]] = {
                "pinned": lambda s=session, p=program, f=pinned: s.detect([f], p, SINGLE),
                "pageable": lambda s=session, p=program: s.detect([pageable], p, SINGLE),
                "pinned, no graph": lambda s=plain, p=program, f=pinned: s.detect([f], p, SINGLE),
            }
            timings = measure_interleaved(calls, repeats=800, warmup=30)
            steps = [session.time_steps([pinned], program, SINGLE) for _ in range(60)][10:]
            results[variant] = {name: dataclasses.asdict(t) for name, t in timings.items()}
            results[variant]["graph"] = session.graph
            results[variant]["steps_ms"] = {k: median(s[k] for s in steps) for k in steps[0]}
            results[variant]["boxes"] = len(session.detect([pinned], program, SINGLE)[0])
    return results


def throughput(bench: Bench) -> dict[str, Any]:
    """Frames a second from 640x480 host frames, streamed; best of three runs of about a second."""
    results: dict[str, Any] = {}
    pageable = bench.frames(96, (480, 640))
    for variant in [v for v in ("fp16-b8", "fp16-b32", "fp16-b32-i16") if bench.has(v)]:
        for in_flight in (2, 3):
            with bench.open(variant, in_flight=in_flight) as session:
                program = device_program(session.spec.model)
                pinned = session.pinned_frames(len(pageable), pageable[0].shape)
                for target, source in zip(pinned, pageable, strict=True):
                    target[:] = source
                for name, frames in (("pinned", pinned), ("pageable", pageable)):
                    rates = [_rate(session, program, frames, 12_000) for _ in range(3)]
                    results[f"{variant} {name}, {in_flight} in flight"] = round(max(rates))
                if in_flight == 3:
                    batch = session.plan.image.shape[0]
                    steps = [session.time_steps(pinned[:batch], program, SINGLE) for _ in range(30)][5:]
                    results[f"{variant} steps_ms"] = {k: round(median(s[k] for s in steps), 4) for k in steps[0]}
    return results


def masks(bench: Bench) -> dict[str, Any]:
    """Segmentation beside detection: one 1920x1080 frame to boxes and masks, and the rate of batches of 640x480."""
    results: dict[str, Any] = {}
    (pageable,) = bench.frames(1, (1080, 1920))
    with bench.open("fp16-b1") as plain, bench.open("seg-fp16-b1") as segmenting:
        calls: dict[str, Callable[[], object]] = {}
        for name, session in (("detect", plain), ("segment", segmenting)):
            program = device_program(session.spec.model)
            (pinned,) = session.pinned_frames(1, pageable.shape)
            pinned[:] = pageable
            calls[name] = lambda s=session, p=program, f=pinned: s.detect([f], p, SINGLE)
            steps = [session.time_steps([pinned], program, SINGLE) for _ in range(60)][10:]
            results[f"{name} steps_ms"] = {k: round(median(s[k] for s in steps), 4) for k in steps[0]}
            (found,) = session.detect([pinned], program, SINGLE)
            results[f"{name} boxes"] = len(found)
        timings = measure_interleaved(calls, repeats=800, warmup=30)
        results["frame"] = {name: dataclasses.asdict(t) for name, t in timings.items()}
    frames = bench.frames(96, (480, 640))
    for variant in ("fp16-b32", "seg-fp16-b32"):
        with bench.open(variant) as session:
            program = device_program(session.spec.model)
            pinned_frames = session.pinned_frames(len(frames), frames[0].shape)
            for target, source in zip(pinned_frames, frames, strict=True):
                target[:] = source
            results[f"{variant} img/s"] = round(max(_rate(session, program, pinned_frames, 12_000) for _ in range(3)))
    return results


def _rate(session: EngineSession, program: Any, frames: list[np.ndarray], count: int) -> float:
    def coming() -> Any:
        for index in range(count):
            yield frames[index % len(frames)]

    for _ in session.stream(frames, program, SINGLE):
        pass
    begin = time.perf_counter()
    found = sum(1 for _ in session.stream(coming(), program, SINGLE))
    return found / (time.perf_counter() - begin)


def jpeg(bench: Bench) -> dict[str, Any]:
    """From JPEG files, as many as are left to processes: detection beside what the decoder alone reaches, in turn."""
    paths = bench.images * 64
    files = [str(f) for f in paths]
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    with Detector.open(engine=bench.path("fp16-b32"), store=bench.store) as detector:
        region = region_bytes(images.plain_jpeg_sizes(paths))
        assert region is not None, "these files are for processes"
        begin = time.perf_counter()
        with ImageProcesses(os.cpu_count() or 2, region, detector.page_lock) as processes:
            next(processes.read(paths[:1]))
            results["start of the processes, s"] = round(time.perf_counter() - begin, 2)
            ways: dict[str, Callable[[], Iterator[Any]]] = {
                "decoder alone": lambda: prefetched(files, cv2.imread, ahead=256, together=8),
                "threads": lambda: detector.stream(read_ahead(paths[:-1], detector)),
                "processes": lambda: detector.stream(processes.read(paths)),
                "threads, then processes when these have started": lambda: detector.stream(read_ahead(paths, detector)),
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(9):
                for name, way in ways.items():
                    rates[name].append(_each_second(way()))
        for name, taken in rates.items():
            # Of the same round, since a host that others use too changes meanwhile; the first round warms up.
            of_alone = [rate / alone for rate, alone in zip(taken, rates["decoder alone"], strict=True)]
            results[name] = {
                "img/s": round(median(taken[1:])),
                "of the decoder": round(median(of_alone[1:]), 3),
                "rounds": [round(r) for r in taken],
            }
        if detector.decodes_files:
            results["on the GPU"] = _gpu_jpeg(detector, paths)
    return results


def _each_second(coming: Iterator[Any]) -> float:
    begin = time.perf_counter()
    count = sum(1 for _ in coming)
    return count / (time.perf_counter() - begin)


def _gpu_jpeg(detector: Detector, paths: list[Path]) -> dict[str, Any]:
    """Files decoded on the GPU: rates, and how far pixels and boxes are from those of OpenCV's decoder."""
    rates: dict[str, list[float]] = {"decoder": [], "boxes": []}
    for _ in range(5):
        rates["decoder"].append(_each_second(decode_ahead(paths, detector)))
        rates["boxes"].append(_each_second(detector.detect_files(paths, SINGLE)))
    results: dict[str, Any] = {
        name: {"img/s": round(median(taken[1:])), "rounds": [round(r) for r in taken]} for name, taken in rates.items()
    }
    few = paths[:64]
    decoded, host = detector.decode([f.read_bytes() for f in few]), [cv2.imread(str(f)) for f in few]
    results["left to OpenCV"] = sum(d is None for d in decoded)
    apart = [np.abs(d.to_host().astype(int) - h) for d, h in zip(decoded, host, strict=True) if d is not None]
    results["pixels apart"] = {
        "largest": max(int(a.max()) for a in apart),
        "mean": round(float(np.mean([a.mean() for a in apart])), 4),
        "over 2": round(float(np.mean([(a > 2).mean() for a in apart])), 6),
    }
    total = matched = 0
    frames = [h if d is None else d for d, h in zip(decoded, host, strict=True)]
    for a, b in zip(detector.detect(host, SINGLE), detector.detect(frames, SINGLE), strict=True):
        total += max(len(a), len(b))
        far = np.abs(a.boxes[:, None] - b.boxes[None]).max(-1) if len(a) and len(b) else np.empty((0, 0))
        near = (far < 3) & (np.abs(a.scores[:, None] - b.scores[None]) < 0.05) if far.size else far
        near = near & (a.class_ids[:, None] == b.class_ids[None]) if far.size else far
        matched += int(near.any(axis=1).sum()) if far.size else 0
    results["boxes within 3 pixels and 0.05"] = f"{matched} of {total}"
    return results


def folder(bench: Bench) -> dict[str, Any]:
    """The command on a folder of 4,096 JPEG files, with its start: seconds, and files a second."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        given = Path(place, "given")
        given.mkdir()
        for index in range(4096):
            (given / f"{index:04}.jpg").symlink_to(bench.images[index % 64])
        for annotate in ("off", "off", "on"):  # the first fills caches
            command = [sys.executable, "-c", "from yolotrt_core.cli import main; main()", "detect", "--engine"]
            options = ["--annotate", annotate, "--show-timing", "--out", f"{place}/{annotate}", str(given)]
            begin = time.perf_counter()
            done = subprocess.run(
                [*command, str(bench.path("fp16-b32")), *options],
                env={**os.environ, "YOLOTRT_STORE": str(bench.store)},
                capture_output=True,
                text=True,
                check=True,
            )
            seconds = time.perf_counter() - begin
            results[f"--annotate {annotate}"] = {"s": round(seconds, 2), "files/s": round(4096 / seconds)}
            print(done.stdout, flush=True)
        off, on = (json.loads(Path(place, a, "detections.json").read_text())["images"] for a in ("off", "on"))
        results["files with the same boxes"] = sum(a == b for a, b in zip(off, on, strict=True))
    return results


def start(bench: Bench) -> dict[str, Any]:
    """Seconds from opening to the first boxes in a new process, with an empty store and again with what it kept."""
    results: dict[str, Any] = {}
    for variant in ("fp16-b1", "fp16-b32"):
        with tempfile.TemporaryDirectory() as store:
            for name in ("cold", "warm"):
                command = [sys.executable, __file__, "--engines", str(bench.engines), "--data", str(bench.data)]
                done = subprocess.run(
                    [*command, "--store", store, "--first", variant], capture_output=True, text=True, check=True
                )
                results[f"{variant} {name}"] = json.loads(done.stdout)
    return results


def first(bench: Bench, variant: str) -> None:
    (image,) = bench.frames(1, (480, 640))
    begin = time.perf_counter()
    with bench.open(variant) as session:
        opened = time.perf_counter()
        session.detect([image], device_program(session.spec.model), SINGLE)
        print(json.dumps({"open_s": round(opened - begin, 3), "first_s": round(time.perf_counter() - begin, 3)}))


def peer(bench: Bench) -> dict[str, Any]:
    """Upstream's pipeline and ours on the same pageable 1920x1080 frame, in turn."""
    os.environ |= {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "YOLO_AUTOINSTALL": "false"}
    import torch
    from yolov5.models.experimental import attempt_load
    from yolov5.utils import downloads
    from yolov5.utils.augmentations import letterbox
    from yolov5.utils.general import non_max_suppression, scale_boxes

    downloads.attempt_download_from_hub = lambda *_, **__: None  # it would contact a hub, although the file is here
    model = attempt_load(str(bench.data / "weights" / "yolov5n.pt"), device="cuda", fuse=True).half().eval()
    (source_image,) = bench.frames(1, (1080, 1920))

    def upstream() -> np.ndarray:
        image = letterbox(source_image, (640, 640), stride=32, auto=False)[0]
        image = np.ascontiguousarray(image.transpose(2, 0, 1)[::-1])
        tensor = torch.from_numpy(image).to("cuda").half() / 255
        with torch.no_grad():
            (found,) = non_max_suppression(model(tensor[None])[0], 0.25, 0.45)
        found[:, :4] = scale_boxes(tensor.shape[1:], found[:, :4], source_image.shape)
        return np.asarray(found.cpu())

    with bench.open("fp16-b1") as session:
        program = device_program(session.spec.model)
        timings = measure_interleaved(
            {"upstream": upstream, "ours": lambda: session.detect([source_image], program, SINGLE)},
            repeats=8,
            warmup=20,
            burst=50,  # torch's threads spin for a while after each call
        )
        boxes = {"upstream": len(upstream()), "ours": len(session.detect([source_image], program, SINGLE)[0])}
    results: dict[str, Any] = {name: dataclasses.asdict(t) for name, t in timings.items()}
    return {**results, "ratio": timings["upstream"].p50_ms / timings["ours"].p50_ms, "boxes": boxes}


SECTIONS = {f.__name__: f for f in (engine, frame, throughput, masks, jpeg, folder, start, peer, accuracy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--engines", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--first", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store, out = given.store or folder / "store", given.out.parent if given.out else folder
        bench = Bench(given.engines, given.data, store, out)
        unknown = set(given.sections) - set(SECTIONS)
        if unknown:
            parser.error(f"unknown section {sorted(unknown)[0]}, expected {', '.join(SECTIONS)}")
        if given.first:
            first(bench, given.first)
            return
        results: dict[str, Any] = {"machine": machine()}
        for name in given.sections or SECTIONS:
            begin = time.perf_counter()
            try:
                results[name] = SECTIONS[name](bench)
            except Exception as err:  # noqa: BLE001 - the other sections shall still run
                traceback.print_exc()
                results[name] = {"error": f"{type(err).__name__}: {err}"}
            print(f"{name} ({time.perf_counter() - begin:.0f} s): {json.dumps(results[name], indent=1)}", flush=True)
            if given.out:
                given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return GPU, clocks, driver and versions."""
    fields = "name,driver_version,clocks.sm,clocks.mem,memory.total,power.limit"
    told = subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True
    )
    return {"gpu": told.stdout.strip(), "cpus": os.cpu_count(), "opencv": cv2.__version__, "numpy": np.__version__}


if __name__ == "__main__":
    main()
