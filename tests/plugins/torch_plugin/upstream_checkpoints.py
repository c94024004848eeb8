"""Run by another Python that has PyPI's `yolov5` 7.0.14: saves checkpoints of its models and their own answers.

    PEER_PYTHON upstream_checkpoints.py FOLDER

Writes `NAME.pt` and `NAME.npz` (`images`, `output0`, of segmentation `output1`) into FOLDER. Its licence is AGPL:
nothing of it is copied here, and the project never imports it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from torch.nn.utils import prune

warnings.filterwarnings("ignore")
import yolov5  # noqa: E402

PACKAGE = Path(yolov5.__file__).parent
sys.path.insert(0, str(PACKAGE))  # so that classes are named `models.yolo...`, as upstream's own training does
from models import common, yolo  # noqa: E402
from utils import augmentations  # noqa: E402

HUB = [
    "yolov3", "yolov3-spp", "yolov3-tiny", "yolov5-bifpn", "yolov5-fpn", "yolov5-p2", "yolov5-p34", "yolov5-p6",
    "yolov5-p7", "yolov5-panet", "yolov5n6", "yolov5s-LeakyReLU",
]  # fmt: skip


def main(folder: Path) -> None:
    """Save one checkpoint of each architecture and of each form."""
    for name in HUB:
        save(folder, name, model_of(PACKAGE / "models/hub" / f"{name}.yaml"), size=(256, 384))
    nano = PACKAGE / "models/yolov5n.yaml"
    save(folder, "segment", model_of(PACKAGE / "models/segment/yolov5n-seg.yaml"))
    save(folder, "classify", classifier(model_of(nano)), size=(224, 224))
    save(folder, "v4", model_of(fourth_release()))
    save(folder, "v4-fused-legacy-half", fused(model_of(fourth_release())), legacy=True, half=True)
    save(folder, "v3-activations-legacy", third_release_activations(model_of(fourth_release())), legacy=True)
    save(folder, "half", model_of(nano), half=True)
    save(folder, "fused", fused(model_of(nano)))
    save(folder, "ema", model_of(nano), wrap=lambda m: {"model": model_of(nano, seed=9), "ema": m, "updates": 3})
    save(folder, "bare", model_of(nano), wrap=lambda m: m)
    save(folder, "data-parallel", model_of(nano), wrap=lambda m: {"model": nn.DataParallel(m), "ema": None})
    save(folder, "auto-shape", model_of(nano), wrap=common.AutoShape)
    save(folder, "masks", masked(model_of(nano)))
    save(folder, "pruned", without_channels(model_of(nano)))
    save(folder, "numpy", with_numpy_values(model_of(nano)))


def model_of(config: Any, seed: int = 1) -> Any:
    """Build a narrow model of a yaml, with norms that matter."""
    if isinstance(config, Path):
        config = yaml.safe_load(config.read_text())
    torch.manual_seed(seed)
    kind = yolo.SegmentationModel if config["head"][-1][2] == "Segment" else yolo.DetectionModel
    model = kind({**config, "nc": 4, "width_multiple": 0.25, "depth_multiple": 0.33})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    model.names = {i: f"kind {i}" for i in range(4)}
    return model.eval()


def classifier(detector: Any) -> Any:
    """Replace the head by that of a classification model of four classes."""
    model = yolo.ClassificationModel(model=detector, nc=4)
    model.names = {i: f"kind {i}" for i in range(4)}
    for norm in (module for module in model.model[-1].modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def fourth_release() -> dict[str, Any]:
    """The v4 architecture: Focus, BottleneckCSP, SPP, in the layout of today's yaml."""
    config = yaml.safe_load((PACKAGE / "models/yolov5n.yaml").read_text())
    backbone, head = config["backbone"], config["head"]
    backbone[0] = [-1, 1, "Focus", [64, 3]]
    backbone[8:] = [[-1, 1, "SPP", [1024, [5, 9, 13]]], [-1, 3, "BottleneckCSP", [1024, False]]]
    backbone[7] = [-1, 1, "Conv", [1024, 3, 2]]
    for line in backbone + head:
        line[2] = "BottleneckCSP" if line[2] == "C3" else line[2]
    return config


def third_release_activations(model: Any) -> Any:
    for module in model.modules():
        if type(module).__name__ == "BottleneckCSP":
            module.act = nn.LeakyReLU(0.1, inplace=True)
        elif isinstance(getattr(module, "act", None), nn.SiLU):
            module.act = nn.Hardswish()
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-4
    return model


def masked(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            prune.random_unstructured(module, "weight", 0.3)
    return model


def without_channels(model: Any) -> Any:
    """Remove every other hidden channel of each bottleneck."""
    for block in model.modules():
        if isinstance(block, common.Bottleneck):
            first, second, norm = block.cv1.conv, block.cv2.conv, block.cv1.bn
            first.weight, second.weight = nn.Parameter(first.weight[::2]), nn.Parameter(second.weight[:, ::2])
            first.out_channels = second.in_channels = norm.num_features = len(first.weight)
            norm.weight, norm.bias = nn.Parameter(norm.weight[::2]), nn.Parameter(norm.bias[::2])
            norm.running_mean, norm.running_var = norm.running_mean[::2], norm.running_var[::2]
    return model


def with_numpy_values(model: Any) -> Any:
    model.names = np.array([f"kind {i}" for i in range(4)])
    model.yaml.update(nc=np.int64(4), anchors=np.array(model.yaml["anchors"]))
    model.hyp = SimpleNamespace(lr0=0.01)
    return model


def fused(model: Any) -> Any:
    return model.fuse()


def save(
    folder: Path,
    name: str,
    model: Any,
    *,
    size: tuple[int, int] = (160, 224),
    half: bool = False,
    legacy: bool = False,
    wrap: Callable[[Any], Any] = lambda m: {"epoch": -1, "model": m, "ema": None, "best_fitness": np.float64(0.5)},
) -> None:
    if half:
        model = model.half().float()
    images = np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)
    with torch.no_grad():
        if isinstance(model, yolo.ClassificationModel):  # upstream normalizes before the model
            answers = [model(augmentations.normalize(torch.from_numpy(images)))]
        else:
            answers = model(torch.from_numpy(images))
    outputs = {"output0": answers[0].numpy()}
    if isinstance(model, yolo.SegmentationModel):
        outputs["output1"] = answers[1].numpy()
    np.savez(folder / f"{name}.npz", images=images, **outputs)
    torch.save(wrap(model.half() if half else model), folder / f"{name}.pt", _use_new_zipfile_serialization=not legacy)


main(Path(sys.argv[1]))
