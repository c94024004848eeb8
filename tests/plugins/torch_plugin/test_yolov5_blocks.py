"""Every block against plain arithmetic on its weights, written here from what YOLOv5 7.0 documents of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import upstream_layout as layout
from torch import Tensor, nn
from torch.nn import functional

from arrays import relative_l2
from yolotrt_core.errors import UsageError
from yolotrt_core.types import BuildRequest, ModelSource, ShapeRange
from yolotrt_torch.activations import activation_of
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.options import TorchOptions
from yolotrt_torch.stages import TorchExporter
from yolotrt_torch.yaml_layers import joining_layer, layer_of_yaml
from yolotrt_torch.yolov5_model import fuse

EPS = 1e-3
CHANNELS = 16
Weights = Mapping[str, Tensor]
IMAGES = torch.randn((2, CHANNELS, 12, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class W:
    """Weights below a name."""

    def __init__(self, all_of_them: Weights, prefix: str = "") -> None:
        self.all, self.prefix = all_of_them, prefix

    def __getattr__(self, name: str) -> W:
        return W(self.all, f"{self.prefix}{name}.")

    def __getitem__(self, index: int) -> W:
        return W(self.all, f"{self.prefix}{index}.")

    def __call__(self, name: str) -> Tensor:
        return self.all[self.prefix + name]

    def __len__(self) -> int:
        return len({k.removeprefix(self.prefix).split(".")[0] for k in self.all if k.startswith(self.prefix)})


def norm(w: W, x: Tensor) -> Tensor:
    mean, variance, scale, shift = (w(n).view(1, -1, 1, 1) for n in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (variance + EPS).sqrt() * scale + shift


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def conv(w: W, x: Tensor, s: Any = 1, g: int = 1, d: int = 1, act: Callable[[Tensor], Tensor] = silu) -> Tensor:
    """Convolution that keeps the size at stride 1, norm, activation."""
    kernel = w.conv("weight")
    pad = [(d * (side - 1)) // 2 for side in kernel.shape[2:]]
    return act(norm(w.bn, functional.conv2d(x, kernel, None, s, pad, d, g)))


def plain(x: Tensor) -> Tensor:
    return x


def ghost(w: W, x: Tensor, s: int = 1, act: Callable[[Tensor], Tensor] = silu) -> Tensor:
    first = conv(w.cv1, x, s, act=act)
    return torch.cat((first, conv(w.cv2, first, g=first.shape[1], act=act)), 1)


def ghost_bottleneck(w: W, x: Tensor, s: int = 1) -> Tensor:
    y, kept = ghost(w.conv[0], x), x
    if s == 2:
        y = conv(w.conv[1], y, 2, g=y.shape[1], act=plain)
        kept = conv(w.shortcut[1], conv(w.shortcut[0], x, 2, g=x.shape[1], act=plain), act=plain)
    return ghost(w.conv[2], y, act=plain) + kept


def cross(w: W, x: Tensor, s: int = 1, add: bool = False) -> Tensor:
    y = conv(w.cv2, conv(w.cv1, x, (1, s)), (s, 1))
    return x + y if add else y


def csp(w: W, x: Tensor, inside: Callable[[W, Tensor], Tensor]) -> Tensor:
    return conv(w.cv3, torch.cat((inside(w.m, conv(w.cv1, x)), conv(w.cv2, x)), 1))


def each(step: Callable[[W, Tensor], Tensor]) -> Callable[[W, Tensor], Tensor]:
    def run(w: W, x: Tensor) -> Tensor:
        for index in range(len(w)):
            x = step(w[index], x)
        return x

    return run


def pooled(w: W, x: Tensor) -> Tensor:
    x = conv(w.cv1, x)
    low = float("-inf")
    parts = [
        functional.pad(x, (k // 2,) * 4, value=low).unfold(2, k, 1).unfold(3, k, 1).amax((-1, -2)) for k in (5, 9, 13)
    ]
    return conv(w.cv2, torch.cat((x, *parts), 1))


def attention(w: W, x: Tensor) -> Tensor:
    """One layer on (cells, channels), four heads, one at a time."""
    q, k, v = (
        x @ getattr(w, name)("weight").T @ w.ma("in_proj_weight").chunk(3)[i].T + w.ma("in_proj_bias").chunk(3)[i]
        for i, name in enumerate("qkv")
    )
    size = x.shape[1] // 4
    heads = []
    for at in range(0, x.shape[1], size):
        scores = (q[:, at : at + size] @ k[:, at : at + size].T / math.sqrt(size)).exp()
        heads.append(scores / scores.sum(1, keepdim=True) @ v[:, at : at + size])
    x = x + torch.cat(heads, 1) @ w.ma.out_proj("weight").T + w.ma.out_proj("bias")
    return x + x @ w.fc1("weight").T @ w.fc2("weight").T


def transformer(w: W, x: Tensor) -> Tensor:
    found = []
    for image in x:
        cells = image.reshape(image.shape[0], -1).T
        cells = each(attention)(w.tr, cells + cells @ w.linear("weight").T + w.linear("bias"))
        found.append(cells.T.reshape(image.shape))
    return torch.stack(found)


def mixed(w: W, x: Tensor) -> Tensor:
    kernels = [w.m[i]("weight") for i in range(len(w.m))]
    parts = [functional.conv2d(x, k, padding=k.shape[2] // 2, groups=CHANNELS // k.shape[1]) for k in kernels]
    return silu(norm(w.bn, torch.cat(parts, 1)))


def contracted(x: Tensor) -> Tensor:
    return torch.cat([x[:, :, r::2, c::2] for r in (0, 1) for c in (0, 1)], 1)


def expanded(x: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], x.shape[1] // 4, x.shape[2] * 2, x.shape[3] * 2)
    for index, part in enumerate(x.chunk(4, 1)):
        out[:, :, index // 2 :: 2, index % 2 :: 2] = part
    return out


# (name in the yaml, its arguments, repeats): what it computes.
BLOCKS: list[tuple[str, list[Any], int, Callable[[W, Tensor], Tensor]]] = [
    ("Conv", [16, 3, 1, None, 1, 2], 1, lambda w, x: conv(w, x, d=2)),
    ("Conv", [16, 3, 2, None, 4], 1, lambda w, x: conv(w, x, 2, 4)),
    ("Conv", [16, 3, 2, None, 4, False], 1, lambda w, x: conv(w, x, 2, 4, act=plain)),
    ("Conv", [16, [1, 3]], 1, lambda w, x: conv(w, x)),
    ("Conv", [16, 1, 1, None, 1, 1, "nn.Tanh()"], 1, lambda w, x: conv(w, x, act=torch.tanh)),
    ("DWConv", [32, 3, 2], 1, lambda w, x: conv(w, x, 2, 16)),
    ("DWConv", [16, 3, 1, False], 1, lambda w, x: conv(w, x, 1, 16, act=plain)),
    ("DWConv", [16, 3, 1, 2, False], 1, lambda w, x: conv(w, x, 1, 16, 2, act=plain)),
    ("GhostConv", [32, 3, 2], 1, lambda w, x: ghost(w, x, 2)),
    ("GhostBottleneck", [16, 3, 1], 2, each(ghost_bottleneck)),
    ("GhostBottleneck", [32, 3, 2], 1, lambda w, x: ghost_bottleneck(w, x, 2)),
    ("CrossConv", [16, 3, 1, 1, 1.0, True], 1, lambda w, x: cross(w, x, add=True)),
    ("CrossConv", [32, 5, 2], 1, lambda w, x: cross(w, x, 2)),
    ("C3x", [32], 2, lambda w, x: csp(w, x, each(lambda v, y: cross(v, y, add=True)))),
    ("C3x", [32, False], 2, lambda w, x: csp(w, x, each(cross))),
    ("C3Ghost", [32], 2, lambda w, x: csp(w, x, each(ghost_bottleneck))),
    ("C3SPP", [32], 1, lambda w, x: csp(w, x, pooled)),
    ("SPP", [32, [5, 9, 13]], 1, pooled),
    ("C3TR", [32], 2, lambda w, x: csp(w, x, transformer)),
    ("TransformerBlock", [16, 16, 4, 2], 1, transformer),
    ("TransformerBlock", [16, 32, 4, 1], 1, lambda w, x: transformer(w, conv(w.conv, x))),
    ("MixConv2d", [32, [1, 3], 1], 1, mixed),
    ("Contract", [2], 1, lambda w, x: contracted(x)),
    ("Expand", [2], 1, lambda w, x: expanded(x)),
    ("BatchNorm2d", [], 1, norm),
    ("Dropout", [0.5], 1, lambda w, x: x),
    ("ReLU", [], 2, lambda w, x: x.clamp(min=0)),
    ("AvgPool2d", [2], 1, lambda w, x: contracted(x).view(2, 4, CHANNELS, 6, 4).mean(1)),
    ("DWConvTranspose2d", [16, 2, 2], 1, lambda w, x: _spread(w, x)),
    ("ConvTranspose2d", [16, 2, 2, 0, 0, 16], 1, lambda w, x: _spread(w, x)),
    ("Upsample", [None, 2, "bilinear", True], 1, lambda w, x: _interpolated(x)),
]  # fmt: skip


def _spread(w: W, x: Tensor) -> Tensor:
    """Each cell times its channel's 2x2 kernel."""
    kernel = w("weight")
    out = x.new_empty(2, CHANNELS, 24, 16)
    for r in (0, 1):
        for c in (0, 1):
            out[:, :, r::2, c::2] = x * kernel[:, 0, r, c].view(1, -1, 1, 1)
    return out + w("bias").view(1, -1, 1, 1)


def _interpolated(x: Tensor) -> Tensor:
    """Bilinear to twice the size with the corners kept, by one matrix per axis."""

    def matrix(size: int) -> Tensor:
        at = torch.linspace(0, size - 1, 2 * size, dtype=torch.float64)
        return (1 - (at[:, None] - torch.arange(size)).abs()).clamp(min=0)

    return matrix(12) @ x @ matrix(8).T


def lively(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            low = 0.5 if name.endswith("running_var") else -0.5
            tensor.uniform_(low, low + 1, generator=generator)
    return module.double().eval()


@pytest.mark.parametrize(("kind", "args", "repeats", "expected"), BLOCKS, ids=[f"{b[0]}-{b[1]}" for b in BLOCKS])
def test_each_block(kind: str, args: list[Any], repeats: int, expected: Callable[[W, Tensor], Tensor]) -> None:
    layer = layer_of_yaml(kind, CHANNELS, args, repeats, int, nn.SiLU)
    module = lively(layer.module)
    with torch.inference_mode():
        found = module(IMAGES)
        torch.testing.assert_close(found, expected(W(dict(module.state_dict())), IMAGES), rtol=1e-9, atol=1e-9)
        holder = nn.Sequential(module)
        fuse(holder)
        torch.testing.assert_close(holder(IMAGES), found, rtol=1e-9, atol=1e-9)
    assert layer.channels == found.shape[1] and 12 / layer.reduction == found.shape[2]


def test_sums_of_maps() -> None:
    maps = [IMAGES, IMAGES.flip(2), IMAGES * 2]
    layer = joining_layer("Sum", [CHANNELS] * 3, [3, True])
    factors = 2 / (1 + torch.tensor([0.5, 1.0]).double().exp())  # of the weights before training, -1/2 and -1
    found = layer.module.double()(maps)
    torch.testing.assert_close(found, maps[0] + maps[1] * factors[0] + maps[2] * factors[1])
    assert torch.equal(joining_layer("Sum", [CHANNELS] * 3, [3]).module(maps), maps[0] + maps[1] + maps[2])


def _channels_of(module: Any) -> list[int]:
    return [conv.out_channels for conv in module.m]


def test_mixed_kernels_share_channels() -> None:
    """Equal channels, or equal weights: 9 to 1 for kernels of 1 and 3 pixels."""

    def made(*args: Any) -> list[int]:
        return _channels_of(layer_of_yaml("MixConv2d", CHANNELS, [30, *args], 1, int, nn.SiLU).module)

    assert made([1, 3]) == [15, 15] and made([1, 3, 5]) == [10, 10, 10] and made([1, 3], 1, False) == [27, 3]


@pytest.mark.parametrize(
    ("kind", "shapes", "expected"),
    [
        ("PReLU", {"weight": (16,)}, lambda w, x: x.clamp(min=0) + w("weight").view(1, -1, 1, 1) * x.clamp(max=0)),
        ("AconC", {"p1": (1, 16, 1, 1)}, lambda w, x: _acon(w, x, w("beta"))),
        (
            "MetaAconC",
            {"p1": (1, 16, 1, 1), "fc1.weight": (4, 16, 1, 1)},
            lambda w, x: _acon(w, x, _line(w.fc2, _line(w.fc1, x.mean((2, 3), keepdim=True))).sigmoid()),
        ),
        (
            "FReLU",
            {"bn.weight": (16,)},
            lambda w, x: torch.maximum(x, norm(w.bn, functional.conv2d(x, w.conv("weight"), padding=1, groups=16))),
        ),
        ("MemoryEfficientMish", {}, lambda w, x: x * torch.tanh((1 + x.exp()).log())),
    ],
)  # fmt: skip
def test_activations_with_weights(kind: str, shapes: Any, expected: Callable[[W, Tensor], Tensor]) -> None:
    made = activation_of(kind, shapes)
    assert made is not None
    module = lively(made)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = EPS
    with torch.inference_mode():
        torch.testing.assert_close(module(IMAGES), expected(W(dict(module.state_dict())), IMAGES), rtol=1e-9, atol=1e-9)


def _acon(w: W, x: Tensor, beta: Tensor) -> Tensor:
    p1, p2 = w("p1"), w("p2")
    return (p1 - p2) * x * torch.sigmoid(beta * (p1 - p2) * x) + p2 * x


def _line(w: W, x: Tensor) -> Tensor:
    return functional.conv2d(x, w("weight"), w("bias"))


def _exported(path: Path, out: Path, request: BuildRequest, **options: Any) -> Path:
    out.mkdir()
    TorchExporter().export(ModelSource(path, "0", "m"), request, TorchOptions(**options), out)
    return out / "model.onnx"


def _run(model: Path, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = ort.InferenceSession(str(model)).run(["output0"], {"images": images})[0]
    return found


def _edit(model: Any) -> None:
    """Padding modes, and each kind of activation, set in code as people do."""
    modes = ("reflect", "replicate", "circular")
    kinds = [nn.PReLU(), nn.Softplus(2, 5), nn.Tanh(), nn.Mish(), nn.ELU(0.5), nn.Hardtanh(-1, 2), nn.GELU(), nn.CELU(),
             nn.Softsign(), nn.SELU(), nn.Hardsigmoid(), nn.RReLU(), nn.Threshold(0.1, -0.2), nn.Softshrink(0.2),
             nn.Hardshrink(0.3), nn.Tanhshrink(), nn.LogSigmoid(), nn.Sigmoid()]  # fmt: skip
    chosen = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding_mode = modes[len(name) % 3]
        if isinstance(getattr(module, "act", None), nn.SiLU) and type(module).__name__ == "Conv":
            module.act = kinds[chosen % len(kinds)]
            chosen += 1
    assert chosen >= len(kinds)


DYNAMIC = BuildRequest("fp32", 1, 64, 96, True, (ShapeRange((1, 64, 64), (1, 64, 96), (2, 128, 128)),))


@pytest.mark.parametrize("edit", [None, _edit], ids=["blocks", "activations and paddings"])
@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_graphs_of_every_block(edit: Any, exporter: str, tmp_path: Path) -> None:
    """Against the eager network, which the tests above and those of attributes hold against PyTorch and arithmetic."""
    path = layout.save(tmp_path / "m.pt", layout.EVERY_BLOCK, edit=edit)
    network = network_from_checkpoint(read_checkpoint(path))
    fixed = _exported(path, tmp_path / "fixed", BuildRequest("fp32", 2, 64, 96), exporter=exporter)
    graphs = [(fixed, (2, 3, 64, 96))]
    if exporter == "torchscript":
        free = _exported(path, tmp_path / "free", DYNAMIC)
        graphs += [(free, (1, 3, 128, 64)), (free, (2, 3, 64, 96))]
    for graph, shape in graphs:
        images = np.random.default_rng(0).random(shape, dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(images)).numpy()
        assert relative_l2(_run(graph, images), expected) <= 2e-6, shape


def test_padding_by_reflection_against_upstream(data: Path, tmp_path: Path) -> None:
    """A file whose convolutions were set to `reflect` in code; YOLOv5's own answer is beside it."""
    models = data.parent / "field" / "models"
    if not (models / "g10_reflect.pt").is_file():
        pytest.skip("no `field/models/g10_reflect.pt` beside the test data")
    with np.load(models / "g10_reflect.npz") as arrays:
        images, expected, zeros = arrays["images"], arrays["output0"], arrays["zero_padded"]
    found = _run(_exported(models / "g10_reflect.pt", tmp_path / "out", BuildRequest("fp32", 1, 64, 64)), images)
    assert relative_l2(found, expected) <= 1e-6 < 1e-3 < relative_l2(zeros, expected)


def test_an_early_mixconv_that_adds_its_input_is_refused(tmp_path: Path) -> None:
    """Releases before v6 add the input and use LeakyReLU; the file does not say it otherwise."""

    def early(model: Any) -> None:
        for module in model.modules():
            if type(module).__name__ == "MixConv2d":
                module.act = nn.LeakyReLU(0.1)

    path = layout.save(tmp_path / "m.pt", layout.EVERY_BLOCK, edit=early)
    with pytest.raises(UsageError, match="`MixConv2d` of an early release"):
        network_from_checkpoint(read_checkpoint(path))
