"""What is no checkpoint, or a damaged or edited one, is refused in words and runs nothing."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream_layout as layout
from torch import nn

from yolotrt_core.errors import UsageError, YolotrtError
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.checkpoint_archive import open_archive
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.yolov5_model import Network


def _swap(model: nn.Module, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(model.model[1].conv, name, value)


Edit = Callable[[Any], Any]
EDITS: Mapping[str, tuple[Edit, str]] = {
    "stride": (
        lambda m: _swap(m, stride=(1, 1)),
        r"`model.1.conv` .* has stride \(1, 1\), but its yaml requires \(2, 2\)",
    ),
    "padding": (lambda m: _swap(m, padding=(0, 0)), "padding"),
    "own layer": (lambda m: _own_layer(m), "`model.5` of the checkpoint is a `Custom`, but its yaml requires `SPPF`"),
    "extra part": (
        lambda m: m.model[2].add_module("attention", nn.Sigmoid()),
        "unknown parts .'attention'.",
    ),
    "shortcut": (lambda m: setattr(m.model[2].m[0], "add", False), "has add False"),
    "source": (lambda m: setattr(m.model[7], "f", [-1, 2]), r"layer 7 .* reads from \[-1, 2\]"),
    "pooling": (lambda m: setattr(m.model[5].m, "kernel_size", 3), "kernel_size 3"),
    "upsampling": (lambda m: setattr(m.model[6], "mode", "bilinear"), "mode bilinear"),
    "activation": (lambda m: setattr(m.model[1], "act", nn.GLU()), "activation `torch.nn.*GLU`"),
    "more weights": (lambda m: m.model[5].register_parameter("w", nn.Parameter(torch.ones(1))), "`model.5.w` that its"),
    "fewer weights": (lambda m: delattr(m.model[1].conv, "weight"), "lacks the weight `model.1.conv.weight`"),
    "other shape": (lambda m: setattr(m.model[1].bn, "weight", nn.Parameter(torch.ones(3))), r"has shape \[3\]"),
    "not finite": (lambda m: m.model[1].bn.weight.data.fill_(float("nan")), "NaN or infinite"),
    "no yaml": (lambda m: setattr(m, "yaml", None), "has no `yaml`"),
    "classes": (lambda m: m.yaml.update(nc=80), "its yaml requires"),
    "strides": (lambda m: setattr(m.model[-1], "stride", torch.tensor([4.0, 8.0])), r"strides \(4, 8\) differ"),
    "odd strides": (lambda m: setattr(m.model[-1], "stride", torch.tensor([4.5, 8.0])), "expected integers"),
    "unknown block": (
        lambda m: m.yaml["backbone"].__setitem__(1, [-1, 1, "CBAM", [8]]),
        "unsupported layer `CBAM`",
    ),
}


def _own_layer(model: Any) -> None:
    import sys

    model.model[5].__class__ = sys.modules["models.common"].Custom


@pytest.mark.parametrize("edit", list(EDITS))
def test_a_model_that_is_not_its_yaml_is_refused(edit: str, tmp_path: Path) -> None:
    change, message = EDITS[edit]
    config = {**layout.MODERN, "backbone": [list(line) for line in layout.MODERN["backbone"]]}
    path = layout.save(tmp_path / "m.pt", config, network=layout.lively(layout.MODERN), edit=change)
    with pytest.raises(UsageError, match=message):
        network_from_checkpoint(read_checkpoint(path))


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: setattr(m.model[6], "mode", "a\nb\x1b[2J"),
        lambda m: m.model[5].register_parameter("w\n\x1b[2J", nn.Parameter(torch.ones(1))),
        lambda m: m.yaml["backbone"].__setitem__(1, [-1, 1, "Ghost\n\x1b[2J", [8]]),
    ],
)
def test_texts_of_a_file_cannot_break_a_message(edit: Edit, tmp_path: Path) -> None:
    config = {**layout.MODERN, "backbone": [list(line) for line in layout.MODERN["backbone"]]}
    path = layout.save(tmp_path / "m.pt", config, network=layout.lively(layout.MODERN), edit=edit)
    with pytest.raises(UsageError) as caught:
        network_from_checkpoint(read_checkpoint(path))
    assert caught.value.message.isprintable()


class _Command:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["raw", "text", "zip", "legacy", "inside a model"])
def test_a_pickle_that_would_run_a_command_does_not(form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "m.pt"
    evil = {"model": _Command(mark)}
    if form in ("raw", "text"):
        path.write_bytes(pickle.dumps(evil, 2 if form == "raw" else 0))
    elif form == "inside a model":
        layout.save(path, edit=lambda model: setattr(model, "hook", _Command(mark)))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UsageError, match=r"refused: the pickle contains `posix\.system`"):
        read_checkpoint(path)
    assert not mark.exists()


def _foreign(path: Path, module: str, name: str) -> None:
    """Save an object of a class of another project, by hand: protocol 2 in a zip as PyTorch writes it."""
    body = b"\x80\x02}X\x05\x00\x00\x00model" + f"c{module}\n{name}\n".encode() + b")\x81s."
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", body)
        file.writestr("m/version", "3\n")


def _torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/a.py"):
            file.writestr(name, b"\x80\x02N.")


def _onnx(path: Path) -> None:
    import onnx
    from onnx import helper

    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    onnx.save(helper.make_model(graph, producer_name="anything"), str(path))


def _truncated(path: Path, legacy: bool) -> None:
    layout.save(path, legacy=legacy)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


BAD: Mapping[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: None, "cannot read `.*m.pt`: No such file"),
    "folder": (lambda p: p.mkdir(), "cannot read"),
    "empty": (lambda p: p.write_bytes(b""), "found an empty file"),
    "text": (lambda p: p.write_text("weights go here\n"), "found a text file"),
    "text like an instruction": (lambda p: p.write_text("cat\ndog\nbird\n"), "found a text file"),
    "short text": (lambda p: p.write_text("."), "found a text file"),
    "ONNX": (_onnx, "found an ONNX file"),
    "TFLite": (lambda p: p.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(99)), "found a TensorFlow Lite file"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "found an HDF5 file"),
    "picture": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "found a file of another format"),
    "truncated zip": (lambda p: _truncated(p, False), "is truncated or corrupted"),
    "truncated legacy": (lambda p: _truncated(p, True), "the file is truncated within its tensors"),
    "other zip": (lambda p: zipfile.ZipFile(p, "w").close(), "zip archive without `data.pkl`"),
    "TorchScript": (_torchscript, "found a TorchScript archive"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1}, 2)), "a pickle not written by PyTorch"),
    "text pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1}, 0)), "a pickle not written by PyTorch"),
    "state_dict": (lambda p: torch.save(nn.Conv2d(1, 1, 1).state_dict(), p), "a plain state_dict"),
    "state_dict in a dict": (lambda p: torch.save({"model": nn.Linear(1, 1).state_dict()}, p), "a plain state_dict"),
    "short state_dict": (
        lambda p: torch.save({"model.0.conv.weight": torch.zeros(1)}, p),
        "a plain state_dict without YOLOv5's detection head",
    ),
    "state_dict of numbers": (
        lambda p: torch.save({"model.0.anchors": torch.zeros(1, 1, 1), "model.0.m.0.weight": torch.tensor(1)}, p),
        "a plain state_dict without YOLOv5's detection head",
    ),
    "state_dict of other names": (
        lambda p: torch.save({"model.0.weight": torch.zeros(1), "other.0.weight": torch.zeros(1)}, p),
        "a plain state_dict with the weight `model.0.weight`",
    ),
    "DataParallel of nothing": (
        lambda p: torch.save({"model": nn.DataParallel(nn.Identity())}, p),
        r"found a `torch.nn.modules.linear.Identity`",
    ),
    "list": (lambda p: torch.save([1], p), "found a saved `list`"),
    "tensor": (lambda p: torch.save(torch.zeros(2), p), "found a saved tensor"),
    "no model inside": (lambda p: torch.save({"model": {"a": 1}}, p), "as its `model`, found a `dict` there"),
    "other dict": (lambda p: torch.save({"epoch": 1, "net": 2}, p), "found a dict with `epoch`, `net`"),
    "PyTorch model": (lambda p: torch.save(nn.Sequential(nn.Conv2d(3, 3, 1)), p), "found a `torch.nn.*Sequential`"),
    "YOLOv8": (lambda p: _foreign(p, "ultralytics.nn.tasks", "DetectionModel"), "found one of YOLOv8 or later"),
    "torchvision": (
        lambda p: _foreign(p, "torchvision.models.resnet", "ResNet"),
        "found a classification model of torchvision .`ResNet`",
    ),
    "detector of torchvision": (
        lambda p: _foreign(p, "torchvision.models.detection.ssd", "SSD"),
        "found a detection model of torchvision .`SSD`",
    ),
    "fork": (
        lambda p: _foreign(p, "fork.blocks", "CBAM"),
        "the checkpoint contains `fork.blocks.CBAM`, which YOLOv5 does not have",
    ),
    "classification without its head": (
        lambda p: layout.save(p, kind="ClassificationModel"),
        "layer `model.5` of the classification model is a `SPPF`, expected `Conv` or `C3`",
    ),
    "newer plain form": (lambda p: torch.save({"yolotrt": 2}, p), "unknown version of"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_what_is_no_checkpoint_is_named(kind: str, tmp_path: Path) -> None:
    make, message = BAD[kind]
    path = tmp_path / "m.pt"
    make(path)
    with pytest.raises(UsageError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("fork", r"export it to ONNX .* `python export.py --weights best.pt --include onnx`.* `--weights best.onnx`"),
        ("TorchScript", r"export that to ONNX in the environment that has the model's code"),
        ("state_dict", "expected weights such as `model.0.conv.weight`"),
    ],
)
def test_the_hint_names_the_way_that_works(kind: str, way: str, tmp_path: Path) -> None:
    BAD[kind][0](tmp_path / "m.pt")
    with pytest.raises(UsageError) as caught:
        read_checkpoint(tmp_path / "m.pt")
    assert re.search(way, caught.value.hint or "")
    assert not re.search("refused|executed|danger|suspicious", str(caught.value))


@pytest.mark.parametrize("edit", ["own layer", "extra part", "activation", "unknown block", "more weights"])
def test_models_edited_in_code_are_to_be_exported_there(edit: str, tmp_path: Path) -> None:
    config = {**layout.MODERN, "backbone": [list(line) for line in layout.MODERN["backbone"]]}
    path = layout.save(tmp_path / "m.pt", config, network=layout.lively(layout.MODERN), edit=EDITS[edit][0])
    with pytest.raises(UsageError) as caught:
        network_from_checkpoint(read_checkpoint(path))
    assert "--include onnx" in (caught.value.hint or "")


def test_danger_is_named_before_other_code(tmp_path: Path) -> None:
    """The advice to load the file elsewhere is not given for a file that also has a dangerous name."""
    path = tmp_path / "m.pt"
    layout.save(path, wrap=lambda model: {"a": _Fork(), "model": model, "z": _Command(tmp_path / "ran")})
    with pytest.raises(UsageError, match=r"refused: the pickle contains `posix\.system`"):
        read_checkpoint(path)
    layout.save(path, wrap=lambda model: {"a": _Fork(), "model": model})
    with pytest.raises(UsageError, match=rf"the checkpoint contains `{__name__}._Fork`, which YOLOv5 does not have"):
        read_checkpoint(path)


class _Fork:
    """A class of other code."""


def test_what_decompresses_without_end_is_stopped(tmp_path: Path) -> None:
    zeros = {"yolotrt": 1, "yaml": {}, "state_dict": {f"w{i}": torch.zeros(8 << 20) for i in range(8)}}
    torch.save(zeros, tmp_path / "archive.pt")
    path = _rewritten(tmp_path / "archive.pt", lambda name, c: c, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UsageError, match="larger than the file"):
        read_checkpoint(path)
    pickled = _rewritten(
        path, lambda name, c: b"\x80\x02" + b"N0" * (8 << 20) + b"N." if name.endswith("data.pkl") else None, 8
    )
    with pytest.raises(UsageError, match=r"entry `.*data.pkl` .* an invalid size"):
        read_checkpoint(pickled)


def _rewritten(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = 0) -> Path:
    """Write the zip again with each entry changed, or left out where `change` gives None."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            changed = change(name, content)
            if changed is not None:
                file.writestr(name, changed)
    return path


@pytest.mark.parametrize(
    ("change", "compression", "message"),
    [
        (lambda name, c: None if name.endswith("data/3") else c, 0, "`archive/data/3` .*missing"),
        (lambda name, c: c + b"\0" if name.endswith("data/3") else c, 0, "an invalid size or compression"),
        (lambda name, c: c, zipfile.ZIP_BZIP2, "an invalid size or compression"),
        (lambda name, c: c, zipfile.ZIP_LZMA, "an invalid size or compression"),
        (lambda name, c: b"big" if name.endswith("byteorder") else c, 0, "big-endian"),
    ],
)
def test_zip_entries_must_be_what_pytorch_writes(change: Any, compression: int, message: str, tmp_path: Path) -> None:
    path = layout.save(tmp_path / "archive.pt")
    with pytest.raises(UsageError, match=message):
        read_checkpoint(_rewritten(path, change, compression))


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "message"),
    [
        (0, (8,), (1,), None),
        (1, (8,), (1,), "exceeds its storage"),
        (0, (2, 4), (5, 1), "exceeds its storage"),
        (0, (1 << 40,), (0,), "exceeds its storage"),
        (0, (1 << 61, 1 << 61), (0, 0), "exceeds its storage"),
    ],
)
def test_tensors_stay_within_their_storage(
    offset: int, shape: tuple[int, ...], stride: tuple[int, ...], message: str | None, tmp_path: Path
) -> None:
    from yolotrt_torch.pickle_reader import TensorRef

    torch.save({"w": torch.arange(8.0)}, tmp_path / "m.pt")
    with open_archive(tmp_path / "m.pt") as archive:
        tensor = TensorRef(archive.root["w"].storage, offset, shape, stride)
        if message is None:
            assert archive.array(tensor).tolist() == list(range(8))
        else:
            with pytest.raises(UsageError, match=message):
                archive.array(tensor)


def test_one_storage_read_without_end_is_stopped(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "m.pt")
    with open_archive(tmp_path / "m.pt") as archive, pytest.raises(UsageError, match="larger than the file"):
        for _ in range(10):
            archive.array(archive.root["w"])


@pytest.mark.parametrize("form", ["pickle in zip", "zip", "legacy"])
def test_damaged_bytes_give_a_network_or_one_of_our_errors(form: str, tmp_path: Path) -> None:
    """200 seeded changes: bytes flipped, cut out, put in, copied about; the head and the pickle most of all."""
    path = layout.save(tmp_path / "m.pt", layout.EARLY, legacy=form == "legacy")
    whole = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) if form != "legacy" else zipfile.ZipFile(io.BytesIO(), "w") as file:
        entries = {name: file.read(name) for name in file.namelist()}
    chance = random.Random(7)
    refused = 0
    for _ in range(200):
        if form == "pickle in zip":
            with zipfile.ZipFile(path, "w") as file:
                for name, content in entries.items():
                    file.writestr(name, _damaged(content, chance) if name.endswith("data.pkl") else content)
        elif form == "zip":  # its directory is at the end
            path.write_bytes(whole[:-8000] + _damaged(whole[-8000:], chance))
        else:
            path.write_bytes(_damaged(whole[:40_000], chance) + whole[40_000:])
        try:
            network = network_from_checkpoint(read_checkpoint(path))
        except YolotrtError as err:
            refused += 1
            assert "\n" not in str(err)
        else:
            assert isinstance(network, Network)
    assert refused > 100


def _damaged(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at, length = chance.randrange(len(data)), chance.randrange(1, 9)
        kind = chance.randrange(5)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = chance.randbytes(length)
        else:
            start = chance.randrange(len(data))
            data[at : at + length] = data[start : start + length]
    return bytes(data)
