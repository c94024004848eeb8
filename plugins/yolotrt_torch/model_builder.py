"""Checkpoint -> PyTorch network, checked layer by layer against the file's modules."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from yolotrt_core.console.text import counted
from yolotrt_core.errors import UsageError
from yolotrt_torch import yolov5_layers
from yolotrt_torch.activations import activation_of
from yolotrt_torch.checkpoint import Checkpoint
from yolotrt_torch.module_attributes import apply_attributes, are_equal
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.pickle_reader import Stub
from yolotrt_torch.plain_weights import COUNTERS, structure_hint
from yolotrt_torch.pruning import fit_channels
from yolotrt_torch.untrusted_values import convert_value_errors, shown
from yolotrt_torch.yolov5_blocks import MixConv2d, MultiheadAttention
from yolotrt_torch.yolov5_model import Network

log = logging.getLogger(__name__)

# Classes of the file, by the class of ours that computes the same.
_SAME: Mapping[str, tuple[str, ...]] = {
    "Conv": ("DWConv",),
    "ConvTranspose2d": ("DWConvTranspose2d",),
    "BatchNorm2d": ("SyncBatchNorm",),
    "Linear": ("NonDynamicallyQuantizableLinear",),
}
_BLOCK_MODULES = re.compile(r"(yolov5\.)?models\.(yolo|common|experimental)")
_ACTIVATION_MODULES = re.compile(r"(yolov5\.)?utils\.activations|torch\.nn\.modules\.\w+")
# Buffers without effect: derived ones of older releases, and the results of counting operations.
_IGNORED = ("anchor_grid", "grid", *COUNTERS)


def network_from_checkpoint(checkpoint: Checkpoint) -> Network:
    """Build the network and load its weights strictly, in float32, in `eval()`.

    Where the file contains its modules, what the yaml does not state is taken from them: activations, batch-norm
    epsilon, padding modes. All other attributes must equal the yaml's or be without effect: a model edited in code is
    refused instead of computing something else.

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
            _take_activations(network, checkpoint.modules, state)
            _compare(network, checkpoint.modules)
            state = _without_extra_buffers(network, state, checkpoint.modules)
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
        log.warning(
            "ignored %s that YOLOv5's layers do not have: %s", counted(len(extra), "buffer"), shown(sorted(extra))
        )
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


def _take_activations(network: Network, modules: Mapping[str, Stub], state: Mapping[str, Any]) -> None:
    """Replace each block's activation by the file's."""
    for path, module in list(network.named_modules()):
        stub = modules.get(f"{path}.act")
        if stub is None or not hasattr(module, "act"):
            continue  # `_compare` refuses what is missing
        prefix = f"{path}.act."
        shapes = {key.removeprefix(prefix): array.shape for key, array in state.items() if key.startswith(prefix)}
        owner, _, short = stub.kind.rpartition(".")
        try:
            act = activation_of(short, shapes) if _ACTIVATION_MODULES.fullmatch(owner) else None
        except ValueError as err:
            raise UsageError(f"module `{path}` of the checkpoint has {err}") from err
        if act is None:
            text = f"module `{path}` of the checkpoint has an unknown activation `{stub.kind}`"
            raise UsageError(text, hint=EXPORT_HINT)
        if isinstance(module, MixConv2d) and not isinstance(act, nn.SiLU):
            raise UsageError(
                f"module `{path}` of the checkpoint is a `MixConv2d` of an early release, which also adds its input",
                hint=EXPORT_HINT,
            )
        module.act = act


def _compare(network: Network, modules: Mapping[str, Stub]) -> None:
    """Refuse a file whose modules do not match its yaml, and take the attributes that the yaml does not state."""
    for path, ours in network.named_modules():
        theirs = modules.get(path)
        if theirs is None:
            if path and not isinstance(ours, nn.Identity):
                raise UsageError(f"the checkpoint's model has no module `{path}`, which its yaml requires")
            continue
        if path:
            _refuse_other_class(path, ours, theirs)
            parts = theirs.state.get("_modules")
            extra = set(parts if isinstance(parts, dict) else ()) - {name for name, _ in ours.named_children()}
            if extra:
                listed = shown(sorted(map(shown, extra)))
                raise UsageError(f"module `{path}` of the checkpoint has unknown parts {listed}", hint=EXPORT_HINT)
        apply_attributes(path, ours, theirs)
        if isinstance(ours, nn.BatchNorm2d) and "eps" not in theirs.state:
            raise UsageError(f"module `{path}` of the checkpoint has no batch-norm epsilon")
    for index, sources in enumerate(network.sources):
        layer = modules.get(f"model.{index}")
        found, number = (layer.state.get("f"), layer.state.get("i", index)) if layer else (None, index)
        if found is not None and not are_equal(sources, _absolute(found, index)):
            raise UsageError(f"layer {index} of the checkpoint reads from {shown(found)}, its yaml requires {sources}")
        if number != index:
            raise UsageError(f"layer {index} of the checkpoint has the number {shown(number)}")


def _refuse_other_class(path: str, ours: nn.Module, theirs: Stub) -> None:
    kind = type(ours).__name__
    owner, _, short = theirs.kind.rpartition(".")
    bases = [base for base in type(ours).__mro__ if base.__module__.startswith("torch.nn.") and base is not nn.Module]
    is_torch = bool(bases) or isinstance(ours, MultiheadAttention)
    known = re.compile(r"torch\.nn\.modules\.\w+") if is_torch else _BLOCK_MODULES
    if path.rpartition(".")[2] == "act":  # chosen from the file's
        return
    if short.startswith("DWConv"):
        known = _BLOCK_MODULES
    if (kind != short and short not in _SAME.get(kind, ())) or not known.fullmatch(owner):
        shown_kind = short if kind != short else theirs.kind
        raise UsageError(
            f"module `{path}` of the checkpoint is a `{shown_kind}`, but its yaml requires `{kind}`", hint=EXPORT_HINT
        )


def _absolute(found: Any, index: int) -> list[Any]:
    """Return the absolute layer indices of a file's `f`."""
    given = found if isinstance(found, (list, tuple)) else [found]
    return [index + s if isinstance(s, int) and s < 0 else s for s in given]
