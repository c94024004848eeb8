"""Checkpoint -> PyTorch network, checked layer by layer against the file's modules."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from yolotrt_core.errors import UsageError
from yolotrt_torch import yolov5_layers
from yolotrt_torch.checkpoint import Checkpoint
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.pickle_reader import Stub
from yolotrt_torch.plain_weights import COUNTERS, structure_hint
from yolotrt_torch.pruning import fit_channels
from yolotrt_torch.untrusted_values import convert_value_errors, shown
from yolotrt_torch.yolov5_model import ACTIVATIONS, Network

log = logging.getLogger(__name__)

# Attributes that must equal the file's, by class, where the file has them.
_COMPARED: Mapping[str, tuple[str, ...]] = {
    "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "Upsample": ("size", "scale_factor", "mode"),
    "ZeroPad2d": ("padding",),
    "Concat": ("d",),
    "Bottleneck": ("add",),
}
_MAX_COMPARED = 64  # items of one attribute, e.g. of an untrusted `Concat`
# Buffers without effect: derived ones of older releases, and the results of counting operations.
_IGNORED = ("anchor_grid", "grid", *COUNTERS)


def network_from_checkpoint(checkpoint: Checkpoint) -> Network:
    """Build the network and load its weights strictly, in float32, in `eval()`.

    Where the file contains its modules, their batch-norm epsilon and activation are used, and strides, paddings,
    additions and sources must equal the yaml's: a model edited in code is refused instead of computing something
    else.

    Raises:
        UsageError: the yaml, the modules and the weights do not match.
    """
    try:
        with convert_value_errors():
            return _network(checkpoint)
    except UsageError as err:
        if err.hint is not None:
            raise
        hint = EXPORT_HINT if checkpoint.modules else structure_hint(checkpoint.state, checkpoint.config.get("nc"))
        raise UsageError(err.message, hint=hint) from err


def _network(checkpoint: Checkpoint) -> Network:
    with torch.device("meta"):  # no memory or random weights: all weights come from the file
        network = Network(checkpoint.config)
        state = {k: v for k, v in checkpoint.state.items() if k.rpartition(".")[2] not in _IGNORED}
        for path, module in network.named_modules():
            if (
                isinstance(module, yolov5_layers.Conv)
                and f"{path}.bn.weight" not in state
                and f"{path}.conv.bias" in state
            ):
                module.without_norm()
        fit_channels(network, state)
        if checkpoint.modules:
            _compare(network, checkpoint.modules)
            state = _without_extra_buffers(network, state, checkpoint.modules)
            _copy_attributes(network, checkpoint.modules)
    _load(network, state)
    if checkpoint.stride and checkpoint.stride != network.stride:
        raise UsageError(f"the checkpoint's strides {checkpoint.stride} differ from its yaml's, {network.stride}")
    network.eval()
    return network


def _without_extra_buffers(network: Network, state: Mapping[str, Any], modules: Mapping[str, Stub]) -> dict[str, Any]:
    """Remove buffers that YOLOv5's classes do not have, so their `forward` cannot use them."""
    expected, extra = network.state_dict(), []
    for name in state.keys() - expected.keys():
        path, _, last = name.rpartition(".")
        buffers = modules[path].state.get("_buffers") if path in modules else None
        if isinstance(buffers, dict) and last in buffers:
            extra.append(name)
    if extra:
        log.warning("ignored %d buffers that YOLOv5's layers do not have: %s", len(extra), shown(sorted(extra)))
    return {name: array for name, array in state.items() if name not in extra}


def _load(network: Network, state: Mapping[str, Any]) -> None:
    expected = network.state_dict()
    for name in expected:
        if name not in state:
            raise UsageError(f"the checkpoint lacks the weight `{name}` that its yaml requires")
    for name, array in state.items():
        if name not in expected:
            raise UsageError(f"the checkpoint has a weight `{name}` that its yaml does not contain")
        if tuple(array.shape) != tuple(expected[name].shape):
            required = list(expected[name].shape)
            raise UsageError(
                f"weight `{name}` of the checkpoint has shape {list(array.shape)}, but its yaml requires {required}"
            )
        if (array.dtype.kind == "f") != expected[name].is_floating_point():
            raise UsageError(f"weight `{name}` of the checkpoint has the unexpected type {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"weight `{name}` of the checkpoint has NaN or infinite values")
    tensors = {
        name: torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
        for name, array in state.items()
    }
    network.load_state_dict(tensors, strict=True, assign=True)
    network.requires_grad_(False)


def _compare(network: Network, modules: Mapping[str, Stub]) -> None:
    """Refuse a file whose modules do not match its yaml."""
    for path, ours in network.named_modules():
        theirs = modules.get(path)
        if theirs is None or not path:
            if path and not isinstance(ours, nn.Identity):
                raise UsageError(f"the checkpoint's model has no module `{path}`, which its yaml requires")
            continue
        kind, short = type(ours).__name__, theirs.kind.rpartition(".")[2]
        if path.rpartition(".")[2] in ("act", "bn"):
            continue
        if kind != short and (kind, short) != ("Conv", "DWConv"):
            raise UsageError(f"module `{path}` of the checkpoint is a `{short}`, but its yaml requires `{kind}`")
        for attribute in _COMPARED.get(kind, ()):
            if attribute in theirs.state and not _are_equal(getattr(ours, attribute), theirs.state[attribute]):
                raise UsageError(
                    f"module `{path}` of the checkpoint has {attribute} {shown(theirs.state[attribute])}, "
                    f"but its yaml requires {getattr(ours, attribute)}"
                )
        parts = theirs.state.get("_modules")
        extra = set(parts if isinstance(parts, dict) else ()) - {name for name, _ in ours.named_children()}
        if extra:
            listed = shown(sorted(map(shown, extra)))
            raise UsageError(f"module `{path}` of the checkpoint has unknown parts {listed}")
    for index, sources in enumerate(network.sources):
        layer = modules.get(f"model.{index}")
        found = layer.state.get("f") if layer else None
        if found is not None and not _are_equal(sources, _absolute(found, index)):
            raise UsageError(f"layer {index} of the checkpoint reads from {shown(found)}, its yaml requires {sources}")


def _absolute(found: Any, index: int) -> list[Any]:
    """Return the absolute layer indices of a file's `f`."""
    given = found if isinstance(found, (list, tuple)) else [found]
    return [index + s if isinstance(s, int) and s < 0 else s for s in given]


def _are_equal(ours: Any, theirs: Any) -> bool:
    """Compare numbers and tuples: 2 equals (2, 2)."""
    if isinstance(theirs, (list, tuple)) and len(theirs) > _MAX_COMPARED:
        return False
    first, second = (list(v) if isinstance(v, (list, tuple)) else [v] for v in (ours, theirs))
    length = max(len(first), len(second))
    return (first * length if len(first) == 1 else first) == (second * length if len(second) == 1 else second)


def _copy_attributes(network: Network, modules: Mapping[str, Stub]) -> None:
    """Copy what the yaml lacks: batch-norm epsilon and activation of each module."""
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            eps = modules[path].state.get("eps") if path in modules else None
            if not isinstance(eps, float) or not 0 < eps < 1:
                raise UsageError(f"module `{path}` of the checkpoint has no batch-norm epsilon")
            module.eps = eps
        if hasattr(module, "act"):
            stub = modules.get(f"{path}.act")
            if stub is None:
                raise UsageError(f"module `{path}` of the checkpoint has no activation")
            module.act = _activation(stub, path)


def _activation(stub: Stub, path: str) -> nn.Module:
    """Create the file's activation with its parameters."""
    kind = ACTIVATIONS.get(stub.kind.rpartition(".")[2])
    if kind is None:
        raise UsageError(f"module `{path}` of the checkpoint has an unknown activation `{stub.kind}`")
    module = kind()
    for name in ("negative_slope", "alpha", "approximate"):
        if name in stub.state and hasattr(module, name):
            value = stub.state[name]
            if not (value in ("none", "tanh") if name == "approximate" else _is_slope(value)):
                raise UsageError(f"the activation of module `{path}` of the checkpoint has {name} {shown(value)}")
            setattr(module, name, value)
    return module


def _is_slope(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9
