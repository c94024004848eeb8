"""Decoding and suppression from raw (B, 25200, 85) output beside the peers', in one run.

    python tests/bench/decode.py --weights yolov5n.pt --images coco/images/val --peer-python ../peer/bin/python

The raw output is that of the exported network on the first 16 images of the folder; `--raw FILE.npy`
takes a saved (16, 25200, 85) instead, `--save FILE.npy` saves it. One worker process for each contender:
ours (whole `decode`, with a letterbox that changes nothing), the peers in `--peer-python`:

- yolov5: `yolov5.utils.general.non_max_suppression`, 7.0.14 on PyPI
- ultralytics: its `non_max_suppression`; its own input layout is made before the clock starts
- torchvision: the shortest filter in torch, then `torchvision.ops.batched_nms`
- cv2: the shortest filter in numpy, then `cv2.dnn.NMSBoxesBatched`

Prints the median of each, and ours divided by the fastest peer's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import compare, print_table, serve, worker_command

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("yolov5", "ultralytics", "torchvision", "cv2")
# conf, iou, multi-label, what ours may take of the fastest peer's time.
SETTINGS = {"0.25/0.45": (0.25, 0.45, False, 1.25), "0.001/0.6 multi-label": (0.001, 0.6, True, 0.7)}
MAX_DET = 300
Decode = Callable[[Any, float, float, bool], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--burst", type=int, default=5, help="runs in a row of which the median counts")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worker", choices=("ours", *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(_cases(options.worker, np.load(options.raw), options.threads[0]), options.burst)
        return
    if not options.peer_python or not (options.raw or (options.weights and options.images)):
        parser.error("`--peer-python` and either `--raw` or `--weights` and `--images` are needed")
    with tempfile.TemporaryDirectory() as folder:
        raw = options.raw or options.save or Path(folder) / "raw.npy"
        if not options.raw:
            np.save(raw, _raw_output(options.weights, options.images, Path(folder)))
        os.environ.update({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "YOLO_AUTOINSTALL": "false"})
        for threads in options.threads:
            pythons = {"ours": Path(sys.executable)} | dict.fromkeys(PEERS, options.peer_python.absolute())
            arguments = ("--raw", str(raw), "--threads", str(threads), "--burst", str(options.burst))
            contenders = [worker_command(python, __file__, name, *arguments) for name, python in pythons.items()]
            targets = {f"{name} B={b}": s[3] for name, s in SETTINGS.items() for b in ("1 #", "16")}
            print(f"\n{threads} thread{'s' * (threads > 1)}, {options.rounds} rounds")
            print_table("ours", compare(contenders, list(targets), threads, options.rounds), targets)


def _raw_output(weights: Path, images: Path, folder: Path) -> np.ndarray:
    import cv2
    import onnxruntime

    from yolotrt_core.inference.letterbox import preprocess
    from yolotrt_core.types import BuildRequest, ModelSource
    from yolotrt_torch.stages import TorchExporter

    exporter = TorchExporter()
    source = ModelSource(weights, hashlib.sha256(weights.read_bytes()).hexdigest(), weights.stem)
    exporter.export(source, BuildRequest("fp32", 1, 640, 640), exporter.Options(), folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    frames = [cv2.imread(str(path)) for path in sorted(images.glob("*.jpg"))[:16]]
    return np.concatenate([session.run(None, {"images": preprocess([p], (640, 640))[0]})[0] for p in frames])


def _cases(worker: str, raw: np.ndarray, threads: int) -> dict[str, Callable[[], object]]:
    decode, prepared = {
        "ours": _ours,
        "yolov5": _yolov5,
        "ultralytics": _ultralytics,
        "torchvision": _torchvision,
        "cv2": _cv2,
    }[worker](raw, threads)
    cases: dict[str, Callable[[], object]] = {}
    for name, (conf, iou, multi_label, _) in SETTINGS.items():
        cases[f"{name} B=16"] = lambda c=conf, i=iou, m=multi_label: decode(prepared, c, i, m)
        for turn in range(1000):
            one = prepared[turn % len(raw) : turn % len(raw) + 1]
            cases[f"{name} B=1 #{turn}"] = lambda x=one, c=conf, i=iou, m=multi_label: decode(x, c, i, m)
    return cases


def _ours(raw: np.ndarray, threads: int) -> tuple[Decode, Any]:
    import cv2

    from yolotrt_core.inference.letterbox import geometry
    from yolotrt_core.types import ModelSpec, Selection
    from yolotrt_yolov5.stages import Yolov5Postprocessor

    cv2.setNumThreads(threads)
    stage = Yolov5Postprocessor()
    spec = ModelSpec((), (), tuple(map(str, range(raw.shape[2] - 5))), (8, 16, 32))
    placed = [geometry((640, 640), (640, 640))] * len(raw)

    def decode(raw: np.ndarray, conf: float, iou: float, multi_label: bool) -> object:
        selection = Selection(conf, iou, multi_label, max_det=MAX_DET)
        return stage.decode({"output0": raw}, spec, placed[: len(raw)], selection, stage.Options())

    return decode, raw


def _yolov5(raw: np.ndarray, threads: int) -> tuple[Decode, Any]:
    import torch
    from yolov5.utils.general import non_max_suppression

    torch.set_num_threads(threads)  # after the import, which sets another number

    def decode(raw: Any, conf: float, iou: float, multi_label: bool) -> object:
        return non_max_suppression(raw, conf, iou, multi_label=multi_label, max_det=MAX_DET)

    return decode, torch.from_numpy(raw)


def _ultralytics(raw: np.ndarray, threads: int) -> tuple[Decode, Any]:
    import torch
    import torchvision  # noqa: F401 - ultralytics takes its fast suppression only if this was imported
    from ultralytics.utils.nms import non_max_suppression

    torch.set_num_threads(threads)
    scored = np.concatenate((raw[..., :4], raw[..., 5:] * raw[..., 4:5]), axis=2)

    def decode(raw: Any, conf: float, iou: float, multi_label: bool) -> object:
        return non_max_suppression(raw, conf, iou, multi_label=multi_label, max_det=MAX_DET)

    return decode, torch.from_numpy(np.ascontiguousarray(scored.transpose(0, 2, 1)))


def _torchvision(raw: np.ndarray, threads: int) -> tuple[Decode, Any]:
    import torch
    import torchvision

    torch.set_num_threads(threads)

    def decode(raw: Any, conf: float, iou: float, multi_label: bool) -> object:
        found = []
        for rows in raw:
            rows = rows[rows[:, 4] > conf]
            scores, half = rows[:, 5:] * rows[:, 4:5], rows[:, 2:4] / 2
            boxes = torch.cat((rows[:, :2] - half, rows[:, :2] + half), 1)
            if multi_label:
                index, ids = (scores > conf).nonzero(as_tuple=True)
                boxes, scores = boxes[index], scores[index, ids]
            else:
                scores, ids = scores.max(1)
                over = scores > conf
                boxes, scores, ids = boxes[over], scores[over], ids[over]
            kept = torchvision.ops.batched_nms(boxes, scores, ids, iou)[:MAX_DET]
            found.append((boxes[kept], scores[kept], ids[kept]))
        return found

    return decode, torch.from_numpy(raw)


def _cv2(raw: np.ndarray, threads: int) -> tuple[Decode, Any]:
    import cv2

    cv2.setNumThreads(threads)

    def decode(raw: np.ndarray, conf: float, iou: float, multi_label: bool) -> object:
        found = []
        for rows in raw:
            rows = rows[rows[:, 4] > np.float32(conf)]
            scores, boxes = rows[:, 5:] * rows[:, 4:5], rows[:, :4].copy()
            boxes[:, :2] -= boxes[:, 2:] / 2
            if multi_label:
                index, ids = (scores > np.float32(conf)).nonzero()
                boxes, scores = boxes[index], scores[index, ids]
            else:
                ids = scores.argmax(1)
                scores = scores[np.arange(len(ids)), ids]
                over = scores > np.float32(conf)
                boxes, scores, ids = boxes[over], scores[over], ids[over]
            kept = np.asarray(cv2.dnn.NMSBoxesBatched(boxes, scores, ids, conf, iou), int)[:MAX_DET]
            found.append((boxes[kept], scores[kept], ids[kept]))
        return found

    return decode, raw


if __name__ == "__main__":
    main()
