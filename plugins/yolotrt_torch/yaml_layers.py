"""One layer of a YOLOv5 yaml: its class, arguments, output channels and reduction.

Arguments are checked against what each block takes; names are looked up in tables, nothing is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from torch import nn

from yolotrt_core.errors import UsageError
from yolotrt_torch import yolov5_blocks, yolov5_layers
from yolotrt_torch.activations import ACTIVATIONS, Activation, activation_from_text
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.untrusted_values import shown

MAX_ATTENTION_LAYERS = 200
MAX_ARGUMENT = 1 << 16  # of a layer, e.g. a padding


class Layer(NamedTuple):
    """A layer, its output channels, and the input pixels per output pixel of a side."""

    module: nn.Module
    channels: int
    reduction: Fraction


# Blocks with the number of repeats inside.
_REPEATED: Mapping[str, Any] = {
    "C3": yolov5_layers.C3,
    "BottleneckCSP": yolov5_layers.BottleneckCSP,
    "C3TR": yolov5_blocks.C3TR,
    "C3Ghost": yolov5_blocks.C3Ghost,
    "C3x": yolov5_blocks.C3x,
}
# Blocks that take channels, and keep the size or divide it by the argument named `s`.
_BLOCKS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "Bottleneck": (yolov5_layers.Bottleneck, ("shortcut", "g", "e")),
    "SPP": (yolov5_layers.SPP, ("k",)),
    "SPPF": (yolov5_layers.SPPF, ("k",)),
    "C3SPP": (yolov5_blocks.C3SPP, ("k", "n", "shortcut", "g", "e")),
    "GhostConv": (yolov5_blocks.GhostConv, ("k", "s", "g", "act")),
    "GhostBottleneck": (yolov5_blocks.GhostBottleneck, ("k", "s")),
    "CrossConv": (yolov5_blocks.CrossConv, ("k", "s", "g", "e", "shortcut")),
    "MixConv2d": (yolov5_blocks.MixConv2d, ("k", "s", "equal_ch")),
    "Conv": (yolov5_layers.Conv, ("k", "s", "p", "g", "d", "act")),
    "Focus": (yolov5_layers.Focus, ("k", "s", "p", "g", "act")),
    "DWConv": (yolov5_layers.Conv, ("k", "s", "d", "act")),
}
_TRANSPOSED: Mapping[str, tuple[str, ...]] = {
    "ConvTranspose2d": ("kernel_size", "stride", "padding", "output_padding", "groups", "bias", "dilation"),
    "DWConvTranspose2d": ("kernel_size", "stride", "padding", "output_padding"),
}
# Layers of PyTorch that keep the channels, with their arguments as given.
_PLAIN: Mapping[str, type[nn.Module]] = {
    **ACTIVATIONS,
    **{
        kind.__name__: kind
        for kind in (
            nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d,
            nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d,
            nn.ReplicationPad2d, nn.CircularPad2d, nn.Dropout, nn.Dropout2d, nn.AlphaDropout,
            nn.FeatureAlphaDropout, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm,
            nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d, nn.Conv2d,
        )
    },
}  # fmt: skip
SIZED = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.CircularPad2d, nn.LocalResponseNorm)
JOINING = ("Concat", "Sum")


def joining_layer(kind: str, inputs: Sequence[int], args: list[Any]) -> Layer:
    """Make a layer that reads several maps."""
    if kind == "Sum":
        return Layer(yolov5_blocks.Sum(len(inputs), *args[1:2]), inputs[0], Fraction(1))
    if args not in ([], [1]):
        raise ValueError("only channels can be concatenated, dimension 1")
    return Layer(yolov5_layers.Concat(), sum(inputs), Fraction(1))


def layer_of_yaml(
    kind: str, c1: int, args: list[Any], repeats: int, scaled: Callable[[Any], int], act: Activation
) -> Layer:
    """Make a layer that reads one map.

    Args:
        c1: its input channels. repeats: how often it follows itself. scaled: channels of the yaml to those of the
            model's size. act: the model's activation.

    Raises:
        UsageError: an unknown kind. TypeError, ValueError, LookupError, RuntimeError: arguments it cannot have.
    """
    args = [_flag(a) for a in args]
    if kind in _REPEATED:
        c2 = scaled(args[0])
        return Layer(_REPEATED[kind](c1, c2, repeats, *args[1:], act=act), c2, Fraction(1))
    made: list[nn.Module] = []
    channels, reduction = c1, Fraction(1)
    for _ in range(repeats):
        layer = _single(kind, channels, args, scaled, act)
        made.append(layer.module)
        channels, reduction = layer.channels, reduction * layer.reduction
    return Layer(made[0] if len(made) == 1 else nn.Sequential(*made), channels, reduction)


def _single(kind: str, c1: int, args: list[Any], scaled: Callable[[Any], int], act: Activation) -> Layer:
    if kind in _BLOCKS:
        return _block(kind, c1, scaled(args[0]), args[1:], act)
    if kind in _TRANSPOSED:
        return _transposed(kind, c1, scaled(args[0]), args[1:])
    if kind in _PLAIN:
        return _plain(kind, c1, args)
    if kind == "BatchNorm2d":
        norm = nn.BatchNorm2d(c1, eps=yolov5_layers.NORM_EPS, momentum=yolov5_layers.NORM_MOMENTUM)
        return Layer(norm, c1, Fraction(1))
    if kind == "TransformerBlock":
        if len(args) != 4 or _integer(args[3]) > MAX_ATTENTION_LAYERS:
            raise ValueError(f"expected two channels, heads and at most {MAX_ATTENTION_LAYERS} layers")
        block = yolov5_blocks.TransformerBlock(*map(_integer, args), act=act)
        return Layer(block, block.c2, Fraction(1))
    if kind == "Contract":
        gain = _integer(args[0] if args else 2)
        return Layer(yolov5_blocks.Contract(gain), c1 * gain**2, Fraction(gain))
    if kind == "Expand":
        gain = _integer(args[0] if args else 2)
        if c1 % gain**2:
            raise ValueError(f"{c1} channels cannot be divided by {gain**2}")
        return Layer(yolov5_blocks.Expand(gain), c1 // gain**2, Fraction(1, gain))
    raise UsageError(f"the model has an unsupported layer `{shown(kind)}`", hint=EXPORT_HINT)


def _flag(value: Any) -> Any:
    return {"None": None, "True": True, "False": False}.get(value, value) if isinstance(value, str) else value


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 < value <= MAX_ARGUMENT:
        raise ValueError("expected integers")
    return value


def _block(kind: str, c1: int, c2: int, args: list[Any], act: Activation) -> Layer:
    make, names = _BLOCKS[kind]
    given = _named(names, args)
    if "act" in given:
        chosen = given.pop("act")
        act = _chosen_activation(chosen, act)
    if kind == "DWConv":
        given["g"] = math.gcd(c1, c2)
    if kind != "MixConv2d":
        given["act"] = act
    stride = _stride(given.get("s", 1))
    factor = Fraction(stride)
    if kind == "Focus":
        factor *= 2
    elif kind == "GhostBottleneck":  # only a stride of 2 has an effect
        factor = Fraction(2 if stride == 2 else 1)
    return Layer(make(c1, c2, **given), c2, factor)


def _named(names: tuple[str, ...], args: list[Any]) -> dict[str, Any]:
    """Name the arguments; releases before v7 have no dilation before the activation."""
    if "d" in names and len(args) == names.index("d") + 1 and type(args[-1]) is not int:
        names = tuple(name for name in names if name != "d")
    if len(args) > len(names):
        raise ValueError(f"{len(args)} arguments after the channels, expected at most {len(names)}")
    given = dict(zip(names, args, strict=False))
    for name in given.keys() & {"k", "s", "p", "g", "d", "n"}:
        if not _are_integers(given[name]) and not (name == "p" and given[name] is None):
            raise ValueError("expected integers")
    return given


def _are_integers(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return 0 < len(values) <= 16 and all(type(v) is int and abs(v) <= MAX_ARGUMENT for v in values)


def _chosen_activation(chosen: Any, default: Activation) -> Activation:
    if isinstance(chosen, str):
        return activation_from_text(chosen)
    if not isinstance(chosen, bool):
        raise ValueError(f"an unknown activation {shown(chosen)}")
    return default if chosen else nn.Identity


def _stride(value: Any) -> int:
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or type(side := sides.pop()) is not int:
        raise ValueError(f"strides {shown(value)}, expected one for both sides")
    return side


def _transposed(kind: str, c1: int, c2: int, args: list[Any]) -> Layer:
    names = _TRANSPOSED[kind]
    if len(args) > len(names):
        raise ValueError(f"{len(args)} arguments after the channels, expected at most {len(names)}")
    given = dict(zip(names, args, strict=False))
    if not all(_are_integers(v) for name, v in given.items() if name != "bias"):
        raise ValueError("expected integers")
    if kind == "DWConvTranspose2d":
        given = {"kernel_size": 1, **given, "groups": math.gcd(c1, c2)}
    module = nn.ConvTranspose2d(c1, c2, **given)
    return Layer(module, c2, 1 / Fraction(_stride(module.stride)))


def _plain(kind: str, c1: int, args: list[Any]) -> Layer:
    for value in args:
        values = value if isinstance(value, (list, tuple)) else [value]
        if len(values) > 16 or not all(_is_plain(v) for v in values):
            raise ValueError("expected plain numbers and texts")
    module = _PLAIN[kind](*[tuple(a) if isinstance(a, list) else a for a in args])
    if getattr(module, "divisor_override", None) is not None:
        raise ValueError("an average with divisor_override is not supported")
    if kind == "Conv2d" and (module.in_channels, module.out_channels) != (c1, c1):
        raise ValueError(f"only a Conv2d that keeps its {c1} channels is supported")
    return Layer(module, c1, _reduction(module))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= MAX_ARGUMENT
    return value is None or isinstance(value, str)


def _reduction(module: nn.Module) -> Fraction:
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.Conv2d, nn.LPPool2d)):
        return Fraction(_stride(module.stride if module.stride is not None else module.kernel_size))
    if isinstance(module, nn.Upsample):
        if module.size is not None or not float(module.scale_factor or 0).is_integer():
            raise ValueError("only upsampling by an integer factor is supported")
        if module.mode not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"upsampling of mode {shown(module.mode)} is not supported")
        return 1 / Fraction(module.scale_factor)
    return Fraction(1)
