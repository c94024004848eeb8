"""Activations: those of `torch.nn`, and YOLOv5's own with weights."""

# mypy: disallow-subclassing-any=False
# (torch is `follow_imports = "skip"` in pyproject.toml, so nn.Module is Any here.)
from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from yolotrt_core.errors import UsageError
from yolotrt_torch.untrusted_values import shown

Activation = Callable[[], nn.Module]
MAX_TEXT = 100  # characters of an activation in a yaml


class Threshold(nn.Threshold):
    """PyTorch's threshold in operators that its exporters know."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > self.threshold, x, x.new_full((), self.value))


class RReLU(nn.RReLU):
    """PyTorch's randomized leaky ReLU in inference, where its slope is the mean of the two; dynamo cannot export it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(x, (self.lower + self.upper) / 2)


# Those that change each value by itself, whatever the channels.
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.Mish, nn.GELU, nn.ELU, nn.Identity, nn.CELU,
        nn.Hardshrink, nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid, nn.PReLU, RReLU, nn.SELU, nn.Sigmoid,
        nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, Threshold,
    )
}  # fmt: skip
# YOLOv5's own names for functions of PyTorch.
_SYNONYMS = {"Swish": "SiLU", "MemoryEfficientSwish": "SiLU", "MemoryEfficientMish": "Mish"}
_WORDS = {"True": True, "False": False, "none": "none", "tanh": "tanh"}


class FReLU(nn.Module):
    """Maximum of the input and a 3x3 depth-wise convolution of it."""

    def __init__(self, channels: int, k: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, k, 1, 1, groups=channels, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.bn(self.conv(x)))


class AconC(nn.Module):
    """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x, with weights per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p1 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return _acon(x, self.p1, self.p2, self.beta)


class MetaAconC(nn.Module):
    """AconC whose beta follows from the mean of each channel, by two 1x1 convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.p1 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        beta = self.fc2(self.fc1(x.mean((2, 3), keepdim=True))).sigmoid()
        return _acon(x, self.p1, self.p2, beta)


def _acon(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    scaled = (p1 - p2) * x
    return scaled * torch.sigmoid(beta * scaled) + p2 * x


def activation_of(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module | None:
    """Create the activation of a class name, with the sizes of its weights; None for an unknown one.

    Args:
        kind: name without its module. shapes: shape of each weight below it, by name (`p1`, `fc1.weight`).

    Raises:
        ValueError: the weights are not those of this activation.
    """
    name = _SYNONYMS.get(kind, kind)
    try:
        if name == "PReLU":
            return nn.PReLU(*shapes["weight"])
        if name == "FReLU":
            return FReLU(shapes["bn.weight" if "bn.weight" in shapes else "conv.weight"][0])
        if name == "AconC":
            return AconC(shapes["p1"][1])
        if name == "MetaAconC":
            return MetaAconC(shapes["p1"][1], shapes["fc1.weight"][0])
    except (LookupError, TypeError) as err:
        raise ValueError(f"an activation `{name}` without its weights") from err
    known = ACTIVATIONS.get(name)
    if known is Threshold:
        return Threshold(0.0, 0.0)
    return known() if known else None


def activation_from_text(text: str) -> Activation:
    """Return a factory of the activation that a yaml names, e.g. `nn.LeakyReLU(0.1)`.

    Raises:
        UsageError: an unknown activation, or arguments that are not plain numbers.
    """
    short = text if len(text) <= MAX_TEXT else ""
    match = re.fullmatch(r"\s*(?:torch\.)?(?:nn\.)?(\w+)\s*\((.*)\)\s*", short)
    kind = ACTIVATIONS.get(match[1]) if match else None
    if match is None or kind is None:
        raise UsageError(
            f"unknown activation `{shown(text)}`", hint="known: " + ", ".join(f"`nn.{a}()`" for a in ACTIVATIONS)
        )
    positional: list[Any] = []
    named: dict[str, Any] = {}
    try:
        for part in filter(str.strip, match[2].split(",")):
            name, equals, value = part.rpartition("=")
            if not equals:
                positional.append(_argument(value))
            elif name.strip() != "inplace":
                named[name.strip()] = _argument(value)
        kind(*positional, **named)
    except (ValueError, TypeError) as err:
        raise UsageError(f"activation `{text}` has arguments that are not plain numbers") from err
    return lambda: kind(*positional, **named)


def _argument(text: str) -> Any:
    text = text.strip().strip("'\"")
    if text in _WORDS:
        return _WORDS[text]
    if re.fullmatch(r"\d{1,6}", text):
        return int(text)
    if not math.isfinite(float(text)):
        raise ValueError("not finite")
    return float(text)
