"""The network against published figures, plain arithmetic, and itself before folding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import upstream_layout as layout
from torch import nn

from yolotrt_core.errors import UsageError
from yolotrt_torch.yolov5_layers import Conv, Detect, Focus
from yolotrt_torch.yolov5_model import Network, activation_from_text, fuse

Configs = pytest.mark.parametrize("config", [layout.MODERN, layout.EARLY], ids=["modern", "early"])

ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def official(depth: float, width: float) -> dict[str, Any]:
    """The architecture of the v6.0 to v7.0 releases as their documentation tells it."""
    backbone: list[Any] = [[-1, 1, "Conv", [64, 6, 2, 2]]]
    for channels, repeats in ((128, 3), (256, 6), (512, 9), (1024, 3)):
        backbone += [[-1, 1, "Conv", [channels, 3, 2]], [-1, repeats, "C3", [channels]]]
    backbone.append([-1, 1, "SPPF", [1024, 5]])
    head: list[Any] = []
    for channels, joined in ((512, 6), (256, 4)):
        head += [[-1, 1, "Conv", [channels, 1, 1]], [-1, 1, "nn.Upsample", [None, 2, "nearest"]]]
        head += [[[-1, joined], 1, "Concat", [1]], [-1, 3, "C3", [channels, False]]]
    for channels, joined in ((256, 14), (512, 10)):
        head += [[-1, 1, "Conv", [channels, 3, 2]], [[-1, joined], 1, "Concat", [1]]]
        head.append([-1, 3, "C3", [channels * 2, False]])
    head.append([[17, 20, 23], 1, "Detect", ["nc", "anchors"]])
    sizes = {"depth_multiple": depth, "width_multiple": width}
    return {"nc": 80, "anchors": ANCHORS, "backbone": backbone, "head": head, **sizes}


@pytest.mark.parametrize(
    ("depth", "width", "parameters"),
    [(0.33, 0.25, 1_872_157), (0.33, 0.50, 7_235_389), (0.67, 0.75, 21_190_557), (1.0, 1.0, 46_563_709)],
    ids="nsml",
)
def test_official_sizes_have_the_published_number_of_parameters(depth: float, width: float, parameters: int) -> None:
    with torch.device("meta"):
        network = Network(official(depth, width))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.stride == (8, 16, 32)


def brute_force(detect: Detect, raw: list[torch.Tensor]) -> np.ndarray:
    """Decode cell by cell in float64 from the formula of the v7.0 documentation."""
    rows = []
    for level, maps in enumerate(raw):
        stride = detect.stride[level]
        values = 1 / (1 + np.exp(-maps.double().numpy()))
        _, na, ny, nx, _ = values.shape
        for a in range(na):
            width, height = (detect.anchors[level, a].double() * stride).tolist()
            for y in range(ny):
                for x in range(nx):
                    s = values[:, a, y, x].copy()
                    s[:, 0] = (2 * s[:, 0] - 0.5 + x) * stride
                    s[:, 1] = (2 * s[:, 1] - 0.5 + y) * stride
                    s[:, 2] = (2 * s[:, 2]) ** 2 * width
                    s[:, 3] = (2 * s[:, 3]) ** 2 * height
                    rows.append(s)
    return np.stack(rows, 1)


@Configs
@pytest.mark.parametrize("frozen", [False, True])
def test_decoding_against_brute_force(config: Any, frozen: bool) -> None:
    network = layout.lively(config)
    images = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        network.detect.train()  # raw maps, while the norms stay in `eval()`
        raw = network(images)
        network.detect.eval()
        if frozen:
            network.detect.freeze_grid(64, 96)
        decoded = network(images).numpy()
    assert [tuple(m.shape[1:]) for m in raw] == [
        (network.detect.na, 64 // s, 96 // s, config["nc"] + 5) for s in network.stride
    ]
    np.testing.assert_allclose(decoded, brute_force(network.detect, raw), rtol=2e-5, atol=1e-5)


@Configs
def test_folding_changes_nothing_but_the_parts(config: Any) -> None:
    network = layout.lively(config)
    images = torch.rand((1, 3, 96, 64), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        before = network(images)
        fuse(network)
        after = network(images)
    assert not any(isinstance(m, (nn.BatchNorm2d, Focus)) for m in network.modules())
    assert torch.linalg.norm(after - before) <= 1e-6 * torch.linalg.norm(before)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_focus_is_one_strided_convolution(kernel: int, stride: int) -> None:
    torch.manual_seed(kernel)
    focus = Focus(3, 8, kernel, stride).eval()
    focus.conv.without_norm()
    images = torch.rand(2, 3, 24, 32)
    with torch.inference_mode():
        expected = focus(images)
        conv = focus.as_conv()
        assert isinstance(conv, Conv) and conv.conv.kernel_size == (2 * kernel, 2 * kernel)
        torch.testing.assert_close(conv(images), expected, rtol=1e-5, atol=1e-6)


@Configs
def test_training_gives_raw_maps_with_gradients(config: Any) -> None:
    network = Network(config).train()
    raw = network(torch.rand(2, 3, 64, 64))
    sum(m.square().mean() for m in raw).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_objectness_starts_rare() -> None:
    """Eight objects in an image of 640 pixels, spread over its cells, before any training."""
    network = Network(official(0.33, 0.25))
    for head, stride in zip(network.detect.m, network.stride, strict=True):
        bias = head.bias.view(3, -1)[:, 4].detach()
        assert torch.sigmoid(bias).mean().item() == pytest.approx(8 / (640 / stride) ** 2, rel=0.3)
        assert math.isfinite(head.bias.sum().item())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nn.SiLU()", nn.SiLU()),
        ("nn.LeakyReLU(0.1)", nn.LeakyReLU(0.1)),
        ("torch.nn.LeakyReLU(negative_slope=0.2, inplace=True)", nn.LeakyReLU(0.2)),
        ("Hardswish()", nn.Hardswish()),
        ("nn.Softplus(threshold=3, beta=2)", nn.Softplus(2, 3)),
        ("nn.GELU('tanh')", nn.GELU("tanh")),
        ("nn.PReLU()", nn.PReLU()),
    ],
)
def test_activations_by_name(text: str, expected: nn.Module) -> None:
    found = activation_from_text(text)()
    x = torch.linspace(-4, 4, 33)
    assert type(found) is type(expected) and torch.equal(found(x), expected(x))


@pytest.mark.parametrize(
    "text", ["nn.GLU()", "nn.Softplus(size=3)", "__import__('os').system('x')", "nn.SiLU", "nn.LeakyReLU(x)", "()"]
)
def test_other_activations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="activation"):
        activation_from_text(text)


def test_activation_of_the_yaml_is_used() -> None:
    network = Network({**layout.MODERN, "activation": "nn.LeakyReLU(0.1)"})
    kinds = {type(m.act) for m in network.modules() if hasattr(m, "act")}
    assert kinds == {nn.LeakyReLU}


def _with(**changes: Any) -> dict[str, Any]:
    return {**layout.MODERN, **changes}


def _layer(index: int, line: Any) -> dict[str, Any]:
    backbone = list(layout.MODERN["backbone"])
    backbone[index] = line
    return _with(backbone=backbone)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no list `backbone`"),
        (_with(nc=0), "`nc: 0`"),
        (_with(nc="3"), "`nc: 3`"),
        (_with(anchors=None), "no `anchors`"),
        (_with(anchors=[[1, 2], [3]]), "no `anchors`"),
        (_with(anchors=[[1, 2]]), "1 levels of anchors for 2 feature maps"),
        (_with(ch=2), "has 2 input channels"),
        (_with(ch=10**30), "input channels"),
        (_with(ch=True), "input channels"),
        (_with(width_multiple=0), "positive numbers"),
        (_with(head=layout.MODERN["head"][:-1]), "found one that ends in `C3`"),
        (_layer(1, [-1, 1, "CBAM", [64]]), "an unsupported layer `CBAM`"),
        (_layer(1, [-1, 1, "Conv"]), r"layer 1 .* is not \[from, number, module, args\]"),
        (_layer(1, [-1, 10**9, "Conv", [64, 3, 2]]), "repeated `1000000000` times"),
        (_layer(1, [-1, 1, "Conv", [10**12, 3, 2]]), "has `1000000000000` channels"),
        (_layer(1, [-1, 1, "Conv", ["x"]]), "has `x` channels"),
        (_layer(1, [5, 1, "Conv", [64, 3, 2]]), "reads from `5`"),
        (_layer(1, [[-1, 1], 1, "Concat", [1]]), "reads from"),
        (_layer(1, [-1, 1, "Conv", [64, 3, 2, None, 1, 2.5]]), "unknown activation 2.5"),
        (_layer(1, [-1, 1, "Conv", [64, 3, 0]]), "cannot be built"),
        (_layer(1, [-1, 1, "Conv", [64, 3, 2, float("inf")]]), "expected integers"),
        (_layer(1, [-1, 1, "nn.Upsample", [None, 1.5, "nearest"]]), "integer factor"),
        (_layer(1, [-1, 1, "nn.Upsample", [None, 2, "area"]]), "upsampling of mode area"),
    ],
)
def test_a_yaml_that_is_none_is_refused_in_words(config: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message), torch.device("meta"):
        Network(config)
