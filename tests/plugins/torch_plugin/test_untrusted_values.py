"""A checkpoint whose values cost more than its bytes is refused at once, in a short line, whoever reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream_layout as layout
from torch import nn

from yolotrt_core.errors import UsageError
from yolotrt_torch import untrusted_values
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.yolov5_model import MAX_MODULES, MAX_REPEATS, Network


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    """What would fill the memory shows itself by the time it takes first."""
    processor, clock = time.process_time(), time.monotonic()
    yield
    assert time.process_time() - processor < 20
    assert time.monotonic() - clock < 120  # other tests may use the processors, too


def laughs(depth: int, width: int = 30) -> Any:
    """Return lists within lists, each named `width` times by the next: width**depth texts if it were written out."""
    value: Any = "ha"
    for _ in range(depth):
        value = [value] * width
    return value


def _edit(change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    config = {**layout.MODERN, "backbone": [list(line) for line in layout.MODERN["backbone"]]}
    return lambda path: layout.save(path, config, network=layout.lively(layout.MODERN), edit=change)


def _wrapped(**more: Any) -> Callable[[Path], Any]:
    return lambda path: layout.save(path, wrap=lambda model: {"model": model, **more})


def _own(**changes: Any) -> Callable[[Path], Any]:
    def save(path: Path) -> None:
        state = layout.lively(layout.MODERN).state_dict()
        whole = {"yolotrt": 1, "yaml": dict(layout.MODERN), "state_dict": state, "names": ["a", "b", "c"]}
        torch.save({**whole, **changes}, path)

    return save


def _yaml(**changes: Any) -> Callable[[Path], Any]:
    return _edit(lambda model: model.yaml.update(changes))


def _set(name: str, value: Any) -> Callable[[Path], Any]:
    return _edit(lambda model: setattr(model, name, value))


def _part(name: str, **state: Any) -> Callable[[Path], Any]:
    return _edit(lambda model: [setattr(model.model[1].get_submodule(name), k, v) for k, v in state.items()])


HUGE = 10**5000
FILES: Mapping[str, tuple[Callable[[Path], Any], str | None]] = {
    "names": (_set("names", laughs(6)), "class names is too large"),
    "deep names": (_set("names", laughs(40)), "class names is nested more than 8 deep"),
    "names of names": (_set("names", {0: laughs(6)}), "class names is too large"),
    "long names": (_set("names", ["a" * (1 << 20)] * 5), "class names is too large"),
    "a name of digits": (_set("names", [HUGE]), "class names holds a number of 16610 bits"),
    "names by digits": (_set("names", {HUGE: "a"}), "class names holds a number of"),
    "yaml": (_yaml(more=laughs(6)), "model yaml is too large"),
    "deep yaml": (_yaml(more=laughs(40)), "model yaml is nested"),
    "yaml number": (_yaml(nc=HUGE), "model yaml holds a number of"),
    "own names": (_own(names=laughs(6)), "class names is too large"),
    "own yaml": (_own(yaml=laughs(40)), "model yaml is nested"),
    "own ragged strides": (_own(stride=[[8], 16]), r"strides are \[\[8\], 16\], expected integers"),
    "own endless stride": (_own(stride=[float("inf")]), r"strides are \[inf\]"),
    "own no stride": (_own(stride=[float("nan")]), r"strides are \[nan\]"),
    "own long strides": (_own(stride=[8] * 1000), r"strides are \[8, 8, .*\.\.\.\]"),
    "own weights by number": (_own(state_dict={1: torch.zeros(1)}), "has the name 1, expected a path"),
    "endless stride": (_edit(lambda m: setattr(m.model[-1], "stride", torch.tensor([float("inf"), 8]))), "strides are"),
    "many strides": (_edit(lambda m: setattr(m.model[-1], "stride", torch.ones(10**6))), "strides are 1000000 numbers"),
    "epoch": (_wrapped(epoch=HUGE), None),
    "date": (_wrapped(date="a" * (1 << 20)), None),
    "keys": (lambda path: torch.save({"a" * 10**6: 1, b"b" * 10**6: 2}, path), "found a dict with `aaa"),
    "kernel": (_part("conv", kernel_size=laughs(6)), r"has kernel_size \[\["),
    "kernel by digits": (_part("conv", kernel_size=HUGE), "has kernel_size a number of 16610 bits, but its yaml"),
    "long kernel": (_part("conv", kernel_size=[3] * 10**6), r"has kernel_size \[3, 3, .*\.\.\.\], but its yaml"),
    "source": (_edit(lambda m: setattr(m.model[7], "f", laughs(6))), r"reads from \[\["),
    "slope": (
        _edit(lambda m: setattr(m.model[1], "act", _leaky(laughs(40)))),
        r"module `model.1.act` of the checkpoint has negative_slope \[\[",
    ),
    "padding mode": (_part("conv", padding_mode=laughs(40)), r"`model.1.conv` .* has padding_mode \[\["),
    "unknown attribute": (_part("conv", x=laughs(40)), r"has the attribute `x` \(\[\["),
    "hooks": (_part("conv", _forward_hooks=laughs(40)), "has hooks"),
    "part name": (
        _edit(lambda m: m.model[2]._modules.update({"a" * (1 << 20): nn.Identity()})),
        "has the name a{60}\\.\\.\\., expected a path",
    ),
    "weight of whole numbers": (
        _edit(lambda m: setattr(m.model[1].bn, "weight", nn.Parameter(torch.ones(16).long(), requires_grad=False))),
        "`model.1.bn.weight` of the checkpoint has the unexpected type int64",
    ),
    "activation": (
        _yaml(activation=f"nn.LeakyReLU({'-' * 100_000}1)"),
        "unknown activation `nn.LeakyReLU.-{47}",
    ),
    "short activation": (_yaml(activation="nn.LeakyReLU(--1)"), "arguments that are not plain numbers"),
    "endless activation": (_yaml(activation="nn.LeakyReLU(inf)"), "arguments that are not plain numbers"),
}


def _leaky(slope: Any) -> nn.Module:
    made = nn.LeakyReLU()
    made.negative_slope = slope
    return made


@pytest.mark.parametrize("kind", list(FILES))
def test_values_without_end_cost_nothing(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    make(tmp_path / "m.pt")
    if message is None:
        checkpoint = read_checkpoint(tmp_path / "m.pt")
        assert all(len(text) <= 40 for text in checkpoint.facts.values())
        network_from_checkpoint(checkpoint)
        return
    with pytest.raises(UsageError, match=message) as caught:
        network_from_checkpoint(read_checkpoint(tmp_path / "m.pt"))
    assert len(caught.value.message) < 700
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("shape", "stride", "message"),
    [
        ((1 << 61, 0), (1, 1), "exceeds its storage"),
        ((0, 1 << 61), (1 << 61, 1 << 61), "exceeds its storage"),
        ((1, 8), (1 << 61, 1), None),
        ((0,), (1,), None),
    ],
)
def test_shapes_that_no_array_can_have(
    shape: tuple[int, ...], stride: tuple[int, ...], message: str | None, tmp_path: Path
) -> None:
    from yolotrt_torch.checkpoint_archive import open_archive
    from yolotrt_torch.pickle_reader import TensorRef

    torch.save({"w": torch.arange(8.0)}, tmp_path / "m.pt")
    with open_archive(tmp_path / "m.pt") as archive:
        tensor = TensorRef(archive.root["w"].storage, 0, shape, stride)
        if message is None:
            assert archive.array(tensor).shape == shape
        else:
            with pytest.raises(UsageError, match=message):
                archive.array(tensor)


def _config(lines: list[Any], **changes: Any) -> dict[str, Any]:
    head = {"anchors": [[10, 13]], "head": [[[-1], 1, "Detect", ["nc", "anchors"]]]}
    return {**layout.MODERN, **head, "backbone": [[-1, 1, "Conv", [8, 3, 2]], *lines], **changes}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_config([], head=[[[-1], 1, "Detect", ["nc", 1 << 40]]]), "expected the number of classes and the anchors"),
        (_config([], head=[[[-1], 1, "Detect", [1 << 40, "anchors"]]]), "expected the number of classes"),
        (_config([[-1, MAX_REPEATS, "C3", [8]]], depth_multiple=100), f"is repeated {MAX_REPEATS * 100} times"),
        (_config([[-1, MAX_REPEATS, "C3", [8]]] * 400, depth_multiple=1), f"more than {MAX_MODULES} modules"),
        (_config([[-1, 1, "TransformerBlock", [8, 8, 1, 60_000]]]), "at most 200 layers"),
        (_config([[-1, MAX_REPEATS, "C3TR", [8]]] * 400, depth_multiple=1), f"more than {MAX_MODULES} modules"),
        (_config([[-1, 1, "MixConv2d", [8, [3] * 99]]]), "expected integers"),
        (_config([[-1, 1, "C3SPP", [8, [3] * 10**6]]]), "expected integers"),
        (_config([[-1, 1, "Expand", [60_000]]]), "cannot be divided"),
        (_config([[-1, 1, "nn.ZeroPad2d", [1 << 62]]]), "expected plain numbers"),
        (_config([[-1, 1, "Conv", [60_000, 99]]] * 2, width_multiple=1), "modules or 4294967296 parameters"),
        (_config([[-1, 1, "Conv", [60_000]]], width_multiple=100), "has 6000000 channels, expected at most 65536"),
        (_config([[-1, 1, "Conv", [8, 1, 60_000]]] * 400), "shrinks or enlarges the image more than 65536 times"),
        (_config([[-1, 1, "nn.Upsample", [None, 60_000, "nearest"]]] * 400), "shrinks or enlarges the image"),
    ],
    ids=[
        "anchors",
        "classes",
        "repeats",
        "modules",
        "layers",
        "transformers",
        "kernels",
        "poolings",
        "expanding",
        "paddings",
        "parameters",
        "channels",
        "shrinking",
        "enlarging",
    ],
)
def test_a_yaml_that_builds_without_end_is_stopped(config: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message), torch.device("meta"):
        Network(config)


def test_only_what_values_cause_is_called_damage() -> None:
    for error in (ValueError, OverflowError, MemoryError, RecursionError):
        with pytest.raises(UsageError, match="the checkpoint is corrupted"), untrusted_values.convert_value_errors():
            raise error("out of range")
    for fault in (TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError):
        with pytest.raises(fault), untrusted_values.convert_value_errors():
            raise fault("ours")
    with pytest.raises(UsageError) as caught, untrusted_values.convert_value_errors():
        raise UsageError("a\n" * 10_000, hint="do")
    assert caught.value.message.isprintable() and len(caught.value.message) < 700 and caught.value.hint == "do"
