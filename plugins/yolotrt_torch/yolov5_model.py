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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeGuard, cast

from torch import Tensor, nn

from yolotrt_core.console.text import first_line
from yolotrt_core.errors import UsageError
from yolotrt_core.types import CHANNEL_COUNTS
from yolotrt_torch import yolov5_layers
from yolotrt_torch.activations import Activation, FReLU, activation_from_text
from yolotrt_torch.classify_head import Classify, normalized
from yolotrt_torch.pickle_names import EXPORT_HINT
from yolotrt_torch.segment_head import Segment
from yolotrt_torch.untrusted_values import shown
from yolotrt_torch.yaml_layers import JOINING, SIZED, Layer, joining_layer, layer_of_yaml
from yolotrt_torch.yolov5_blocks import MixConv2d, TransformerBlock
from yolotrt_torch.yolov5_layers import Detect

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
    input_channels: int
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
        channels: number of channels of the input.
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
        self.channels = plan.input_channels
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
            images: float (B, channels, H, W) in 0..1; H and W multiples of `network_stride`.

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
    """Fold every batch norm that follows a convolution, and every plain `Focus` into one strided one, in place.

    The network must be in `eval()`. Folds in float64, which adds no error.
    """
    for module in list(network.modules()):
        if not isinstance(getattr(module, "bn", None), nn.BatchNorm2d):
            continue
        if isinstance(module, (yolov5_layers.Conv, FReLU)):
            _fold_into([module.conv], module.bn)
        elif isinstance(module, yolov5_layers.BottleneckCSP):
            _fold_into([module.cv3, module.cv2], module.bn)
        elif isinstance(module, MixConv2d):
            _fold_into(list(module.m), module.bn)
        else:
            continue
        module.bn = nn.Identity()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, yolov5_layers.Focus) and child.is_plain:
                setattr(parent, name, child.as_conv())


def depends_on_size(network: nn.Module) -> bool:
    """Check whether a traced graph holds for the traced image size only."""
    return any(isinstance(m, (TransformerBlock, *SIZED)) for m in network.modules())


def _fold_into(convolutions: Sequence[Any], norm: nn.BatchNorm2d) -> None:
    """Fold a norm over the joined outputs of the convolutions."""
    scale, shift = _affine(norm)
    start = 0
    for conv in convolutions:
        end = start + conv.out_channels
        bias = shift[start:end] if conv.bias is None else shift[start:end] + scale[start:end] * conv.bias.double()
        weight = conv.weight.double() * scale[start:end].view(-1, 1, 1, 1)
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype).detach())
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype).detach())
        start = end


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


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
    if type(channels) is not int or channels not in CHANNEL_COUNTS:
        raise UsageError(
            f"the model has {shown(channels)} input channels, expected 1 (grey), 3 (RGB) or 4 (with alpha)",
            hint=EXPORT_HINT if type(channels) is int else None,
        )
    factors = [config.get(name, 1.0) for name in ("depth_multiple", "width_multiple")]
    if not all(isinstance(f, (int, float)) and 0 < f <= 100 for f in factors):
        raise UsageError(f"the model's yaml has depth and width multiples {shown(factors)}, expected positive numbers")
    text = config.get("activation")
    act = activation_from_text(str(text)) if text else nn.SiLU
    return _Plan(nc, anchors, float(factors[0]), float(factors[1]), act, channels)


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
    inputs = [plan.input_channels if s < 0 else plan.channels[s] for s in entry.sources]
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
) -> Layer:
    """Return the layer, its output channels and its reduction."""
    if entry.kind in ("Detect", "Segment"):
        return Layer(_head(entry.kind, plan, inputs, reductions, args), 0, Fraction(1))
    if entry.kind == "Classify":
        if len(args) != 6 or not all(_is_count(number) for number in args[:4]):
            raise ValueError("expected classes, channels, kernel, stride, padding and groups")
        return Layer(Classify(inputs[0], *args, act=plan.act), 0, Fraction(1))
    if entry.kind in JOINING:
        return joining_layer(entry.kind, inputs, args)
    return layer_of_yaml(entry.kind, inputs[0], args, repeats, plan.scaled, plan.act)


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
