"""Further blocks that YOLOv5's yaml files may name: Ghost, cross convolutions, transformers, rearrangements.

Written for yolotrt from what each computes. Attribute names match the checkpoints' weights, which load strictly.
"""

# mypy: disallow-subclassing-any=False
# (torch is `follow_imports = "skip"` in pyproject.toml, so nn.Module is Any here.)
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolotrt_torch.activations import Activation
from yolotrt_torch.yolov5_layers import C3, NORM_EPS, NORM_MOMENTUM, SPP, Conv, Conv2d

_HEADS = 4  # of the attention in every C3TR


class GhostConv(nn.Module):
    """Half of the channels by a convolution, the other half from those by a cheap depth-wise one."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, *, act: Activation = nn.SiLU) -> None:
        super().__init__()
        hidden = c2 // 2
        self.cv1 = Conv(c1, hidden, k, s, None, g, act=act)
        self.cv2 = Conv(hidden, hidden, 5, 1, None, hidden, act=act)

    def forward(self, x: Tensor) -> Tensor:
        first = self.cv1(x)
        return torch.cat((first, self.cv2(first)), 1)


class GhostBottleneck(nn.Module):
    """Two GhostConv, with a depth-wise convolution between and in the shortcut where the stride is 2."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, *, act: Activation = nn.SiLU) -> None:
        super().__init__()
        hidden = c2 // 2
        first, last = GhostConv(c1, hidden, act=act), GhostConv(hidden, c2, act=nn.Identity)
        if s == 2:
            middle: nn.Module = Conv(hidden, hidden, k, s, g=hidden, act=nn.Identity)
            reduced = Conv(c1, c1, k, s, g=c1, act=nn.Identity)
            self.shortcut: nn.Module = nn.Sequential(reduced, Conv(c1, c2, act=nn.Identity))
        else:
            middle, self.shortcut = nn.Identity(), nn.Identity()
        self.conv = nn.Sequential(first, middle, last)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + self.shortcut(x)
        return out


class CrossConv(nn.Module):
    """A row kernel then a column kernel, added to the input with `shortcut` where the channels agree."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        g: int = 1,
        e: float = 1.0,
        shortcut: bool = False,
        *,
        act: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, (1, k), (1, s), act=act)
        self.cv2 = Conv(hidden, c2, (k, 1), (s, 1), g=g, act=act)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3x(C3):
    """C3 with cross convolutions inside."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5, *, act: Activation
    ) -> None:
        super().__init__(c1, c2, 0, shortcut, g, e, act=act)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(CrossConv(hidden, hidden, 3, 1, g, 1.0, shortcut, act=act) for _ in range(n)))


class C3Ghost(C3):
    """C3 with Ghost bottlenecks inside."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5, *, act: Activation
    ) -> None:
        super().__init__(c1, c2, 0, shortcut, g, e, act=act)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(GhostBottleneck(hidden, hidden, act=act) for _ in range(n)))


class C3SPP(C3):
    """C3 with spatial pyramid pooling inside."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: Sequence[int] = (5, 9, 13),
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        *,
        act: Activation,
    ) -> None:
        super().__init__(c1, c2, 0, shortcut, g, e, act=act)
        self.m = SPP(int(c2 * e), int(c2 * e), k, act=act)


class C3TR(C3):
    """C3 with a transformer inside."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5, *, act: Activation
    ) -> None:
        super().__init__(c1, c2, 0, shortcut, g, e, act=act)
        self.m = TransformerBlock(int(c2 * e), int(c2 * e), _HEADS, n, act=act)


class TransformerBlock(nn.Module):
    """Attention layers over the cells of a map, with a learned linear embedding of each."""

    def __init__(self, c1: int, c2: int, heads: int, layers: int, *, act: Activation = nn.SiLU) -> None:
        super().__init__()
        self.conv: nn.Module | None = Conv(c1, c2, act=act) if c1 != c2 else None
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential(*(TransformerLayer(c2, heads) for _ in range(layers)))
        self.c2 = c2

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            x = self.conv(x)
        cells = x.flatten(2).transpose(1, 2)
        cells = self.tr(cells + self.linear(cells))
        return cells.transpose(1, 2).reshape(x.shape)


class TransformerLayer(nn.Module):
    """Attention and a linear pair, each added to its input; no norms."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.ma = MultiheadAttention(channels, heads)
        self.fc1 = nn.Linear(channels, channels, bias=False)
        self.fc2 = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ma(self.q(x), self.k(x), self.v(x)) + x
        out: Tensor = self.fc2(self.fc1(x)) + x
        return out


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention; weights and attributes are those of PyTorch's class of this name.

    Maps (B, cells, channels) although `batch_first` is False: upstream transposes before, here nothing does.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} attention heads")
        self.embed_dim = self.kdim = self.vdim = channels
        self.num_heads, self.head_dim = heads, channels // heads
        self.batch_first = self.add_zero_attn = False
        self._qkv_same_embed_dim = True
        self.bias_k = self.bias_v = None
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        if not self.in_proj_weight.is_meta:
            nn.init.xavier_uniform_(self.in_proj_weight)
            nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        parts = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (self._split(nn.functional.linear(x, w, b)) for x, w, b in parts)
        scores = (q * self.head_dim**-0.5) @ k.transpose(2, 3)
        joined = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(joined)
        return out

    def _split(self, x: Tensor) -> Tensor:
        """Turn (B, cells, channels) into (B, heads, cells, channels per head)."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)


class MixConv2d(nn.Module):
    """Convolutions of several kernel sizes side by side, each for a part of the channels.

    Args:
        k: kernel sizes. equal_ch: equal numbers of channels, else equal numbers of weights.
    """

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (1, 3), s: int = 1, equal_ch: bool = True) -> None:
        super().__init__()
        parts = _equal_parts(c2, len(k)) if equal_ch else _parts_of_equal_weight(c2, k)
        self.m = nn.ModuleList(
            Conv2d(c1, part, side, s, side // 2, groups=math.gcd(c1, part), bias=False)
            for part, side in zip(parts, k, strict=True)
        )
        self.bn: nn.Module = nn.BatchNorm2d(c2, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(torch.cat([conv(x) for conv in self.m], 1)))
        return out


def _equal_parts(channels: int, parts: int) -> list[int]:
    """Cut `channels` equal steps from 0 to `parts` (exclusive) by their integer part."""
    counts = [0] * parts
    for i in range(channels):
        counts[max(-(-i * parts // max(channels - 1, 1)) - 1, 0)] += 1
    return counts


def _parts_of_equal_weight(channels: int, kernels: Sequence[int]) -> list[int]:
    total = sum(side**-2 for side in kernels)
    return [round(channels / (side**2 * total)) for side in kernels]


class Contract(nn.Module):
    """Each gain x gain block of cells becomes one cell; channels by row, column, then input channel."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            traced: Tensor = _TracedRearrangement.apply(x, self.gain, True)
            return traced
        return _contracted(x, self.gain)


class Expand(nn.Module):
    """Each cell becomes gain x gain cells: the inverse of `Contract`."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            traced: Tensor = _TracedRearrangement.apply(x, self.gain, False)
            return traced
        return _expanded(x, self.gain)


def _contracted(x: Tensor, gain: int) -> Tensor:
    blocks = x.unflatten(3, (-1, gain)).unflatten(2, (-1, gain))  # B, C, rows, r, columns, c
    return blocks.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def _expanded(x: Tensor, gain: int) -> Tensor:
    blocks = x.unflatten(1, (gain, gain, -1))  # B, r, c, C, rows, columns
    return blocks.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class _TracedRearrangement(torch.autograd.Function):
    """`Contract` and `Expand` as one ONNX operator each, independent of the size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: int, contract: bool) -> Tensor:
        return _contracted(x, gain) if contract else _expanded(x, gain)

    @staticmethod
    def symbolic(g: Any, x: Any, gain: int, contract: bool) -> Any:
        if contract:
            return g.op("SpaceToDepth", x, blocksize_i=gain)
        return g.op("DepthToSpace", x, blocksize_i=gain, mode_s="DCR")


class Sum(nn.Module):
    """Sum of several maps, optionally with a learned weight of each but the first."""

    def __init__(self, n: int, weight: bool = False) -> None:
        super().__init__()
        self.weight, self.iter = bool(weight), (0, n - 1, 1)
        if weight:
            self.w = nn.Parameter(-torch.arange(1.0, n) / 2)

    def forward(self, x: list[Tensor]) -> Tensor:
        total = x[0]
        factors = self.w.sigmoid() * 2 if self.weight else None
        for i in range(self.iter[1]):
            total = total + (x[i + 1] if factors is None else x[i + 1] * factors[i])
        return total
