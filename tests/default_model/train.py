"""Train the default model: `python tests/default_model/train.py` writes yolotrt_core/assets/parts.pt.

`--check` trains nothing and prints the accuracy of the committed file on the held-out scenes;
`--sample` writes yolotrt_core/assets/sample.jpg and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from loss import detection_loss
from numpy.typing import NDArray
from scenes import NAMES, Scene, scene
from score import IMGSZ, detections, load, mean_average_precision
from torch import Tensor, nn

from yolotrt_core.export.model_source import default_model_path, sample_path
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_torch.yolov5_model import Network

TRAIN_SEED, HELD_OUT_SEED = 20_000, 30_000
HELD_OUT_SCENES = 500
SAMPLE = (40_000, 212)  # seed and index of the bundled image: no scene of training, nor of the held-out
# Boxes of the scenes are 22 to 105 input pixels long, bolts and springs up to four times longer than wide.
ANCHORS = ((16, 16, 30, 16, 16, 30), (30, 30, 56, 30, 30, 56), (60, 60, 104, 60, 60, 104))
# The layers of ultralytics/yolov5 v7.0, models/yolov5n.yaml, at half its width.
YAML: dict[str, Any] = {
    "nc": len(NAMES),
    "depth_multiple": 0.33,
    "width_multiple": 0.125,
    "anchors": [list(level) for level in ANCHORS],
    "backbone": [
        [-1, 1, "Conv", [64, 6, 2, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, "C3", [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 6, "C3", [256]],
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, 9, "C3", [512]],
        [-1, 1, "Conv", [1024, 3, 2]],
        [-1, 3, "C3", [1024]],
        [-1, 1, "SPPF", [1024, 5]],
    ],
    "head": [
        [-1, 1, "Conv", [512, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 3, "C3", [512, False]],
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C3", [256, False]],
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 14], 1, "Concat", [1]],
        [-1, 3, "C3", [512, False]],
        [-1, 1, "Conv", [512, 3, 2]],
        [[-1, 10], 1, "Concat", [1]],
        [-1, 3, "C3", [1024, False]],
        [[17, 20, 23], 1, "Detect", ["nc", "anchors"]],
    ],
}


class Scenes:
    """Training scenes, drawn once and letterboxed; a batch turns and mirrors them at random."""

    def __init__(self, count: int) -> None:
        self.images = np.empty((count, 3, *IMGSZ), np.uint8)
        self.targets: list[NDArray[np.float32]] = []
        for index in range(count):
            drawn = scene(TRAIN_SEED, index)
            fitted, (placed,) = preprocess([drawn.image], IMGSZ)
            self.images[index] = np.rint(fitted[0] * 255)
            boxes = drawn.boxes * placed.scale + np.array([*placed.pad, *placed.pad], np.float32)
            center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            self.targets.append(np.hstack([drawn.classes[:, None], center, size]).astype(np.float32))

    def batch(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return images float32 (B, 3, H, W), RGB 0..1, and targets (M, 6): image, class, cx, cy, w, h."""
        images, targets = [], []
        for place, index in enumerate(chosen):
            image, target = self.images[index], self.targets[index].copy()
            if rng.random() < 0.5:
                image, target[:, 1] = image[:, :, ::-1], IMGSZ[1] - target[:, 1]
            if rng.random() < 0.5:
                image, target[:, 2] = image[:, ::-1], IMGSZ[0] - target[:, 2]
            if rng.random() < 0.5:
                image, target = image.transpose(0, 2, 1), target[:, [0, 2, 1, 4, 3]]
            images.append(np.ascontiguousarray(image))
            targets.append(np.hstack([np.full((len(target), 1), place, np.float32), target]))
        gain = rng.uniform(0.75, 1.3, (len(chosen), 3, 1, 1)).astype(np.float32)
        inputs = torch.from_numpy(np.stack(images)).float() / 255
        return (inputs * torch.from_numpy(gain)).clamp_(0, 1), torch.from_numpy(np.concatenate(targets))


def train(options: argparse.Namespace, watch: Callable[[float], None] = lambda loss: None) -> Network:
    """Train with AdamW, a warm-up and a cosine decay; return the running average of the weights.

    `watch` is told the loss of every step.
    """
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    started = time.perf_counter()
    scenes = Scenes(options.scenes)
    print(f"{options.scenes} scenes drawn in {time.perf_counter() - started:.0f} s", flush=True)
    network = Network(YAML).to(memory_format=torch.channels_last)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate)
    average = copy.deepcopy(network).eval()
    order = np.empty(0, np.int64)
    for step in range(options.steps):
        if len(order) < options.batch:
            order = np.concatenate([order, rng.permutation(options.scenes)])
        chosen, order = order[: options.batch], order[options.batch :]
        done = step / options.steps
        rate = options.rate * min(1, (step + 1) / options.warmup) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, targets = scenes.batch(chosen, rng)
        with torch.autocast("cpu", torch.bfloat16):
            raw = network(images.contiguous(memory_format=torch.channels_last))
        loss = detection_loss([each.float() for each in raw], targets, network.detect.anchors, network.stride)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        follow(average, network, decay=0.998 * (1 - math.exp(-(step + 1) / 200)))
        watch(loss.item())
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f} {time.perf_counter() - started:.0f} s", flush=True)
    return average


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network: `average = decay * average + (1 - decay) * network`."""
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.mul_(decay).add_(value, alpha=1 - decay)
        else:
            mean.copy_(value)


def save(network: Network, path: Path) -> None:
    """Write the checkpoint as plain data: it loads with `weights_only=True` and without this project."""
    weights = {
        name: value.half() if value.dtype.is_floating_point else value for name, value in network.state_dict().items()
    }
    torch.save(
        {"yolotrt": 1, "yaml": YAML, "state_dict": weights, "names": list(NAMES), "stride": list(network.stride),
         "anchors": YAML["anchors"], "imgsz": list(IMGSZ)},
        path,
    )  # fmt: skip


def draw_sample() -> Scene:
    """Return the scene of the bundled image."""
    return scene(*SAMPLE, (480, 640))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only score the committed file")
    parser.add_argument("--sample", action="store_true", help="only draw the bundled image")
    parser.add_argument("--out", type=Path, default=default_model_path())
    parser.add_argument("--scenes", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=HELD_OUT_SCENES)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    if options.sample:
        cv2.imwrite(str(sample_path()), draw_sample().image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        return
    started = time.perf_counter()
    if not options.check:
        save(train(options), options.out)
    trained = time.perf_counter() - started
    held_out = [scene(HELD_OUT_SEED, index) for index in range(options.held_out)]
    map50, map50_95 = mean_average_precision(held_out, detections(load(options.out), held_out))
    result = {"file_bytes": options.out.stat().st_size, "train_seconds": round(trained), "scenes": len(held_out),
              "mAP50": round(map50, 4), "mAP50-95": round(map50_95, 4)}  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
