"""Every attribute of every module: used as PyTorch does, refused by name, or without effect on PyTorch's answer."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream_layout as layout
from torch import nn

from yolotrt_core.errors import UsageError
from yolotrt_torch import yolov5_blocks
from yolotrt_torch.checkpoint import Checkpoint, read_checkpoint
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.module_attributes import apply_attributes
from yolotrt_torch.pickle_reader import Stub
from yolotrt_torch.yaml_layers import _PLAIN as PLAIN
from yolotrt_torch.yolov5_layers import Conv2d

# Arguments of each class of PyTorch that the builder accepts; none for the others.
ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "AdaptiveAvgPool2d": (3,),
    "AdaptiveMaxPool2d": (3,),
    "AvgPool2d": (3, 2, 1, True),
    "BatchNorm2d": (4,),
    "CircularPad2d": (1,),
    "ConstantPad2d": (1, 0.5),
    "Conv2d": (4, 4, 3, 2, 1),
    "ConvTranspose2d": (4, 4, 3, 2, 1),
    "GroupNorm": (2, 4),
    "InstanceNorm2d": (4,),
    "LPPool2d": (2, 3, 2),
    "Linear": (8, 8),
    "LocalResponseNorm": (3, 0.5),
    "LogSoftmax": (1,),
    "MaxPool2d": (3, 2, 1),
    "PReLU": (4,),
    "ReflectionPad2d": (1,),
    "ReplicationPad2d": (1,),
    "Softmax": (1,),
    "Softmin": (1,),
    "Threshold": (0.1, -0.3),
    "Upsample": (None, 2, "bilinear"),
    "ZeroPad2d": (1,),
}
CLASSES = sorted({*PLAIN, *ARGUMENTS})
WORDS = ("zeros", "reflect", "replicate", "circular", "same", "none", "tanh", "nearest", "bicubic", "constant")
EMPTY = {  # attributes of every module; what they may hold is tested below
    "training", "call_super_init", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
}  # fmt: skip
IMAGES = torch.randn((2, 4, 7, 8), generator=torch.Generator().manual_seed(1))


def others(value: Any) -> Iterator[Any]:
    """Yield values that differ from an attribute's."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value * 2.5 + 0.25, value - 1, "x")
    elif isinstance(value, str):
        yield from (word for word in WORDS if word != value)
    elif value is None:
        yield from (True, 2, 0.5, "x")
    elif isinstance(value, (tuple, list)):
        yield type(value)(v + 1 if isinstance(v, (int, float)) else 2 for v in value)


@torch.inference_mode()
def answer(module: nn.Module) -> Any:
    """Return what the module makes of the images, or None where it cannot run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = module.eval()(IMAGES.clone())
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError, AssertionError):
        return None
    return found if isinstance(found, torch.Tensor) else None


def made(name: str) -> nn.Module:
    """Make a module whose weights all matter."""
    torch.manual_seed(0)
    module = (Conv2d if name == "Conv2d" else PLAIN.get(name) or getattr(nn, name))(*ARGUMENTS.get(name, ()))
    for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
        tensor.data.uniform_(0.2, 1.2)
    return module


@pytest.mark.parametrize("name", CLASSES)
def test_each_attribute_of_pytorchs_modules(name: str) -> None:
    unchanged = made(name)
    plain = {k: v for k, v in vars(unchanged).items() if k not in EMPTY}
    wrong = []
    for attribute, value in plain.items():
        for other in others(value):
            theirs, ours = made(name), made(name)
            vars(theirs)[attribute] = other
            try:
                apply_attributes("model.3.x", ours, Stub(f"torch.nn.{name}", (), {**plain, attribute: other}))
            except UsageError as err:
                assert f"{attribute}" in err.message and "`model.3.x`" in err.message
                continue
            expected, found = answer(theirs), answer(ours)
            if expected is not None and (found is None or not torch.equal(found, expected)):
                wrong.append((attribute, value, other))
    assert not wrong


def test_attributes_that_only_the_file_states_are_used() -> None:
    """Against PyTorch's own module with the attribute, and different from the default's answer."""
    for name, attribute, value in (
        ("Conv2d", "padding_mode", "reflect"),
        ("Conv2d", "padding_mode", "circular"),
        ("BatchNorm2d", "eps", 0.3),
        ("LeakyReLU", "negative_slope", 0.4),
        ("Softplus", "beta", 2),
        ("Hardtanh", "max_val", 0.5),
        ("GELU", "approximate", "tanh"),
    ):
        ours, theirs = made(name), made(name)
        setattr(theirs, attribute, value)
        apply_attributes("model.0.x", ours, Stub(name, (), {k: v for k, v in vars(theirs).items() if k not in EMPTY}))
        assert torch.equal(answer(ours), answer(theirs)) and not torch.equal(answer(ours), answer(made(name)))


def test_attention_is_pytorchs() -> None:
    torch.manual_seed(0)
    theirs, ours = nn.MultiheadAttention(8, 4).eval(), yolov5_blocks.MultiheadAttention(8, 4)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    q, k, v = torch.randn(3, 5, 2, 8)
    with torch.inference_mode():
        found = ours(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
        torch.testing.assert_close(found, theirs(q, k, v)[0])
    plain = {name: value for name, value in vars(theirs).items() if name not in EMPTY}
    apply_attributes("model.3.ma", ours, Stub("MultiheadAttention", (), plain))
    for attribute in sorted(plain.keys() - {"dropout"}):  # `dropout` acts in training only
        for other in others(plain[attribute]):
            with pytest.raises(UsageError, match=attribute):
                apply_attributes("model.3.ma", ours, Stub("MultiheadAttention", (), {**plain, attribute: other}))


# What YOLOv5 7.0 sets on its own blocks and cannot change the decoded rows, with the reason.
WITHOUT_EFFECT = {
    ("Detect", "stride"): "compared as the checkpoint's strides",
    ("Detect", "inplace"): "same arithmetic",
    ("Detect", "grid"): "computed in every run",
    ("Detect", "anchor_grid"): "computed in every run",
    ("Detect", "dynamic"): "only when the grid is computed",
    ("Detect", "onnx_dynamic"): "only when the grid is computed",
    ("Detect", "export"): "raw maps beside the decoded rows",
}


def test_each_attribute_of_yolov5s_blocks(tmp_path: Path) -> None:
    def as_upstream(model: Any) -> None:
        head = model.model[-1]
        head.inplace, head.grid, head.anchor_grid, head.nl = True, [torch.empty(0)], [torch.empty(0)], 2
        head.dynamic = head.onnx_dynamic = head.export = False
        model.model[12].iter = range(1)
        del head.size  # ours only

    checkpoint = read_checkpoint(layout.save(tmp_path / "m.pt", layout.EVERY_BLOCK, edit=as_upstream))
    network_from_checkpoint(checkpoint)
    tried = set()
    for path, stub in checkpoint.modules.items():
        kind = stub.kind.rpartition(".")[2]
        for attribute, value in stub.state.items():
            key = (kind, attribute)
            if not path or not stub.kind.startswith("models") or attribute in EMPTY or key in tried:
                continue
            tried.add(key)
            for other in [*others(value)] or ["x"]:
                changed = _with_state(checkpoint, path, {**stub.state, attribute: other})
                if key in WITHOUT_EFFECT or attribute in ("type", "np"):  # upstream only prints these two
                    network_from_checkpoint(changed)
                else:
                    with pytest.raises(UsageError, match=f"{attribute}|reads from|the number"):
                        network_from_checkpoint(changed)
    assert tried >= WITHOUT_EFFECT.keys() | {
        ("Bottleneck", "add"), ("CrossConv", "add"), ("Concat", "d"), ("Contract", "gain"), ("Expand", "gain"),
        ("TransformerBlock", "c2"), ("Sum", "iter"), ("Sum", "weight"), ("Detect", "nc"), ("Detect", "na"),
        ("Detect", "no"), ("Detect", "nl"), ("Detect", "f"), ("Detect", "i"),
    }  # fmt: skip


def _with_state(checkpoint: Checkpoint, path: str, state: dict[Any, Any]) -> Checkpoint:
    modules = {**checkpoint.modules, path: Stub(checkpoint.modules[path].kind, (), state)}
    made = copy.copy(checkpoint)
    object.__setattr__(made, "modules", modules)
    return made


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("model.0", {"forward": "x"}, "`model.0` of the checkpoint replaces its own `forward`"),
        ("model.0.conv", {"forward": Stub("getattr", (Stub("models.common.Conv"), "forward"))}, "own `forward`"),
        ("model.0", {"forward": "fused"}, "own `forward`"),  # while its norm is still there
        ("", {"forward": "x"}, "the checkpoint's model replaces its own `forward`"),
        ("", {"_forward_once": Stub("getattr", ())}, "the checkpoint's model replaces its own `_forward_once`"),
        ("", {"_forward_hooks": {0: Stub("x")}}, "the checkpoint's model has hooks"),
        ("model.2", {"_forward_hooks": {0: Stub("x")}}, "`model.2` of the checkpoint has hooks"),
        ("model.0.conv", {"_forward_pre_hooks": {3: Stub("x")}}, "has hooks"),
        ("model.1.act", {"_forward_hooks": {3: Stub("x")}}, "has hooks"),
        ("model.1.conv", {"_conv_forward": Stub("x")}, "attribute `_conv_forward`"),
        ("model.1.conv", {"weight": 1}, "attribute `weight`"),
        ("model.1.bn", {"eps": 0.0}, "has eps 0.0"),
        ("model.1.bn", {"eps": float("nan")}, "has eps nan"),
        ("model.1", {"scale": 0.5}, r"attribute `scale` \(0.5\), unknown for its class `Conv`"),
        ("model.1.conv", {"padding_mode": "mirror"}, "has padding_mode mirror, which is not supported"),
        ("model.1.conv", {"padding": "same"}, "has padding same"),
        ("model.1.conv", {"_reversed_padding_repeated_twice": [2, 2, 2, 2]}, "_reversed_padding_repeated_twice"),
    ],
)
def test_replaced_methods_hooks_and_unknown_attributes_are_refused(
    path: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(layout.save(tmp_path / "m.pt"))
    if change.get("forward") == "fused":
        change = {"forward": Stub("getattr", (checkpoint.modules[path], "forward_fuse"))}
    checkpoint.modules[path].state.update(change)
    with pytest.raises(UsageError, match=message):
        network_from_checkpoint(checkpoint)


def test_the_forward_of_a_fused_block_is_accepted(tmp_path: Path) -> None:
    network = layout.lively(layout.MODERN)
    for module in network.modules():
        if type(module).__name__ == "Conv":
            module.conv = nn.utils.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()

    def forward_fuse(self: Any, x: Any) -> Any:
        return self.act(self.conv(x))

    def replace(model: Any) -> None:
        for module in model.modules():
            if type(module).__name__ == "Conv":
                module.forward = types.MethodType(forward_fuse, module)

    fused = network_from_checkpoint(read_checkpoint(layout.save(tmp_path / "m.pt", network=network, edit=replace)))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fused(images), network(images))
