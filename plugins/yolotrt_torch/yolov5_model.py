"""YOLOv5 as a PyTorch module, built from a checkpoint's `yaml`.

    network = Network({"nc": 2, "depth_multiple": 0.33, "width_multiple": 0.25,
                       "anchors": [[10, 13, ...], ...], "backbone": [[-1, 1, "Conv", [64, 6, 2, 2]], ...],
                       "head": [...], "activation": "nn.SiLU()"})

The weights' names are those of YOLOv5's own checkpoints (`model.0.conv.weight`), so they load strictly.
In training `network(images)` returns the raw maps per level, (B, na, ny, nx, 5 + C); in `eval()` the decoded
rows, (B, N, 5 + C). Reads no files and evaluates no strings: names are looked up in tables.
"""

# mypy: disallow-subclassing-any=False
# (torch is `follow_imports = "skip"` in pyproject.toml, so nn.Module is Any here.)
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeGuard, cast

from torch import Tensor, nn

from yolotrt_core.console.text import first_line
from yolotrt_core.errors import UsageError
from yolotrt_torch import yolov5_layers
from yolotrt_torch.classify_head import Classify, normalized
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.segment_head import Segment
from yolotrt_torch.untrusted_values import shown
from yolotrt_torch.yolov5_layers import Activation, Detect

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.Mish, nn.GELU, nn.ELU, nn.Identity)
}

# Limits for untrusted yaml; the largest official model has 42 layers of up to 16 repeats, 1280 channels, about 1000
# modules and 141 million parameters.
MAX_LAYERS = 500
MAX_REPEATS = 200
MAX_CHANNELS = 1 << 16
MAX_ANCHORS = 100  # of one level
MAX_MASKS = 1024  # coefficients of a segmentation head; upstream's have 32
MAX_MODULES = 20_000
MAX_PARAMETERS = 1 << 32
MAX_REDUCTION = 1 << 16  # pixels per cell, or cells per pixel
MAX_ACTIVATION = 100  # characters
_FLAGS = {"True": 1.0, "False": 0.0}


def activation_from_text(text: str) -> Activation:
    """Return a factory of the activation that a yaml names, e.g. `nn.LeakyReLU(0.1)`.

    Raises:
        UsageError: an unknown activation, or arguments that are not plain numbers.
    """
    short = text if len(text) <= MAX_ACTIVATION else ""
    match = re.fullmatch(r"\s*(?:torch\.)?(?:nn\.)?(\w+)\s*\((.*)\)\s*", short)
    kind = ACTIVATIONS.get(match[1]) if match else None
    if match is None or kind is None:
        raise UsageError(
            f"unknown activation `{shown(text)}`", hint="known: " + ", ".join(f"`nn.{a}()`" for a in ACTIVATIONS)
        )
    given = [part for part in match[2].split(",") if part.strip() and "inplace" not in part]
    try:
        values = [part.split("=")[-1].strip() for part in given]
        arguments = [_FLAGS[value] if value in _FLAGS else float(value) for value in values]
        if not all(map(math.isfinite, arguments)):
            raise ValueError("not finite")
        kind(*arguments)
    except (ValueError, TypeError) as err:
        raise UsageError(f"activation `{text}` has arguments that are not plain numbers") from err
    return lambda: kind(*arguments)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the yaml: sources (-1: the image), repeats, block, arguments."""

    index: int
    sources: tuple[int, ...]
    single: bool
    repeats: int
    kind: str
    args: tuple[Any, ...]


@dataclass(slots=True)
class _Plan:
    """State while building from the yaml: channels and pixels per cell of each layer so far."""

    nc: int
    anchors: Any
    depth: float
    width: float
    act: Activation
    channels: list[int] = field(default_factory=list)
    reduction: list[Fraction] = field(default_factory=list)
    modules: int = 0
    parameters: int = 0

    def scaled(self, channels: Any) -> int:
        """Scale a width to the model's size, in steps of 8 channels."""
        if not isinstance(channels, (int, float)) or not 0 < channels <= MAX_CHANNELS:
            raise UsageError(f"a layer of the model's yaml has `{shown(channels)}` channels")
        anchors = self.anchors
        per_level = anchors if isinstance(anchors, int) else len(anchors[0]) // 2
        if channels == per_level * (self.nc + 5):  # an output layer keeps its width
            return int(channels)
        scaled = max(8, math.ceil(channels * self.width / 8) * 8)
        if scaled > MAX_CHANNELS:
            raise UsageError(f"a layer of the model's yaml has {scaled} channels, expected at most {MAX_CHANNELS}")
        return scaled

    def repeated(self, entry: _Entry) -> int:
        """Scale a number of repeats to the model's size."""
        repeats = max(round(entry.repeats * self.depth), 1) if entry.repeats > 1 else 1
        if repeats > MAX_REPEATS:
            raise UsageError(
                f"layer {entry.index} of the model's yaml is repeated {repeats} times, expected at most {MAX_REPEATS}"
            )
        return repeats

    def charge(self, module: nn.Module) -> None:
        """Count a layer's modules and parameters, and refuse a yaml above the limits."""
        self.modules += sum(1 for _ in module.modules())
        self.parameters += sum(parameter.numel() for parameter in module.parameters())
        if self.modules > MAX_MODULES or self.parameters > MAX_PARAMETERS:
            raise UsageError(
                f"the model's yaml creates more than {MAX_MODULES} modules or {MAX_PARAMETERS} parameters",
                hint="expected a YOLOv5 model",
            )


class Network(nn.Module):
    """A YOLOv5 detection, segmentation or classification network.

    Args:
        config: content of a YOLOv5 model yaml: `nc`, `depth_multiple`, `width_multiple`, `anchors` (pixels, one
            flat list per level, or their number), `backbone`, `head`, optionally `activation` and `ch`.

    Attributes:
        model: the layers, in yaml order; `head`, of a network with boxes `detect`, is the last of them.
        stride: pixels per cell of each level; of a classification network of its feature map.
        network_stride: pixels per cell of the coarsest feature map; height and width are multiples of it.

    Raises:
        UsageError: the config is not of a YOLOv5 detection model, or names an unknown block.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        entries = _entries(config)
        plan = _plan(config)
        built: list[nn.Module] = []
        for entry in entries:
            built.append(_build(entry, plan))
        if not isinstance(built[-1], (Detect, Classify)):
            raise UsageError(
                f"expected a YOLOv5 detection or segmentation model, found one that ends in `{shown(entries[-1].kind)}`"
            )
        self.model = nn.Sequential(*built)
        self.sources = tuple(e.sources if not e.single else e.sources[0] for e in entries)
        self._kept = {s for e in entries for s in e.sources if s != e.index - 1}
        # Not only levels with a detection head: upsampled maps are joined to finer ones.
        self.network_stride = math.lcm(*(reduction.numerator for reduction in plan.reduction))
        if isinstance(built[-1], Classify):
            built[-1].stride = (self.network_stride,)

    @property
    def head(self) -> Detect | Classify:
        return cast("Detect | Classify", self.model[-1])

    @property
    def detect(self) -> Detect:
        return cast(Detect, self.model[-1])

    @property
    def stride(self) -> tuple[int, ...]:
        return self.head.stride

    def forward(self, images: Tensor) -> Any:
        """Run the network.

        Args:
            images: float (B, 3, H, W), RGB in 0..1; H and W multiples of `network_stride`.

        Returns:
            In training one raw (B, na, ny, nx, 5 + C) per level; in `eval()` decoded (B, N, 5 + C): cx, cy, w, h
            in input pixels, objectness and class scores in 0..1, rows by level, anchor, y, x. Of a segmentation
            network a tuple of these, with K more columns, and the prototypes (B, K, h, w). Of a classification network
            the logits (B, C).
        """
        x: Any = normalized(images) if isinstance(self.head, Classify) else images
        kept: dict[int, Tensor] = {-1: x}
        for index, (layer, sources) in enumerate(zip(self.model, self.sources, strict=True)):
            if isinstance(sources, tuple):
                x = layer([x if s == index - 1 else kept[s] for s in sources])
            else:
                x = layer(x if sources == index - 1 else kept[sources])
            if index in self._kept:
                kept[index] = x
        return x


def fuse(network: nn.Module) -> None:
    """Fold every batch norm into its convolution and every `Focus` into one strided convolution, in place.

    The network must be in `eval()`. Folds in float64, which adds no error.
    """
    for module in list(network.modules()):
        if isinstance(module, yolov5_layers.Conv) and isinstance(module.bn, nn.BatchNorm2d):
            scale, shift = _affine(module.bn)
            module.conv = _folded(module.conv, scale, shift)
            module.bn = nn.Identity()
        elif isinstance(module, yolov5_layers.BottleneckCSP) and isinstance(module.bn, nn.BatchNorm2d):
            scale, shift = _affine(module.bn)
            half = module.cv3.out_channels
            module.cv3 = _folded(module.cv3, scale[:half], shift[:half])
            module.cv2 = _folded(module.cv2, scale[half:], shift[half:])
            module.bn = nn.Identity()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, yolov5_layers.Focus) and child.conv.conv.groups == 1:
                setattr(parent, name, child.as_conv())


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _folded(conv: yolov5_layers.Conv2d, scale: Tensor, shift: Tensor) -> yolov5_layers.Conv2d:
    bias = shift if conv.bias is None else shift + scale * conv.bias.double()
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype).detach())
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype).detach())
    return conv


def _entries(config: Mapping[str, Any]) -> list[_Entry]:
    """Read `backbone` and `head` into entries with absolute sources."""
    lines: list[Any] = []
    for part in ("backbone", "head"):
        if not isinstance(config.get(part), (list, tuple)):
            raise UsageError(f"the model's yaml has no list `{part}`", hint="expected a YOLOv5 model")
        lines += config[part]
    if not 0 < len(lines) <= MAX_LAYERS:
        raise UsageError(f"the model's yaml has {len(lines)} layers, expected 1 to {MAX_LAYERS}")
    entries = []
    for index, line in enumerate(lines):
        if not (isinstance(line, (list, tuple)) and len(line) == 4 and isinstance(line[3], (list, tuple))):
            raise UsageError(f"layer {index} of the model's yaml is not [from, number, module, args]")
        source, repeats, kind, args = line
        given = list(source) if isinstance(source, (list, tuple)) else [source]
        if not given or not all(type(s) is int and -index - 1 <= s < max(index, 0) for s in given):
            raise UsageError(
                f"layer {index} of the model's yaml reads from `{shown(source)}`, which is not an earlier layer"
            )
        if type(repeats) is not int or not 1 <= repeats <= MAX_REPEATS:
            raise UsageError(f"layer {index} of the model's yaml is repeated `{shown(repeats)}` times")
        sources = tuple(s if s >= 0 else index + s for s in given)
        single = not isinstance(source, (list, tuple))
        name = shown(kind).rpartition(".")[2]
        entries.append(_Entry(index, sources, single, repeats, name, tuple(args)))
    return entries


def _plan(config: Mapping[str, Any]) -> _Plan:
    nc, anchors, channels = config.get("nc"), config.get("anchors"), config.get("ch", 3)
    if not _is_count(nc):
        raise UsageError(f"the model's yaml has `nc: {shown(nc)}`, expected the number of classes")
    if not _are_anchors(anchors):
        raise UsageError("the model's yaml has no `anchors`", hint="expected a YOLOv5 detection model")
    if channels != 3:
        raise UsageError(f"the model has {shown(channels)} input channels, expected 3 (RGB)")
    factors = [config.get(name, 1.0) for name in ("depth_multiple", "width_multiple")]
    if not all(isinstance(f, (int, float)) and 0 < f <= 100 for f in factors):
        raise UsageError(f"the model's yaml has depth and width multiples {shown(factors)}, expected positive numbers")
    text = config.get("activation")
    act = activation_from_text(str(text)) if text else nn.SiLU
    return _Plan(nc, anchors, float(factors[0]), float(factors[1]), act)


def _is_count(nc: Any) -> TypeGuard[int]:
    return type(nc) is int and 1 <= nc <= MAX_CHANNELS


def _are_anchors(anchors: Any) -> bool:
    """Check for widths and heights of each level, or the number of anchors per level."""
    if not isinstance(anchors, (list, tuple)):
        return type(anchors) is int and 0 < anchors <= MAX_ANCHORS
    sizes = {len(level) if isinstance(level, (list, tuple)) else 0 for level in anchors}
    return len(sizes) == 1 and all(size >= 2 and size % 2 == 0 for size in sizes)


def _build(entry: _Entry, plan: _Plan) -> nn.Module:
    """Build one layer and record its output channels and reduction."""
    inputs = [3 if s < 0 else plan.channels[s] for s in entry.sources]
    reductions = [Fraction(1) if s < 0 else plan.reduction[s] for s in entry.sources]
    args = [None if a == "None" else a for a in entry.args]
    repeats = plan.repeated(entry)
    try:
        module, channels, factor = _make(entry, plan, inputs, reductions, repeats, args)
        reduction = reductions[0] * factor
        if not 1 <= reduction * MAX_REDUCTION <= MAX_REDUCTION**2:
            raise ValueError(f"it shrinks or enlarges the image more than {MAX_REDUCTION} times")
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as err:
        raise UsageError(
            f"layer {entry.index} (`{shown(entry.kind)}`) of the model's yaml cannot be built from "
            f"{shown(list(entry.args))}: {first_line(err)}"
        ) from err
    plan.charge(module)
    plan.channels.append(channels)
    plan.reduction.append(reduction)
    return module


def _make(
    entry: _Entry,
    plan: _Plan,
    inputs: Sequence[int],
    reductions: Sequence[Fraction],
    repeats: int,
    args: list[Any],
) -> tuple[nn.Module, int, Fraction]:
    """Return the layer, its output channels and its reduction."""
    kind, c1 = entry.kind, inputs[0]
    if kind in ("Detect", "Segment"):
        return _head(kind, plan, inputs, reductions, args), 0, Fraction(1)
    if kind == "Classify":
        if len(args) != 6 or not all(_is_count(number) for number in args[:4]):
            raise ValueError("expected classes, channels, kernel, stride, padding and groups")
        return Classify(c1, *args, act=plan.act), 0, Fraction(1)
    if kind == "Concat":
        if args not in ([], [1]):
            raise ValueError("only channels can be concatenated, dimension 1")
        return yolov5_layers.Concat(), sum(inputs), Fraction(1)
    if kind in _REPEATED_INSIDE:
        c2 = plan.scaled(args[0])
        return _REPEATED_INSIDE[kind](c1, c2, repeats, *args[1:], act=plan.act), c2, Fraction(1)
    if kind in _SCALED:
        c2 = plan.scaled(args[0])
        made = [_scaled(kind, c1 if i == 0 else c2, c2, args[1:], plan.act) for i in range(repeats)]
        factor = math.prod((f for _, f in made), start=Fraction(1))
        return _chain([m for m, _ in made]), c2, factor
    if kind in _PLAIN:
        plain = [_PLAIN[kind](*args) for _ in range(repeats)]
        return _chain(plain), c1, math.prod((_shrinks(m) for m in plain), start=Fraction(1))
    raise UsageError(
        f"the model has an unsupported layer `{shown(kind)}`",
        hint=EXPORT_HINT,
    )


_REPEATED_INSIDE: Mapping[str, Any] = {"C3": yolov5_layers.C3, "BottleneckCSP": yolov5_layers.BottleneckCSP}
_SCALED: Mapping[str, Any] = {
    "Conv": yolov5_layers.Conv,
    "DWConv": yolov5_layers.Conv,
    "Focus": yolov5_layers.Focus,
    "Bottleneck": yolov5_layers.Bottleneck,
    "SPP": yolov5_layers.SPP,
    "SPPF": yolov5_layers.SPPF,
}
_PLAIN: Mapping[str, type[nn.Module]] = {
    "Upsample": nn.Upsample,
    "MaxPool2d": nn.MaxPool2d,
    "ZeroPad2d": nn.ZeroPad2d,
    "Identity": nn.Identity,
}


def _chain(made: Sequence[nn.Module]) -> nn.Module:
    return made[0] if len(made) == 1 else nn.Sequential(*made)


def _scaled(kind: str, c1: int, c2: int, args: list[Any], act: Activation) -> tuple[nn.Module, Fraction]:
    if kind in ("Bottleneck", "SPP", "SPPF"):
        return _SCALED[kind](c1, c2, *args, act=act), Fraction(1)
    defaults = (1, 1) if kind == "DWConv" else (1, 1, None, 1)
    given = [*args, *defaults[len(args) :]]
    rest = given[len(defaults) :]
    k, s, p, g = (*given[:2], None, math.gcd(c1, c2)) if kind == "DWConv" else given[:4]
    if not all(type(number) is int or number is None for number in (k, s, p, g)):
        raise ValueError("expected integers")
    for extra in rest:  # v7 puts a dilation before the activation flag
        if extra is False:
            act = nn.Identity
        elif extra is not True and extra != 1:
            raise ValueError(f"unknown dilation `{shown(extra)}`")
    return _SCALED[kind](c1, c2, k, s, p, g, act=act), Fraction(s) * (2 if kind == "Focus" else 1)


def _shrinks(module: nn.Module) -> Fraction:
    if isinstance(module, nn.MaxPool2d):
        return Fraction(module.stride)
    if isinstance(module, nn.Upsample):
        if module.size is not None or module.mode != "nearest" or not float(module.scale_factor or 0).is_integer():
            raise ValueError("only nearest-neighbour upsampling by an integer factor is supported")
        return 1 / Fraction(module.scale_factor)
    return Fraction(1)


def _head(kind: str, plan: _Plan, inputs: Sequence[int], reductions: Sequence[Fraction], args: list[Any]) -> Detect:
    values = {"nc": plan.nc, "anchors": plan.anchors}
    nc, anchors = (values[a] if isinstance(a, str) else a for a in args[:2])
    if not (_is_count(nc) and _are_anchors(anchors)):
        raise ValueError("expected the number of classes and the anchors")
    if isinstance(anchors, int):  # their number: the values come with the weights
        anchors = [[float(v) for v in range(anchors * 2)] for _ in inputs]
    if len(anchors) != len(inputs):
        raise ValueError(f"{len(anchors)} levels of anchors for {len(inputs)} feature maps")
    if any(r.denominator != 1 or r < 1 for r in reductions):
        raise ValueError(f"feature maps at {[str(r) for r in reductions]} pixels per cell")
    stride = [int(r) for r in reductions]
    if kind == "Detect":
        return Detect(nc, anchors, inputs, stride)
    given = args[2:4]
    masks, hidden = (given + [32, 256][len(given) :])[:2]
    if type(masks) is not int or not 1 <= masks <= MAX_MASKS:
        raise ValueError(f"`{shown(masks)}` mask coefficients, expected 1 to {MAX_MASKS}")
    return Segment(nc, anchors, inputs, stride, masks, plan.scaled(hidden), act=plan.act)
