"""Content of a checkpoint for `inspect`: its network, counted without running it, and the names in its pickle."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolotrt_core.errors import UsageError
from yolotrt_core.plugin.description import Description, Layer, NameStatus
from yolotrt_core.types import BuildRequest, ModelSource
from yolotrt_torch.checkpoint import Checkpoint, read_checkpoint
from yolotrt_torch.checkpoint_archive import open_pickles
from yolotrt_torch.exporter import size_step, spec_of
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.options import TorchOptions
from yolotrt_torch.pickle_survey import as_names, survey_pickle
from yolotrt_torch.yolov5_layers import Detect
from yolotrt_torch.yolov5_model import Network

SIZE = 640  # of upstream's own figures
_SIZES: dict[str, int] = {"classify": 224}
_ROOT = "Network."  # what the counter calls the network


def describe(source: ModelSource) -> Description:
    """Describe a checkpoint; what can be read of it, and `problem`, if it cannot be exported."""
    path = source.path
    described = Description(_format(path))
    found: dict[str, NameStatus] = {}
    try:
        for pickle in open_pickles(path):
            if not survey_pickle(pickle, found):
                break
        checkpoint = read_checkpoint(path)
        described = _of_checkpoint(described, checkpoint)
        described = _of_network(described, checkpoint, network_from_checkpoint(checkpoint), source)
    except UsageError as err:
        described = dataclasses.replace(described, problem=err.message)
    return dataclasses.replace(described, names=as_names(found))


def _format(path: Path) -> str:
    return "PyTorch checkpoint" + ("" if zipfile.is_zipfile(path) else ", legacy form")


def _of_checkpoint(described: Description, checkpoint: Checkpoint) -> Description:
    return dataclasses.replace(
        described, labels=checkpoint.labels, strides=checkpoint.stride, facts=dict(checkpoint.facts)
    )


def _of_network(described: Description, checkpoint: Checkpoint, network: Network, source: ModelSource) -> Description:
    step = size_step(network)
    request = BuildRequest("fp32", 1, step, step, dynamic=True)
    spec = spec_of(network, checkpoint, source, request, TorchOptions())
    side = -(-_SIZES.get(spec.task, SIZE) // step) * step
    counts = count_operations(network, side)
    layers = [
        Layer(name, type(module).__name__, _precision(checkpoint, name), _parameters(module), counts.get(name))
        for name, module in network.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor) and weight.dim() > 1  # no norms
    ]
    return dataclasses.replace(
        described,
        task=spec.task,
        strides=spec.strides,
        anchors=spec.anchors,
        inputs=spec.inputs,
        outputs=spec.outputs,
        size=(side, side),
        parameters=_parameters(network),
        operations=counts[""],
        layers=tuple(layers),
    )


def count_operations(network: Network, side: int) -> dict[str, int]:
    """Count by the shapes of a run without data: module path to operations, of the whole network under ``."""
    network = network.to("meta")
    for module in network.modules():
        if isinstance(module, Detect):
            module.train()  # raw maps: decoding has no products, and constants in memory
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, network.channels, side, side, device="meta"))
    found: dict[str, Any] = counter.get_flop_counts()
    return {
        "": int(counter.get_total_flops()),
        **{name.removeprefix(_ROOT): sum(ops.values()) for name, ops in found.items() if name.startswith(_ROOT)},
    }


def _precision(checkpoint: Checkpoint, name: str) -> str:
    weight = checkpoint.state.get(f"{name}.weight")
    bits = 32 if weight is None else 8 * np.dtype(weight.dtype).itemsize
    return f"fp{bits}"


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
