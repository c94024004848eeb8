"""The header of ONNX files, against the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolotrt_core.export.onnx_header import read_header, source_info
from yolotrt_core.plugin.stages import OnnxContents, SourceInfo
from yolotrt_core.testing import small_model
from yolotrt_core.types import TensorSpec


def test_the_header_is_what_the_file_declares(tmp_path: Path) -> None:
    found = read_header(small_model(tmp_path).path)
    assert found is not None
    assert found.inputs == (TensorSpec("images", "float32", (1, 3, 64, 64)),)
    assert found.outputs == (TensorSpec("output0", "float32", (1, 128, 8)),)
    assert found.metadata == {"names": "{0: 'a', 1: 'b', 2: 'c'}", "stride": "8"}


def test_free_dimensions_other_types_and_weights_among_the_inputs(tmp_path: Path) -> None:
    def value(name: str, dtype: int, shape: list[object] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    weight = numpy_helper.from_array(np.zeros((300, 300), np.float32), "weight")
    inputs = [
        value("images", TensorProto.FLOAT16, ["batch", 3, None, 0]),
        value("weight", TensorProto.FLOAT, [300, 300]),
    ]
    outputs = [value("a", TensorProto.INT64, [2**40]), value("b", TensorProto.BFLOAT16, [])]
    nodes = [helper.make_node("Identity", ["images"], ["a"]), helper.make_node("Identity", ["images"], ["b"])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight]), ir_version=3)
    helper.set_model_props(model, {"ä": "x" * 5000, "empty": ""})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = read_header(tmp_path / "m.onnx")
    assert found is not None
    assert found.inputs == (TensorSpec("images", "float16", ("batch", 3, "?", 0)),)
    assert found.outputs == (TensorSpec("a", "int64", (2**40,)), TensorSpec("b", "unknown", ()))
    assert found.metadata == {"ä": "x" * 5000, "empty": ""}


@pytest.mark.parametrize(
    ("shape", "imgsz", "expected"),
    [
        ((1, 3, 64, 96), "[640, 640]", SourceInfo((64, 96), fixed_size=True)),
        ((1, 64, 96, 3), "", SourceInfo((64, 96), fixed_size=True)),
        (("batch", 3, "height", "width"), "[640, 320]", SourceInfo((640, 320))),
        (("batch", 3, "height", 96), "[640, 'a']", SourceInfo()),
        (("batch", 3, "height", "width"), "[640]", SourceInfo()),
        ((1, 10), "[640, 640]", SourceInfo()),
    ],
)
def test_the_size_is_the_input_s_or_the_metadata_s(shape: tuple[int | str], imgsz: str, expected: SourceInfo) -> None:
    image = TensorSpec("images", "float32", shape)
    assert source_info(OnnxContents((image,), (image,), {"imgsz": imgsz})) == expected
    assert source_info(None) == SourceInfo()


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_and_others_have_none(seed: int, tmp_path: Path) -> None:
    whole = small_model(tmp_path).path.read_bytes()
    random, path = np.random.default_rng(seed), tmp_path / "m.onnx"
    for data in (b"", b"PK\x03\x04", b"text", whole[:-1], whole[:500], b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"):
        path.write_bytes(data)
        assert read_header(path) is None
    for _ in range(200):  # whatever a flipped byte makes of it, nothing is raised
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        read_header(path)
    assert read_header(tmp_path) is None
    assert read_header(tmp_path / "missing") is None
