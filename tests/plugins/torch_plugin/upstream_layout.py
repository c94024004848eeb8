"""Small networks, and checkpoints of them laid out as YOLOv5's training saves its own.

The classes that such pickles name are made here for the time of saving, so no upstream code is needed.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolotrt_torch.classify_head import Classify
from yolotrt_torch.yolov5_model import Network

NAMES = {
    "yolo": ("Model", "DetectionModel", "SegmentationModel", "ClassificationModel", "Detect", "Segment"),
    # The last one stands for a layer of somebody's own.
    "common": (
        "Conv", "DWConv", "Bottleneck", "BottleneckCSP", "C3", "SPP", "SPPF", "Focus", "Concat", "GhostConv", "C3SPP",
        "GhostBottleneck", "C3Ghost", "C3TR", "C3x", "CrossConv", "TransformerBlock", "TransformerLayer", "Contract",
        "Expand", "DWConvTranspose2d", "Proto", "Classify", "CenterCrop", "Custom",
    ),
    "experimental": ("Sum", "MixConv2d"),
}  # fmt: skip

# Ours stand for these.
PYTORCH: Mapping[str, type[nn.Module]] = {
    "Conv2d": nn.Conv2d, "Linear": nn.Linear, "MultiheadAttention": nn.MultiheadAttention,
}  # fmt: skip

# v6 and v7 in small: strided stem, C3, SPPF, two levels.
MODERN: Mapping[str, Any] = {
    "nc": 3,
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [
        [-1, 1, "Conv", [32, 6, 2, 2]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 3, "C3", [64]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 1, "SPPF", [128, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 3], 1, "Concat", [1]],
        [-1, 3, "C3", [64, False]],
        [[8, 5], 1, "Detect", ["nc", "anchors"]],
    ],
}
# The same with masks of 8 coefficients.
SEGMENT: Mapping[str, Any] = {
    **MODERN,
    "head": [*MODERN["head"][:-1], [[8, 5], 1, "Segment", ["nc", "anchors", 8, 64]]],
}
# The layers of a classification model: of the head the classes, channels, kernel, stride, padding and groups.
CLASSIFY: Mapping[str, Any] = {
    **MODERN,
    "anchors": 1,
    "backbone": MODERN["backbone"][:-1],
    "head": [[-1, 1, "Classify", [3, 64, 1, 1, 0, 1]]],
}
# v3 and v4 in small: Focus, BottleneckCSP, SPP, and the padding and pooling of the tiny models.
EARLY: Mapping[str, Any] = {
    "nc": 2,
    "depth_multiple": 0.67,
    "width_multiple": 0.5,
    "anchors": [[10, 14, 23, 27], [81, 82, 135, 169]],
    "backbone": [
        [-1, 1, "Focus", [32, 3]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 3, "BottleneckCSP", [32]],
        [-1, 1, "nn.MaxPool2d", [2, 2, 0]],
        [-1, 3, "Bottleneck", [64]],
        [-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]],
        [-1, 1, "nn.MaxPool2d", [2, 1, 0]],
        [-1, 1, "DWConv", [64, 3, 2]],
        [-1, 1, "SPP", [64, [3, 5]]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "BottleneckCSP", [32, False]],
        [[11, 8], 1, "Detect", ["nc", "anchors"]],
    ],
}

# Every further block that a yaml may name, and layers of PyTorch.
EVERY_BLOCK: Mapping[str, Any] = {
    **MODERN,
    "width_multiple": 1,
    "depth_multiple": 1,
    "backbone": [
        [-1, 1, "Focus", [8, 3]],
        [-1, 1, "Conv", [8, 3, 2, None, 1, 2]],
        [-1, 1, "CrossConv", [8, 3, 1, 1, 1.0, True]],
        [-1, 1, "C3Ghost", [8]],
        [-1, 1, "C3TR", [16]],
        [-1, 1, "TransformerBlock", [16, 16, 4, 1]],
        [-1, 1, "Contract", [2]],
        [-1, 1, "Expand", [2]],
        [-1, 1, "MixConv2d", [16, [1, 3], 1]],
        [-1, 1, "DWConvTranspose2d", [16, 2, 2]],
        [-1, 1, "Bottleneck", [16]],
        [-1, 1, "SPPF", [16, 5]],
        [[-1, 10], 1, "Sum", [2, True]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
    ],
    "head": [[-1, 1, "nn.Upsample", ["None", 2, "bilinear"]], [[-1, 13], 1, "Concat", [1]],
             [[16, 14], 1, "Detect", ["nc", "anchors"]]],
}  # fmt: skip


def lively(config: Mapping[str, Any], seed: int = 0) -> Network:
    """Build a network whose norms and head are far from their start, so that every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = Network(config)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
        heads = [network.head.linear] if isinstance(network.head, Classify) else network.detect.m
        for head in heads:
            head.weight.normal_(0, 0.3, generator=generator)
            head.bias.normal_(0, 1, generator=generator)
    return network.eval()


@contextmanager
def upstream_classes(prefix: str = "models") -> Iterator[Mapping[str, type[nn.Module]]]:
    """Offer empty module classes under upstream's names, importable by pickle for the block."""
    made: dict[str, types.ModuleType] = {}
    parts = prefix.split(".")
    for depth in range(1, len(parts) + 1):
        made[".".join(parts[:depth])] = types.ModuleType(".".join(parts[:depth]))
    classes: dict[str, type[nn.Module]] = {}
    for module, names in NAMES.items():
        made[f"{prefix}.{module}"] = types.ModuleType(f"{prefix}.{module}")
        for name in names:
            classes[name] = type(name, (nn.Module,), {"__module__": f"{prefix}.{module}"})
            setattr(made[f"{prefix}.{module}"], name, classes[name])
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield classes
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def upstream_model(
    network: Network,
    config: Mapping[str, Any],
    names: Any,
    classes: Mapping[str, type[nn.Module]],
    kind: str = "DetectionModel",
) -> nn.Module:
    """Return the network as a tree of upstream's classes, with the attributes that upstream's have."""
    model = classes[kind]()
    if kind != "ClassificationModel":  # upstream's has none
        model.yaml = dict(config)
    model.names = names
    model.stride = torch.tensor([float(s) for s in network.stride])
    model.model = _converted(network.model, classes)
    for index, (layer, sources) in enumerate(zip(model.model, network.sources, strict=True)):
        layer.i, layer.f = index, list(sources) if isinstance(sources, tuple) else sources - index
    if kind != "ClassificationModel":
        model.model[-1].stride = model.stride
    return model


def _converted(module: nn.Module, classes: Mapping[str, type[nn.Module]]) -> nn.Module:
    name = type(module).__name__
    cls = PYTORCH.get(name) or classes.get(name, type(module))
    made = cls.__new__(cls)
    nn.Module.__init__(made)
    made.__dict__.update({k: v for k, v in module.__dict__.items() if not k.startswith("_")})
    made._parameters.update(module._parameters)
    made._buffers.update(module._buffers)
    for child_name, child in module._modules.items():
        assert child is not None
        if not (child_name == "bn" and isinstance(child, nn.Identity)):  # upstream's fused blocks have none
            made._modules[child_name] = _converted(child, classes)
    return made


def save(
    path: Path,
    config: Mapping[str, Any] = MODERN,
    *,
    network: Network | None = None,
    names: Any = None,
    prefix: str = "models",
    kind: str = "DetectionModel",
    wrap: Any = None,
    edit: Any = None,
    half: bool = False,
    legacy: bool = False,
    protocol: int = 2,
) -> Path:
    """Save a checkpoint in upstream's layout.

    Args:
        wrap: model -> what is saved; a dict with the model by default. edit: changes the tree of modules first.
    """
    network = network or lively(config)
    names = [f"kind {i}" for i in range(config["nc"])] if names is None else names
    with upstream_classes(prefix) as classes, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy form looks for source text that these classes do not have
        model = upstream_model(network, config, names, classes, kind)
        if half:
            model.half()
        if edit:
            edit(model)
        saved = wrap(model) if wrap else {"epoch": -1, "model": model, "ema": None, "optimizer": None, "date": "2026"}
        torch.save(saved, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return path


def save_with_channels(detector: Path, path: Path, channels: int) -> Path:
    """Save a detector of other channels that finds on grey images, or with blue as alpha, what the given one does.

    One channel has the sum of the weights of three. Of four, the last has those of blue, and blue has none.
    """
    from yolotrt_torch.checkpoint import read_checkpoint

    given = read_checkpoint(detector)
    config = {**given.config, "ch": channels}
    network = lively(config)
    state = network.state_dict()
    for name, array in given.state.items():
        weight = torch.from_numpy(array)
        weight = weight.float() if weight.is_floating_point() else weight
        if name == "model.0.conv.weight" and channels == 1:
            weight = weight.sum(1, keepdim=True)
        elif name == "model.0.conv.weight":
            weight = torch.cat((weight[:, :2], torch.zeros_like(weight[:, :1]), weight[:, 2:]), 1)
        state[name].copy_(weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, config, network=network, names=list(given.labels))
