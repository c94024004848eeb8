"""The letterbox to float32 (1, 3, 640, 640) beside the peers', in one run.

    python tests/bench/letterbox.py --image 000000000139.jpg --peer-python ../peer/bin/python

The image is fitted to 640x480 and 1920x1080 first. Contenders: ours (`preprocess`); in `--peer-python`,
after upstream's `letterbox` of `yolov5` 7.0.14: numpy's transpose and division, torch's as upstream's
`detect.py` does it, `cv2.dnn.blobFromImage`; and `blobFromImageWithParams`, which pads by itself. Prints
the median of each, and ours divided by the fastest peer's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from side_by_side import compare, print_table, serve, worker_command

PEERS = ("numpy", "torch", "blob", "blob-params")
SIZES = {"640x480": (640, 480), "1920x1080": (1920, 1080)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--burst", type=int, default=5, help="runs in a row of which the median counts")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worker", choices=("ours", *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        cv2.setNumThreads(options.threads[0])
        image = cv2.imread(str(options.image))
        prepare = _prepare(options.worker, options.threads[0])
        frames = {name: cv2.resize(image, size) for name, size in SIZES.items()}
        serve({name: lambda n=name: prepare(frames[n]) for name in SIZES}, options.burst)
        return
    os.environ["YOLO_AUTOINSTALL"] = "false"
    for threads in options.threads:
        pythons = {"ours": Path(sys.executable)} | dict.fromkeys(PEERS, options.peer_python.absolute())
        arguments = ("--image", str(options.image), "--threads", str(threads), "--burst", str(options.burst))
        contenders = [worker_command(python, __file__, name, *arguments) for name, python in pythons.items()]
        print(f"\n{threads} thread{'s' * (threads > 1)}, {options.rounds} rounds")
        print_table("ours", compare(contenders, list(SIZES), threads, options.rounds), dict.fromkeys(SIZES, 1.0))


def _prepare(worker: str, threads: int) -> Callable[[np.ndarray], object]:
    if worker == "ours":
        from yolotrt_core.inference.letterbox import preprocess

        return lambda frame: preprocess([frame], (640, 640))
    if worker == "blob-params":
        wanted = cv2.dnn.Image2BlobParams()
        wanted.scalefactor, wanted.size, wanted.swapRB = (1 / 255,) * 4, (640, 640), True
        wanted.paddingmode, wanted.borderValue = cv2.dnn.DNN_PMODE_LETTERBOX, (114, 114, 114, 0)
        return lambda frame: cv2.dnn.blobFromImageWithParams(frame, wanted)
    import torch
    from yolov5.utils.augmentations import letterbox

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)  # after the import, which sets 0

    def planes(frame: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(letterbox(frame, 640, auto=False)[0].transpose(2, 0, 1)[::-1])

    return {
        "numpy": lambda frame: planes(frame)[None].astype(np.float32) / 255,
        "torch": lambda frame: torch.from_numpy(planes(frame)).float().div_(255)[None],
        "blob": lambda frame: cv2.dnn.blobFromImage(letterbox(frame, 640, auto=False)[0], 1 / 255, swapRB=True),
    }[worker]


if __name__ == "__main__":
    main()
