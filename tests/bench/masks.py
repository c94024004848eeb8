"""Instance masks at the source image's size beside the peers', in one run, one CPU thread.

    python tests/bench/masks.py --peer-python ../peer/bin/python

50 objects at 720x1280 from random coefficients and smooth prototypes of (32, 160, 160), boxes of a tenth to a half of
each side. One worker process for each contender: ours (`masks_from_prototypes`, packed to bits), and in `--peer-python`
`process_mask_native` of PyPI's `yolov5` and of `ultralytics`, whose masks are byte arrays over the whole image.

Prints the median of each, and ours divided by the fastest peer's. Workers also compare: the IoU of each mask of the
peer `yolov5` with ours is at least 0.999, or the run ends with an error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import compare, print_table, serve, worker_command

PEERS = ("yolov5", "ultralytics")
SIZE, OBJECTS = (720, 1280), 50
CASE = "50 objects at 720x1280"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=("ours", *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with np.load(options.scene) as scene:
            given = {name: scene[name] for name in scene.files}
        work = {"ours": _ours, "yolov5": _yolov5, "ultralytics": _ultralytics}[options.worker](given)
        if options.worker == "yolov5":
            _compare(given["masks"], work())
        serve({CASE: work}, burst=3)
        return
    if not options.peer_python:
        parser.error("`--peer-python` is needed")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.npz"
        np.savez(path, **_scene())
        os.environ.update({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "YOLO_AUTOINSTALL": "false"})
        pythons = {"ours": Path(sys.executable)} | dict.fromkeys(PEERS, options.peer_python.absolute())
        contenders = [worker_command(p, __file__, name, "--scene", str(path)) for name, p in pythons.items()]
        print_table("ours", compare(contenders, [CASE], 1, options.rounds), {CASE: 0.13})


def _scene() -> dict[str, np.ndarray]:
    """Return coefficients, prototypes, boxes in source pixels, and our masks."""
    import cv2

    random = np.random.default_rng(0)
    coarse = random.normal(size=(32, 10, 10)).astype(np.float32)
    prototypes = np.stack([cv2.resize(plane, (160, 160), interpolation=cv2.INTER_CUBIC) for plane in coarse])
    size = random.uniform(0.1, 0.5, (OBJECTS, 2)) * SIZE[::-1]
    corner = random.uniform(0, 1, (OBJECTS, 2)) * (np.array(SIZE[::-1]) - size)
    scene = {
        "coefficients": random.normal(size=(OBJECTS, 32)).astype(np.float32) * 0.5,
        "prototypes": prototypes,
        "boxes": np.concatenate((corner, corner + size), 1).round().astype(np.float32),
    }
    masks = _ours(scene)()
    return {**scene, "masks": np.packbits(np.stack([masks.full(index) for index in range(OBJECTS)]))}


def _ours(scene: dict[str, np.ndarray]) -> Callable[[], Any]:
    from yolotrt_core.inference.masks import masks_from_prototypes

    return lambda: masks_from_prototypes(scene["coefficients"], scene["prototypes"], scene["boxes"], SIZE)


def _yolov5(scene: dict[str, np.ndarray]) -> Callable[[], Any]:
    import torch
    from yolov5.utils.segment.general import process_mask_native

    torch.set_num_threads(1)
    prototypes, coefficients, boxes = (torch.from_numpy(scene[n]) for n in ("prototypes", "coefficients", "boxes"))
    return lambda: process_mask_native(prototypes, coefficients, boxes, SIZE)


def _ultralytics(scene: dict[str, np.ndarray]) -> Callable[[], Any]:
    import torch
    from ultralytics.utils.ops import process_mask_native

    torch.set_num_threads(1)
    prototypes, coefficients, boxes = (torch.from_numpy(scene[n]) for n in ("prototypes", "coefficients", "boxes"))
    return lambda: process_mask_native(prototypes, coefficients, boxes, SIZE)


def _compare(packed: np.ndarray, theirs: Any) -> None:
    ours = np.unpackbits(packed, count=OBJECTS * SIZE[0] * SIZE[1]).reshape(OBJECTS, *SIZE).astype(bool)
    other = theirs.numpy().astype(bool)
    shared, union = (ours & other).sum((1, 2)), (ours | other).sum((1, 2))
    worst = float((shared[union > 0] / union[union > 0]).min())
    print(f"lowest IoU with the masks of `yolov5`: {worst:.6f}", file=sys.stderr)
    if worst < 0.999:
        sys.exit("the masks differ")


if __name__ == "__main__":
    main()
