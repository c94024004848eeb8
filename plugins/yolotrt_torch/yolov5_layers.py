"""Building blocks of YOLOv5, releases v3 to v7.

Written for yolotrt from the published architecture. Attribute names (`cv1`, `m`, `bn` ...) match the
checkpoints' weights, which load strictly.
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

Side = int | tuple[int, ...]

NORM_EPS = 1e-3  # batch norm of every YOLOv5 release; PyTorch's own default is 1e-5
NORM_MOMENTUM = 0.03
MAX_PIXELS = 8192  # maximum side of an exported graph of dynamic size


class Conv2d(nn.Conv2d):
    """PyTorch's convolution without initialization on the `meta` device.

    The initialization has no effect there, but takes a second to load PyTorch's Python kernels.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Conv(nn.Module):
    """Convolution, batch norm, activation; `fuse` folds the norm into the convolution.

    Args:
        k, s, p: kernel, stride and padding, one number or two (rows, columns); half the kernel's extent is padded by
            default.
        g, d: groups and dilation.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: Side = 1,
        s: Side = 1,
        p: Side | None = None,
        g: int = 1,
        d: int = 1,
        *,
        act: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        padding = _half_extent(k, d) if p is None else p
        self.conv = Conv2d(c1, c2, k, s, padding, dilation=d, groups=g, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c2, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out

    def without_norm(self) -> None:
        """Add a bias and remove the norm, for checkpoints that were saved fused."""
        c = self.conv
        if not isinstance(self.bn, nn.Identity):
            shape = (c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding)
            self.conv = Conv2d(*shape, dilation=c.dilation, groups=c.groups, bias=True)
            self.bn = nn.Identity()


def _half_extent(k: Side, d: int) -> Side:
    """Return the padding that keeps the size of an input at stride 1."""
    if isinstance(k, int):
        return (d * (k - 1) + 1) // 2
    return tuple((d * (side - 1) + 1) // 2 for side in k)


class Bottleneck(nn.Module):
    """1x1 then 3x3 convolution, added to the input where the channels agree."""

    def __init__(
        self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5, *, act: Activation = nn.SiLU
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(hidden, c2, 3, g=g, act=act)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class BottleneckCSP(nn.Module):
    """Cross-stage-partial block of v3 and v4: plain convolutions in both branches, one norm over both."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        *,
        act: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv2d(c1, hidden, 1, bias=False)
        self.cv3 = Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1, act=act)
        self.bn: nn.Module = nn.BatchNorm2d(2 * hidden, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        self.act = act()
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, 1.0, act=act) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        out: Tensor = self.cv4(self.act(self.bn(both)))
        return out


class C3(nn.Module):
    """Cross-stage-partial block with three convolutions, v3.1 and later."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        *,
        act: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(c1, hidden, 1, act=act)
        self.cv3 = Conv(2 * hidden, c2, 1, act=act)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, 1.0, act=act) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return out


class SPP(nn.Module):
    """Spatial pyramid pooling: poolings of several sizes side by side."""

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13), *, act: Activation = nn.SiLU) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, act=act)
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in k)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        out: Tensor = self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return out


class SPPF(nn.Module):
    """Spatial pyramid pooling with one small pooling applied three times, v6 and later."""

    def __init__(self, c1: int, c2: int, k: int = 5, *, act: Activation = nn.SiLU) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, act=act)
        self.cv2 = Conv(hidden * 4, c2, 1, act=act)
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.cv1(x)]
        for _ in range(3):
            pooled.append(self.m(pooled[-1]))
        out: Tensor = self.cv2(torch.cat(pooled, 1))
        return out


class Focus(nn.Module):
    """Each 2x2 block of pixels becomes four channels, then a convolution; the stem of v3 to v5."""

    # (row, column) of the block's pixel per group of input channels, in weight order.
    order = ((0, 0), (1, 0), (0, 1), (1, 1))

    def __init__(
        self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1, *, act: Activation = nn.SiLU
    ) -> None:
        super().__init__()
        self.conv = Conv(c1 * 4, c2, k, s, p, g, act=act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat([x[..., row::2, column::2] for row, column in self.order], 1))
        return out

    @property
    def is_plain(self) -> bool:
        """Whether `as_conv` exists: a square kernel without groups and dilation, padded by zeros."""
        conv = self.conv.conv
        return (
            (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
            and len({conv.kernel_size[0], conv.kernel_size[1]}) == 1
            and len({conv.stride[0], conv.stride[1]}) == 1
            and len(set(conv.padding)) == 1
        )

    def as_conv(self) -> Conv:
        """Return the equivalent strided convolution, for a smaller and faster graph.

        A k x k kernel over 2x2 blocks is a 2k x 2k kernel with stride 2 over pixels. Needs a fused
        block that `is_plain`.
        """
        inner = self.conv.conv
        channels, k = inner.in_channels // 4, inner.kernel_size[0]
        weight = inner.weight.new_empty((inner.out_channels, channels, 2 * k, 2 * k))
        for group, (row, column) in enumerate(self.order):
            weight[:, :, row::2, column::2] = inner.weight[:, group * channels : (group + 1) * channels]
        conv = Conv(channels, inner.out_channels, 2 * k, 2 * inner.stride[0], 2 * int(inner.padding[0]))
        conv.without_norm()
        conv.conv.weight = nn.Parameter(weight)
        conv.conv.bias = inner.bias
        conv.act = self.conv.act
        return conv


class Concat(nn.Module):
    """Joins feature maps."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, self.d)


class Detect(nn.Module):
    """The detection head: one 1x1 convolution per level, and decoding.

    Attributes:
        anchors: buffer (levels, anchors per level, 2), width and height in cells of the level.
        stride: pixels per cell of each level. na, nc, no: anchors per level, classes, columns: 5 + classes and further
            ones that a head adds and that are not decoded.
    """

    anchors: Tensor

    def __init__(
        self,
        nc: int,
        anchors_px: Sequence[Sequence[float]],
        channels: Sequence[int],
        stride: Sequence[int],
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.nc, self.no = nc, nc + 5 + extra
        self.na, self.nl = len(anchors_px[0]) // 2, len(channels)
        self.stride = tuple(stride)
        cells = [[float(pixels) / s for pixels in level] for level, s in zip(anchors_px, self.stride, strict=True)]
        self.register_buffer("anchors", torch.tensor(cells, dtype=torch.float32).view(len(channels), self.na, 2))
        self.m = nn.ModuleList(Conv2d(c, self.no * self.na, 1) for c in channels)
        self.size: tuple[int, int] | None = None
        self.grid: tuple[Tensor, ...] | None = None
        if not self.anchors.is_meta:
            self._prior()

    def _prior(self) -> None:
        """Initialize the biases with the prior of objects, to speed up early training.

        The prior of v3 and later: 8 objects in a 640-pixel image, 0.6 per class each.
        """
        with torch.no_grad():
            for head, stride in zip(self.m, self.stride, strict=True):
                assert isinstance(head, nn.Conv2d) and head.bias is not None
                rows = head.bias.view(self.na, self.no)
                rows[:, 4] += math.log(8 / (640 / stride) ** 2)
                rows[:, 5 : 5 + self.nc] += math.log(0.6 / (self.nc - 0.99999))

    def forward(self, x: list[Tensor]) -> list[Tensor] | Tensor:
        """Return raw (B, na, ny, nx, no) per level in training, else decoded (B, N, no).

        Decoded rows go by level, anchor, y, x; columns are cx, cy, w, h in input pixels, then
        objectness and class scores in 0..1.
        """
        maps = [head(level) for head, level in zip(self.m, x, strict=True)]
        if self.training:
            return [m.unflatten(1, (self.na, self.no)).permute(0, 1, 3, 4, 2).contiguous() for m in maps]
        return torch.cat([self._decode(level, m) for level, m in enumerate(maps)], 1)

    def freeze_grid(self, height: int, width: int) -> None:
        """Store the cell offsets of one input size as constants for the exported graph."""
        self.size = (height, width)
        self.grid = tuple(self._offsets(level, height // s, width // s) for level, s in enumerate(self.stride))

    def _offsets(self, level: int, ny: int, nx: int) -> Tensor:
        """Return (ny * nx, 2): the origin of each cell's box centre, x and y in input pixels."""
        like, stride = self.anchors, self.stride[level]
        x = (torch.arange(nx, dtype=like.dtype, device=like.device) - 0.5) * stride
        y = (torch.arange(ny, dtype=like.dtype, device=like.device) - 0.5) * stride
        return torch.stack((x.view(1, nx).expand(ny, nx), y.view(ny, 1).expand(ny, nx)), -1).view(ny * nx, 2)

    def _decode(self, level: int, raw: Tensor) -> Tensor:
        """Decode one level: (B, na * no, ny, nx) to (B, na * ny * nx, no).

        Centre = (2 s - 0.5 + cell) * stride, size = (2 s)^2 * anchor, with s the sigmoid of the raw value:
        the formula of all releases from v3 on, with constants merged into few operations.
        """
        stride = self.stride[level]
        if torch.jit.is_tracing():
            offsets = _TracedOffsets.apply(raw, stride, self.size)
        elif self.grid is not None:
            offsets = self.grid[level]
        else:
            offsets = self._offsets(level, raw.shape[2], raw.shape[3])
        # The sigmoid last: TensorRT then fuses it with box decoding (3% faster on an H100).
        rows = _reshape(raw, (0, self.na, self.no, -1)).transpose(2, 3)
        decoded = 5 + self.nc
        extra = [rows[..., decoded:]] if self.no > decoded else []
        scores = (rows[..., :decoded] if extra else rows).sigmoid()
        centre, size, rest = scores.split((2, 2, self.nc + 1), -1)
        centre = centre * (2.0 * stride) + offsets
        size = size * size * (self.anchors[level] * (4.0 * stride)).view(self.na, 1, 2)
        return _reshape(torch.cat((centre, size, rest, *extra), -1), (0, -1, self.no))


def _reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Reshape like ONNX: 0 keeps a dimension, -1 is inferred."""
    if torch.jit.is_tracing():
        traced: Tensor = _TracedReshape.apply(x, shape)
        return traced
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


class _TracedReshape(torch.autograd.Function):
    """`_reshape` as a single node; PyTorch's export would compute the shape with a dozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])

    @staticmethod
    def symbolic(g: Any, x: Any, shape: tuple[int, ...]) -> Any:
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(shape)))


class _TracedOffsets(torch.autograd.Function):
    """`Detect._offsets` in a traced graph: for an input of `size`, or of a dynamic size.

    A fixed size gives one constant, independent of the traced size, so a small image can be traced. Otherwise the
    graph slices two small constants, one per axis.
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, stride: int, size: tuple[int, int] | None) -> Tensor:
        columns, rows = _axes(stride)
        return (columns[:, : raw.shape[3]] + rows[: raw.shape[2]]).reshape(-1, 2)

    @staticmethod
    def symbolic(g: Any, raw: Any, stride: int, size: tuple[int, int] | None) -> Any:
        columns, rows = _axes(stride)
        if size is not None:
            grid = columns[:, : size[1] // stride] + rows[: size[0] // stride]
            return g.op("Constant", value_t=grid.reshape(-1, 2))
        parts = []
        for axis, constant in ((1, columns), (0, rows)):
            end = g.op("Shape", raw, start_i=2 + axis, end_i=3 + axis)
            first, along = (g.op("Constant", value_t=torch.tensor([v])) for v in (0, axis))
            parts.append(g.op("Slice", g.op("Constant", value_t=constant), first, end, along))
        return g.op("Reshape", g.op("Add", *parts), g.op("Constant", value_t=torch.tensor([-1, 2])))


def _axes(stride: int) -> tuple[Tensor, Tensor]:
    """Return offsets (1, n, 2) along x and (n, 1, 2) along y, for inputs up to `MAX_PIXELS`; their sum is the grid."""
    along = (torch.arange(MAX_PIXELS // stride, dtype=torch.float32) - 0.5) * stride
    nothing = torch.zeros_like(along)
    return torch.stack((along, nothing), -1).unsqueeze(0), torch.stack((nothing, along), -1).unsqueeze(1)
