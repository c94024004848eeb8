"""`--dynamic on` without a profile: a model of one size keeps it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from yolotrt_core.pipeline.build_options import BuildSettings, resolve
from yolotrt_core.plugin.registry import Registry


def _request_of(weights: Path, **settings: object) -> tuple[tuple[int, int, int], ...]:
    wanted = BuildSettings(weights=weights, dynamic=True, builder="onnxruntime", **settings)  # type: ignore[arg-type]
    (profile,) = resolve(wanted, Registry.discover()).request.profiles
    return profile.min, profile.opt, profile.max


def _onnx(path: Path, height: int | str, width: int | str) -> Path:
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, height, width])
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["output0"])], "g", [given], [given])
    model = helper.make_model(graph)
    model.metadata_props.add(key="imgsz", value="[160, 224]")
    onnx.save(model, str(path))
    return path


def test_an_onnx_that_fixes_its_size(tmp_path: Path) -> None:
    shapes = _request_of(_onnx(tmp_path / "a.onnx", 160, 224), batch=2)
    assert shapes == ((1, 160, 224), (2, 160, 224), (8, 160, 224))


def test_an_onnx_of_free_size(tmp_path: Path) -> None:
    shapes = _request_of(_onnx(tmp_path / "a.onnx", "height", "width"))
    assert shapes == ((1, 64, 96), (1, 160, 224), (8, 160, 224))


def test_tensorflow_is_written_for_one_size(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    model = tmp_path / "model"
    model.mkdir()
    (model / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    assert _request_of(model, imgsz=(320, 320)) == ((1, 320, 320), (1, 320, 320), (8, 320, 320))
