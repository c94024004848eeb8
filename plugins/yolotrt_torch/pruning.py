"""Pruned models: masks of `torch.nn.utils.prune`, and layers with fewer channels than their yaml requires."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import nn

from yolotrt_core.errors import UsageError
from yolotrt_torch import yolov5_layers
from yolotrt_torch.pickle_records import Stub

_ORIGINAL, _MASK = "_orig", "_mask"
_NORM_WEIGHTS = ("weight", "bias", "running_mean", "running_var")


def apply_masks(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Replace each pair `NAME_orig`, `NAME_mask` by `NAME`, their product, as PyTorch's pruning computes it.

    Raises:
        UsageError: a pair whose shapes differ.
    """
    applied: dict[str, NDArray[Any]] = {}
    for name, array in state.items():
        base = name.removesuffix(_ORIGINAL)
        mask = state.get(base + _MASK) if base != name else None
        if mask is not None:
            if mask.shape != array.shape:
                raise UsageError(
                    f"the pruning mask of weight `{base}` of the checkpoint has shape {list(mask.shape)}, expected "
                    f"{list(array.shape)}"
                )
            applied[base] = (array * mask).astype(array.dtype)
        elif not (name.endswith(_MASK) and name.removesuffix(_MASK) + _ORIGINAL in state):
            applied[name] = array
    return applied


def without_pruning(module: Stub) -> Stub:
    """Return a module's record without the hooks and the computed weights that pruning adds."""
    parameters, hooks = module.state.get("_parameters"), module.state.get("_forward_pre_hooks")
    if not isinstance(parameters, dict) or not isinstance(hooks, dict) or not any(map(_prunes, hooks.values())):
        return module
    computed = {n.removesuffix(_ORIGINAL) for n in parameters if isinstance(n, str) and n.endswith(_ORIGINAL)}
    state = {name: value for name, value in module.state.items() if name not in computed}
    state["_forward_pre_hooks"] = {key: hook for key, hook in hooks.items() if not _prunes(hook)}
    if not state["_forward_pre_hooks"]:
        state.pop("_forward_pre_hooks_with_kwargs", None)
    return Stub(module.kind, module.args, state)


def _prunes(hook: Any) -> bool:
    return isinstance(hook, Stub) and hook.kind.startswith("torch.nn.utils.prune.")


def fit_channels(network: nn.Module, state: Mapping[str, NDArray[Any]]) -> None:
    """Reduce the channels of a network on the `meta` device to those of its weights, where channels were pruned.

    The classes and anchors of the head stay. Whether the layers still fit together shows when the network runs.
    """
    heads = {id(conv) for module in network.modules() if isinstance(module, yolov5_layers.Detect) for conv in module.m}
    for path, module in network.named_modules():
        weight = state.get(f"{path}.weight")
        if weight is None:
            continue
        if isinstance(module, nn.Conv2d):
            _fit_conv(module, weight.shape, is_head=id(module) in heads)
        elif isinstance(module, nn.BatchNorm2d):
            shapes = {array.shape for name in _NORM_WEIGHTS if (array := state.get(f"{path}.{name}")) is not None}
            if len(shapes) == 1 and weight.ndim == 1 and 0 < weight.size < module.num_features:
                module.num_features = weight.size
                for name in _NORM_WEIGHTS:
                    setattr(module, name, _shortened(getattr(module, name), weight.size))


def _fit_conv(conv: nn.Conv2d, shape: tuple[int, ...], *, is_head: bool) -> None:
    ours = tuple(conv.weight.shape)
    if len(shape) != 4 or shape == ours or shape[2:] != ours[2:] or 0 in shape:
        return
    if any(found > wanted for found, wanted in zip(shape, ours, strict=True)) or (is_head and shape[0] != ours[0]):
        return
    groups = shape[0] if conv.groups == conv.in_channels == conv.out_channels else conv.groups
    if shape[0] % groups:
        return
    conv.out_channels, conv.in_channels, conv.groups = shape[0], shape[1] * groups, groups
    conv.weight = nn.Parameter(conv.weight.new_empty(shape))
    if conv.bias is not None:
        conv.bias = _shortened(conv.bias, shape[0])


def _shortened(vector: Any, length: int) -> Any:
    """Return a parameter or buffer of another length."""
    made = vector.new_empty(length)
    return nn.Parameter(made) if isinstance(vector, nn.Parameter) else made
