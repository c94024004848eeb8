"""What an ONNX file declares, against what the onnx package reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolotrt_core.errors import StageError
from yolotrt_core.testing import small_model
from yolotrt_onnxruntime.contents import contents

onnx = pytest.importorskip("onnx", reason="the expected values are the onnx package's")


def _declared(model: object) -> tuple[list[tuple[str, int, list[int | str]]], ...]:
    graph = model.graph  # type: ignore[attr-defined]
    weights = {weight.name for weight in graph.initializer}
    return tuple(
        [
            (
                value.name,
                value.type.tensor_type.elem_type,
                [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim],
            )
            for value in values
            if value.name not in weights
        ]
        for values in (graph.input, graph.output)
    )


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "UINT8", "FLOAT8E4M3FN", "INT64"])
@pytest.mark.parametrize("shape", [(1, 3, 32, 64), ("batch", 3, "height", "width"), (2**40, 0, 1, 3)])
def test_what_is_declared(kind: str, shape: tuple[int | str, ...], tmp_path: Path) -> None:
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
    dtype = helper.tensor_dtype_to_np_dtype(number).name
    for ours, theirs in zip((found.inputs, found.outputs), _declared(model), strict=True):
        assert [(t.name, list(t.shape)) for t in ours] == [(name, dims) for name, _, dims in theirs]
        assert [t.dtype for t in ours] == [dtype]


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
        with pytest.raises(StageError, match=r"^it (is empty|cannot be read|holds no graph)"):
            contents(made.path)
