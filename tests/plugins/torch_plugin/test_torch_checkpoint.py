"""Every form of checkpoint comes out the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import upstream_layout as layout
from torch import nn

from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.checkpoint_archive import open_archive
from yolotrt_torch.model_builder import network_from_checkpoint

Configs = pytest.mark.parametrize("config", [layout.MODERN, layout.EARLY], ids=["modern", "early"])


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(1))


def answer(network: nn.Module, image: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network(image).numpy()


FORMS: Mapping[str, Mapping[str, Any]] = {
    "zip": {},
    "legacy": {"legacy": True},
    "protocol 4": {"protocol": 4},
    "pip package": {"prefix": "yolov5.models"},
    "old class": {"kind": "Model"},
    "bare model": {"wrap": lambda model: model},
    "averaged": {"wrap": lambda model: {"model": None, "ema": model, "updates": 7}},
    "averaged of v4": {"wrap": lambda model: {"model": None, "ema": (model, 7)}},
    "with numpy": {"wrap": lambda model: {"model": model, "best_fitness": np.float64(0.5), "x": np.arange(3)}},
    "with options": {"wrap": lambda model: {"model": model, "opt": {"save_dir": Path("runs"), "imgsz": 640}}},
    "old buffer": {
        "edit": lambda model: model.model[-1].register_buffer("anchor_grid", torch.zeros(2, 1, 3, 1, 1, 2)),
    },
}


@Configs
@pytest.mark.parametrize("form", list(FORMS))
def test_each_form_gives_back_the_network(form: str, config: Any, image: torch.Tensor, tmp_path: Path) -> None:
    network = layout.lively(config)
    path = layout.save(tmp_path / "model.bin", config, network=network, **FORMS[form])
    checkpoint = read_checkpoint(path)
    wanted = network.state_dict()
    found = {k: v for k, v in checkpoint.state.items() if not k.endswith("anchor_grid")}
    assert set(found) == set(wanted)
    assert all(np.array_equal(found[name], wanted[name].numpy()) for name in wanted)
    assert checkpoint.labels == tuple(f"kind {i}" for i in range(config["nc"]))
    assert checkpoint.stride == network.stride
    assert np.array_equal(answer(network_from_checkpoint(checkpoint), image), answer(network, image))


@Configs
@pytest.mark.parametrize("legacy", [False, True])
def test_half_precision_weights_are_widened(legacy: bool, config: Any, tmp_path: Path) -> None:
    network = layout.lively(config)
    checkpoint = read_checkpoint(layout.save(tmp_path / "m.pt", config, network=network, half=True, legacy=legacy))
    assert checkpoint.state["model.1.conv.weight"].dtype == np.float16
    rebuilt = network_from_checkpoint(checkpoint).state_dict()
    for name, weight in network.state_dict().items():
        assert torch.equal(rebuilt[name], weight.half().float() if weight.is_floating_point() else weight)


def test_bfloat16_weights_are_widened(tmp_path: Path) -> None:
    weight = torch.randn(5, 4).bfloat16()
    torch.save({"w": weight}, tmp_path / "m.pt")
    with open_archive(tmp_path / "m.pt") as archive:
        assert np.array_equal(archive.array(archive.root["w"]), weight.float().numpy())


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_a_storage_are_read_as_pytorch_does(legacy: bool, tmp_path: Path) -> None:
    base = torch.arange(60.0)
    views = {
        "all": base,
        "turned": base.view(6, 10).t(),
        "middle": base[7:31].view(2, 3, 4)[:, 1:],
        "one": base[5],
        "none": base[:0],
        "whole numbers": torch.arange(4),
        "flags": torch.tensor([True, False]),
    }
    torch.save(views, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with open_archive(tmp_path / "m.pt") as archive:
        for name, tensor in views.items():
            found = archive.array(archive.root[name])
            assert found.dtype == tensor.numpy().dtype
            assert np.array_equal(found, tensor.numpy()), name


def test_fused_checkpoints_have_no_norms(image: torch.Tensor, tmp_path: Path) -> None:
    network = layout.lively(layout.MODERN)
    before = answer(network, image)
    for module in network.modules():  # PyTorch's own folding, not ours
        if type(module).__name__ == "Conv":
            module.conv = nn.utils.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    path = layout.save(tmp_path / "m.pt", network=network)
    assert not any(".bn." in name for name in read_checkpoint(path).state)
    found = answer(network_from_checkpoint(read_checkpoint(path)), image)
    assert np.linalg.norm(found - before) <= 1e-6 * np.linalg.norm(before)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a", "b", "c"], ("a", "b", "c")),
        ({0: "a", 1: "b", 2: "c"}, ("a", "b", "c")),
        ({2: "c", 0: "a", 1: "b"}, ("a", "b", "c")),
        ({"0": "a", "1": "b", "2": "c"}, ("a", "b", "c")),
        ({0: "a", 2: "c"}, ("a", "1", "c")),
        (["a"], ("a", "1", "2")),
        (["a", "b", "c", "d"], ("a", "b", "c")),
        ([0, True, "ü"], ("0", "True", "ü")),
        (["a\nb", "\x1b[2J", "c"], ("a?b", "?[2J", "c")),
    ],
)
def test_names_as_list_or_dict(names: Any, labels: tuple[str, ...], tmp_path: Path) -> None:
    assert read_checkpoint(layout.save(tmp_path / "m.pt", names=names)).labels == labels


def test_what_the_yaml_does_not_say_comes_from_the_modules(image: torch.Tensor, tmp_path: Path) -> None:
    network = layout.lively(layout.EARLY)
    for index, module in enumerate(network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.01 + index / 1000
        if hasattr(module, "act"):
            module.act = (nn.Hardswish(), nn.LeakyReLU(0.1 + index / 1000), nn.SiLU())[index % 3]
    path = layout.save(tmp_path / "m.pt", layout.EARLY, network=network)
    assert np.array_equal(answer(network_from_checkpoint(read_checkpoint(path)), image), answer(network, image))


def test_anchors_come_from_the_weights(image: torch.Tensor, tmp_path: Path) -> None:
    network = layout.lively(layout.MODERN)
    network.detect.anchors *= 1.7
    number = {**layout.MODERN, "anchors": 3}  # how a training with fitted anchors leaves the yaml
    for config in (layout.MODERN, number):
        path = layout.save(tmp_path / "m.pt", config, network=network)
        assert np.array_equal(answer(network_from_checkpoint(read_checkpoint(path)), image), answer(network, image))


def test_the_plain_form_of_our_own_training(image: torch.Tensor, tmp_path: Path) -> None:
    config = {**layout.MODERN, "activation": "nn.LeakyReLU(0.1)"}
    network = layout.lively(config)
    saved = {
        "yolotrt": 1,
        "yaml": config,
        "state_dict": {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()},
        "names": ["x", "y", "z"],
        "stride": [8, 16],
        "anchors": config["anchors"],
        "imgsz": [64, 96],
    }
    torch.save(saved, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint.labels == ("x", "y", "z")
    expected = answer(network.half().float(), image)
    assert np.array_equal(answer(network_from_checkpoint(checkpoint), image), expected)
