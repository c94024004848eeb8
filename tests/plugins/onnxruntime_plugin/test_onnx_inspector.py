"""What an ONNX file declares is what was written into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolotrt_core.errors import StageError
from yolotrt_core.testing import small_model
from yolotrt_core.types import TensorSpec

onnx = pytest.importorskip("onnx", reason="needs the onnx package")
from yolotrt_onnxruntime.onnx_inspector import contents  # noqa: E402 - it imports onnx


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FLOAT", "float32"),
        ("FLOAT16", "float16"),
        ("BFLOAT16", "bfloat16"),
        ("UINT8", "uint8"),
        ("FLOAT8E4M3FN", "float8_e4m3fn"),
        ("INT64", "int64"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 3, 32, 64), ("batch", 3, "height", "width"), (2**40, 0, 1, 3)])
def test_what_is_declared(kind: str, dtype: str, shape: tuple[int | str, ...], tmp_path: Path) -> None:
    helper, number = onnx.helper, getattr(onnx.TensorProto, kind)
    weight = helper.make_tensor("weight", onnx.TensorProto.FLOAT, (2,), [1, 2])
    tensors = [helper.make_tensor_value_info(name, number, shape) for name in ("images", "output0")]
    listed = helper.make_tensor_value_info("weight", onnx.TensorProto.FLOAT, (2,))
    node = helper.make_node("Identity", ["images"], ["output0"])
    model = helper.make_model(helper.make_graph([node], "g", [tensors[0], listed], [tensors[1]], [weight]))
    helper.set_model_props(model, {"names": "{0: 'é'}", "empty": ""})
    onnx.save(model, tmp_path / "m.onnx")
    found = contents(tmp_path / "m.onnx")
    assert found.metadata == {"names": "{0: 'é'}", "empty": ""}
    assert found.inputs == (TensorSpec("images", dtype, shape),)
    assert found.outputs == (TensorSpec("output0", dtype, shape),)


def test_a_real_network(tmp_path: Path) -> None:
    made = small_model(tmp_path)
    found = contents(made.path)
    assert found.inputs == made.spec.inputs
    assert found.outputs == made.spec.outputs


def test_what_is_no_onnx_is_told(tmp_path: Path) -> None:
    made = small_model(tmp_path)
    whole = made.path.read_bytes()
    for data in (b"", b"no model at all", whole[: len(whole) // 2], whole[:2], bytes(range(256))):
        made.path.write_bytes(data)
        with pytest.raises(StageError, match=r"^it (cannot be read|contains no graph)"):
            contents(made.path)
