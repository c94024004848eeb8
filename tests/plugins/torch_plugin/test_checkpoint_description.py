"""`inspect` of checkpoints: upstream's figures of its models, and the names in hostile pickles."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from yolotrt_core.plugin.description import Description
from yolotrt_core.types import ModelSource
from yolotrt_torch import description
from yolotrt_torch.description import count_operations
from yolotrt_torch.standard_models import standard_config
from yolotrt_torch.yolov5_model import Network, fuse

# ultralytics/yolov5 v7.0, README.md, "Pretrained Checkpoints": parameters in millions, GFLOPs at 640.
README = {"yolov5n": (1.9, 4.5), "yolov5s": (7.2, 16.5), "yolov5m": (21.2, 49.0), "yolov5l": (46.5, 109.1)}
README |= {"yolov5x": (86.7, 205.7)}


class Call:
    """Runs a function when a genuine unpickler reads it."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def describe(path: Path) -> Description:
    return description.describe(ModelSource(path, "0" * 64, path.stem))


def archive(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
    return path


@pytest.mark.parametrize("name", README)
def test_figures_are_those_of_upstream(name: str) -> None:
    with torch.device("meta"):
        network = Network(standard_config(name, 80))
    network.eval()
    millions, billions = README[name]
    fuse(network)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    # Upstream counts activations and norms, too: up to 0.5% more.
    counts = count_operations(network, 640)
    assert counts[""] / 1e9 == pytest.approx(billions, rel=0.008)
    # The stem: 16 to 80 channels of 320 x 320 from 3 channels with 6 x 6 weights.
    assert counts["model.0.conv"] == 2 * 320 * 320 * network.model[0].conv.out_channels * 3 * 36


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_name_is_shown_and_nothing_runs(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    data = pickle.dumps([Call(os.system, f"touch {mark}"), Path("x"), Call(torch.nn.functional.relu, 1)], protocol)
    found = describe(archive(tmp_path / "m.pt", data))
    assert not mark.exists()
    statuses = {name.name: name.status for name in found.names}
    assert statuses["posix.system"] == "dangerous"
    assert found.names[0].status == "dangerous"
    assert any(name.startswith("pathlib.") and status == "allowed" for name, status in statuses.items())
    assert "posix.system" in found.problem


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (b"(S'x'\nios\nsystem\n.", "os.system"),
        (b"cos\nsystem\n(S'x'\ntR.", "os.system"),
        # After what the reader cannot follow: an extension, a pop from an empty stack, a list as a key.
        (b"\x80\x02\x82\x01cos\nsystem\n(S'x'\ntR.", "os.system"),
        (b"\x80\x040000\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x01x\x85R.", "os.system"),
        (b"\x80\x02}]Nscos\nsystem\n(S'x'\ntR.", "os.system"),
        # A name that is put together: behind a memo after such an instruction, or as the result of a call.
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x9400\x820h\x00h\x01\x93\x8c\x01x\x85R.", "a computed name"),
        (b"\x80\x04cbuiltins\nstr\n\x8c\x02os\x85R\x8c\x06system\x93.", "a computed name"),
        (b"\x80\x02c__builtin__\ngetattr\ncmodels.yolo\nDetect\nX\x08\x00\x00\x00__init__\x86R.", "getattr"),
        (b"\x80\x02cmodels.experimental\nattempt_load\nX\x01\x00\x00\x00x\x85R.", "attempt_load"),
        (b"cos\nsystem\n", "os.system"),  # truncated
    ],
)
def test_no_road_to_a_name_is_hidden(program: bytes, name: str, tmp_path: Path) -> None:
    found = describe(archive(tmp_path / "m.pt", program))
    assert any(name in each.name and each.status == "dangerous" for each in found.names), found.names
    assert found.problem
    assert found.layers == ()


def test_names_of_other_code_are_unknown(tmp_path: Path) -> None:
    found = describe(archive(tmp_path / "m.pt", b"\x80\x02cmy.models\nNet\n)R."))
    assert [(name.name, name.status) for name in found.names] == [("my.models.Net", "unknown")]


def test_a_legacy_file_is_followed_through_all_its_pickles(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"model": Path("x"), "other": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    found = describe(path)
    assert found.format.endswith("legacy form")
    assert "torch._utils._rebuild_tensor_v2" in {name.name for name in found.names}
    path.write_bytes(path.read_bytes() + b"cos\nsystem\n.")
    assert describe(path).names == found.names  # data after the pickles is none that PyTorch reads
