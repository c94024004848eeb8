"""Attributes of a checkpoint's modules: each is used, or must equal what its yaml gives, or cannot change the answer.

Any other one is refused by name: a module that was edited in code is not computed as something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from yolotrt_core.errors import UsageError
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.pickle_reader import Stub
from yolotrt_torch.untrusted_values import shown

_MAX_COMPARED = 64  # items of one attribute, e.g. of an untrusted `Concat`


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e9


def _is_epsilon(value: Any) -> bool:
    return type(value) is float and 0 < value < 1


# What the yaml does not state: used if the value is valid.
_NUMBERS = {
    "LeakyReLU": ("negative_slope",),
    "ELU": ("alpha",),
    "CELU": ("alpha",),
    "Softplus": ("beta", "threshold"),
    "Threshold": ("threshold", "value"),
    "Hardtanh": ("min_val", "max_val"),
    "ReLU6": ("min_val", "max_val"),
    "Hardshrink": ("lambd",),
    "Softshrink": ("lambd",),
    "RReLU": ("lower", "upper"),
}
USED: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "Conv2d": {"padding_mode": lambda v: v in ("zeros", "reflect", "replicate", "circular")},
    "GELU": {"approximate": lambda v: v in ("none", "tanh")},
    **{kind: {"eps": _is_epsilon} for kind in ("BatchNorm2d", "InstanceNorm2d", "GroupNorm")},
    **{kind: dict.fromkeys(names, _is_number) for kind, names in _NUMBERS.items()},
}
# What cannot change the answer of a network in `eval()`, by class; tests hold each against PyTorch.
HARMLESS: Mapping[str, tuple[str, ...]] = {
    "BatchNorm2d": ("momentum", "affine", "track_running_stats", "process_group", "num_features", "ddp_gpu_size"),
    "InstanceNorm2d": ("momentum", "affine", "num_features"),
    "GroupNorm": ("affine", "num_channels"),
    "Conv2d": ("_padding_repeated_twice",),  # of PyTorch 1.4, unused since
    "ConvTranspose2d": ("_reversed_padding_repeated_twice", "_padding_repeated_twice"),
    "Upsample": ("name", "recompute_scale_factor"),  # integer factors only: the recomputed one is the same
    "MultiheadAttention": ("dropout",),
    "PReLU": ("num_parameters", "init"),
    "Linear": ("in_features", "out_features"),
    # Strides and anchors are compared elsewhere, grids follow from them.
    **dict.fromkeys(
        ("Detect", "Segment"),
        ("stride", "grid", "anchor_grid", "inplace", "dynamic", "onnx_dynamic", "export", "detect"),
    ),
    **dict.fromkeys(("Dropout", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout"), ("p", "inplace")),
    **dict.fromkeys(
        ("CELU", "ELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "Mish", "RReLU", "ReLU", "ReLU6", "SELU",
         "SiLU", "Threshold"), ("inplace",)
    ),
}  # fmt: skip
# Of every module: mode, parts (compared as modules and weights), and hooks of training, saving and loading.
_COMMON = frozenset({
    "training", "call_super_init", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backend",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_compiled_call_impl",
})  # fmt: skip
_HOOKS = frozenset({
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
})  # fmt: skip
_OF_LAYERS = frozenset({"i", "f", "type", "np"})  # bookkeeping of the yaml's layers; `i` and `f` are compared
_METHODS = frozenset({"forward_once", "_forward_once", "forward_augment", "_forward_augment"})
_FUSED_FORWARDS = ("forward_fuse", "fuseforward")


def apply_attributes(path: str, ours: nn.Module, theirs: Stub) -> None:
    """Set the attributes that the yaml does not state, and refuse those that would compute something else.

    Args:
        path: the module's path, e.g. `model.0.conv`; empty for the model itself.

    Raises:
        UsageError: names the module, the attribute and its value.
    """
    kind = type(ours).__name__
    used, harmless = USED.get(kind, {}), HARMLESS.get(kind, ())
    is_layer = path.count(".") == 1
    for name, value in theirs.state.items():
        if name in _COMMON or name in harmless or (is_layer and name in _OF_LAYERS):
            continue
        if name in _HOOKS:
            if value:
                raise UsageError(f"{_module(path)} has hooks (`{name}`), which change its answer", hint=EXPORT_HINT)
        elif name == "forward":
            _refuse_forward(path, ours, theirs, value)
        elif not path:
            if name in _METHODS or hasattr(nn.Module, str(name)):
                raise UsageError(f"{_module(path)} replaces its own `{shown(name)}`", hint=EXPORT_HINT)
        elif name in used:
            if not used[name](value):
                raise UsageError(f"{_module(path)} has {shown(name)} {shown(value)}, which is not supported")
            setattr(ours, name, value)
        elif not (isinstance(name, str) and name in vars(ours)):
            raise UsageError(
                f"{_module(path)} has the attribute `{shown(name)}` ({shown(value)}), unknown for its class `{kind}`",
                hint=EXPORT_HINT,
            )
        elif not are_equal(getattr(ours, name), value):
            raise UsageError(
                f"{_module(path)} has {name} {shown(value)}, but its yaml requires {shown(getattr(ours, name))}"
            )


def _module(path: str) -> str:
    return f"module `{path}` of the checkpoint" if path else "the checkpoint's model"


def _refuse_forward(path: str, ours: nn.Module, theirs: Stub, value: Any) -> None:
    """Refuse a replaced `forward`, except the one of a block whose norm is folded."""
    if isinstance(value, Stub) and value.kind == "getattr" and len(value.args) == 2 and value.args[0] is theirs:
        if value.args[1] == "forward":
            return
        if value.args[1] in _FUSED_FORWARDS and isinstance(getattr(ours, "bn", None), nn.Identity):
            return
    raise UsageError(f"{_module(path)} replaces its own `forward`", hint=EXPORT_HINT)


def are_equal(ours: Any, theirs: Any) -> bool:
    """Compare plain values: 2 equals (2, 2), and a pickled `range` its arguments."""
    if isinstance(theirs, Stub) and theirs.kind.rpartition(".")[2] in ("range", "xrange"):
        theirs = theirs.args
    if isinstance(theirs, (list, tuple)) and len(theirs) > _MAX_COMPARED:
        return False
    first, second = (list(v) if isinstance(v, (list, tuple)) else [v] for v in (ours, theirs))
    length = max(len(first), len(second))
    return (first * length if len(first) == 1 else first) == (second * length if len(second) == 1 else second)
