"""Files that preprocess images themselves: the rewritten graph, fed the usual images, against the file, fed its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from yolotrt_core.errors import UsageError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, ShapeRange
from yolotrt_onnx.options import OnnxSourceOptions
from yolotrt_onnx.stages import OnnxExporter

Make = Callable[..., Any]
Nodes = Sequence[Any]
MEAN, STD = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SWAP = np.array([2, 1, 0])


def node(operator: str, *inputs: Any, **attributes: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A node on the tensor before it; arrays are constants, `...` is that tensor."""
    return operator, inputs or (...,), attributes


def dressed(toy: Any, steps: Nodes, dtype: int = TensorProto.FLOAT, last: bool = False) -> Any:
    """Put preprocessing before the network's first tensor, `images`."""
    made, current = [], "given"
    for index, (operator, inputs, attributes) in enumerate(steps):
        names = []
        for place, value in enumerate(inputs):
            name = current if value is ... else value if isinstance(value, str) else f"constant_{index}_{place}"
            if not (value is ... or isinstance(value, str)):
                toy.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
            names.append(name)
        outputs = attributes.pop("outputs", None) or [f"step_{index}"]
        made.append(helper.make_node(operator, names, outputs, name=f"pre_{operator}_{index}", **attributes))
        current = outputs[0]
    for each in toy.graph.node:
        for index, name in enumerate(each.input):
            each.input[index] = current if name == "images" else name
    rest = list(toy.graph.node)
    del toy.graph.node[:]
    toy.graph.node.extend([*made, *rest])
    dims = list(toy.graph.input[0].type.tensor_type.shape.dim)
    shape = [dim.dim_param or dim.dim_value for dim in dims]
    shape = [shape[0], *shape[2:], shape[1]] if last else shape
    toy.graph.input[0].CopyFrom(helper.make_tensor_value_info("given", dtype, shape))
    helper.set_model_props(toy, {"names": "{0: 'a', 1: 'b', 2: 'c'}"})
    return toy


def export(model: Any, folder: Path, request: BuildRequest | None = None, **options: Any) -> ModelSpec:
    path = folder / "given.onnx"
    path.write_bytes(model.SerializeToString())
    source = ModelSource(path, sha256_of(path), path.stem)
    return OnnxExporter().export(
        source, request or BuildRequest("fp32", 1, 64, 64), OnnxSourceOptions(**options), folder
    )


def run(model: Any, images: NDArray[Any]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output0"], {session.get_inputs()[0].name: images})[0])


def photo(size: int = 64) -> NDArray[np.uint8]:
    """RGB bytes (1, 3, size, size)."""
    return np.random.default_rng(4).integers(0, 256, (1, 3, size, size), dtype=np.uint8)


div255, flip = node("Div", ..., np.float32(255)), node("Gather", ..., SWAP, axis=1)
to_float, to_chw = node("Cast", to=TensorProto.FLOAT), node("Transpose", perm=[0, 3, 1, 2])
reverse = node("Slice", ..., np.array([-1]), np.array([-(1 << 62)]), np.array([1]), np.array([-1]))
# As PyTorch's exporters write x[:, [2, 1, 0]], and x.chunk(3, 1) with the size of the input's shape.
picked = [
    node("Transpose", perm=[1, 0, 2, 3]),
    node("GatherND", ..., SWAP[:, None]),
    node("Transpose", perm=[1, 0, 2, 3]),
]
chunks = [
    node("Shape", "given", outputs=["shape"]),
    node("Gather", "shape", np.array(1), axis=0, outputs=["count"]),
    node("Div", "count", np.array(3), outputs=["step"]),
    node("Reshape", "step", np.array([1]), outputs=["first"]),
    node("Mul", "first", np.array([2]), outputs=["second"]),
    node("Mul", "first", np.array([3]), outputs=["third"]),
    node("Slice", "given", np.array([0]), "first", np.array([1]), outputs=["r"]),
    node("Slice", "given", "first", "second", np.array([1]), outputs=["g"]),
    node("Slice", "given", "second", "third", np.array([1]), outputs=["b"]),
    node("Concat", "b", "g", "r", axis=1),
]
split = node("Split", axis=1, outputs=["r", "g", "b"])
FLOAT, HALF, BYTE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
# Steps, the input's type, channels last, BGR, largest value; the network sees RGB in 0..1 in all of these.
PLAIN = {
    "div": ([div255], FLOAT, False, False, 255),
    "mul": ([node("Mul", np.float32(1 / 255), ...)], FLOAT, False, False, 255),
    "clip": ([node("Clip", ..., np.float32(0), np.float32(255)), div255], FLOAT, False, False, 255),
    "gather": ([flip], FLOAT, False, True, 1),
    "reverse": ([reverse, div255], FLOAT, False, True, 255),
    "split": ([split, node("Concat", "b", "g", "r", axis=1)], FLOAT, False, True, 1),
    "picked": ([*picked, to_float, div255], BYTE, False, True, 255),
    "chunks": ([*chunks, div255], FLOAT, False, True, 255),
    "byte": ([to_float, div255], BYTE, False, False, 255),
    "dequantize": ([node("DequantizeLinear", ..., np.float32(1 / 255), np.uint8(0))], BYTE, False, False, 255),
    "byte nhwc": ([to_chw, to_float, div255], BYTE, True, False, 255),
    "byte nhwc bgr": ([node("Gather", ..., SWAP, axis=-1), to_float, to_chw, div255], BYTE, True, True, 255),
    "half": ([to_float, div255], HALF, False, False, 255),
    "convolution": (
        [node("Conv", ..., (np.eye(3, dtype=np.float32)[::-1] / 255).reshape(3, 3, 1, 1))],
        FLOAT,
        False,
        True,
        255,
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_the_network_reads_the_usual_images(case: str, toy_yolo: Make, tmp_path: Path) -> None:
    steps, dtype, last, is_bgr, maximum = PLAIN[case]
    model = dressed(toy_yolo(), [(o, i, dict(a)) for o, i, a in steps], dtype, last)
    spec = export(model, tmp_path)
    assert spec.inputs[0].shape == (1, 3, 64, 64) and spec.inputs[0].dtype == "float32"
    made, bytes_ = onnx.load(tmp_path / "model.onnx"), photo()
    usual = bytes_.astype(np.float32) / 255
    found = run(made, usual)
    np.testing.assert_allclose(found, run(toy_yolo(), usual), rtol=1e-5, atol=1e-4)  # the network alone
    own = bytes_[:, ::-1] if is_bgr else bytes_
    own = own.astype(helper.tensor_dtype_to_np_dtype(dtype)) / (255 // maximum if dtype == FLOAT else 1)
    own = own.astype(helper.tensor_dtype_to_np_dtype(dtype)) if dtype != FLOAT else own.astype(np.float32)
    given = np.ascontiguousarray(own.transpose(0, 2, 3, 1) if last else own)
    np.testing.assert_allclose(found, run(model, given), rtol=1e-5, atol=1e-4)
    # The preprocessing is gone, and only a half network would need a conversion.
    assert not {n.op_type for n in made.graph.node if n.name.startswith("pre_")}
    assert made.graph.node[0].input[0] == "images"
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as stored:
        assert stored["images"].max() <= 1
        np.testing.assert_allclose(run(made, stored["images"]), stored["output0"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("steps", "maximum"),
    [
        ([node("Sub", ..., MEAN), node("Div", ..., STD)], 1),
        ([node("Mul", ..., np.float32(2)), node("Sub", ..., np.float32(1))], 1),
        ([node("Sub", ..., MEAN * 255), node("Div", ..., STD * 255)], 255),
        ([div255, node("Sub", ..., MEAN), node("Div", ..., STD)], 255),
        ([node("Sub", ..., np.float32(127.5)), node("Div", ..., np.float32(127.5))], 255),
        ([node("Sub", ..., np.array([123, 117, 104], np.float32).reshape(3, 1, 1))], 255),
        ([node("Pad", ..., np.zeros(8, np.int64)), div255], 255),
        ([node("Clip", ..., np.float32(0), np.float32(255))], 255),
    ],
)  # fmt: skip
def test_means_and_factors_tell_the_range(steps: Nodes, maximum: int, toy_yolo: Make, tmp_path: Path) -> None:
    model = dressed(toy_yolo(), [(o, i, dict(a)) for o, i, a in steps])
    export(model, tmp_path)
    usual = photo().astype(np.float32) / 255
    made = onnx.load(tmp_path / "model.onnx")
    np.testing.assert_allclose(run(made, usual), run(model, usual * np.float32(maximum)), rtol=1e-4, atol=1e-3)
    if maximum == 1:  # nothing to change
        assert [n.op_type for n in made.graph.node] == [n.op_type for n in model.graph.node]


def test_free_sizes(toy_yolo: Make, tmp_path: Path) -> None:
    shape = node("Shape", outputs=["size"])
    model = dressed(toy_yolo(dynamic=True), [to_chw, to_float, div255], BYTE, last=True)
    model.graph.node.insert(0, helper.make_node(shape[0], ["given"], ["size"], name="read_size"))
    model.graph.node.append(helper.make_node("Shape", ["size"], ["unused"]))
    profile = ShapeRange((1, 32, 32), (1, 64, 64), (4, 96, 96))
    export(model, tmp_path, BuildRequest("fp32", 1, 64, 64, True, (profile,)))
    made = onnx.load(tmp_path / "model.onnx")
    for size in (64, 96):
        bytes_ = photo(size)
        expected = run(model, np.ascontiguousarray(bytes_.transpose(0, 2, 3, 1)))
        np.testing.assert_allclose(run(made, bytes_.astype(np.float32) / 255), expected, rtol=1e-5, atol=1e-3)


def test_options_say_otherwise(toy_yolo: Make, tmp_path: Path) -> None:
    usual = photo().astype(np.float32) / 255
    model = dressed(toy_yolo(), [(*flip[:2], dict(flip[2]))])
    export(model, tmp_path, order="rgb")
    np.testing.assert_allclose(run(onnx.load(tmp_path / "model.onnx"), usual), run(model, usual), atol=1e-4)
    model = dressed(toy_yolo(), [])
    export(model, tmp_path, order="bgr", range="255")
    own = np.ascontiguousarray(usual[:, ::-1] * np.float32(255))
    np.testing.assert_allclose(run(onnx.load(tmp_path / "model.onnx"), usual), run(model, own), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("steps", "dtype", "message", "hint"),
    [
        ([node("Mul", ..., np.float32(0.1))], FLOAT, "fits neither", "--onnx-range"),
        ([node("Gather", ..., np.array([1, 2, 0]), axis=1)], FLOAT, "takes the image's channels apart", "--onnx-order"),
        ([node("Clip", ..., np.float32(0), np.float32(1)), div255], FLOAT, "limits the image to 0..1", "--onnx-range"),
        ([node("Round"), div255], FLOAT, r"\(Round\) computes with the image", "--onnx-range"),
        (
            [
                node("Transpose", perm=[0, 2, 3, 1]),
                node("MatMul", ..., np.eye(3, dtype=np.float32)[::-1]),
                node("Transpose", perm=[0, 3, 1, 2]),
            ],
            FLOAT,
            r"\(MatMul\) computes with the image",
            "--onnx-order",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(
    steps: Nodes, dtype: int, message: str, hint: str, toy_yolo: Make, tmp_path: Path
) -> None:
    model = dressed(toy_yolo(), [(o, i, dict(a)) for o, i, a in steps], dtype)
    with pytest.raises(UsageError, match=message) as caught:
        export(model, tmp_path)
    assert "node `" in caught.value.message and hint in str(caught.value.hint)
    export(model, tmp_path, range="1", order="rgb")  # said


@pytest.mark.parametrize("name", ["g8_div255", "g8_uint8", "g8_uint8_nhwc"])
def test_files_of_others(name: str, data: Path, tmp_path: Path) -> None:
    """The right boxes are those of the network without preprocessing."""
    models = data.parent / "field" / "models"
    if not models.is_dir():
        pytest.skip(f"needs `{models}`")
    export(onnx.load(models / f"{name}.onnx"), tmp_path, BuildRequest("fp32", 1, 128, 128))
    usual = photo(128).astype(np.float32) / 255
    expected = run(onnx.load(models / "g8_plain.onnx"), usual)
    np.testing.assert_allclose(run(onnx.load(tmp_path / "model.onnx"), usual), expected, rtol=1e-5, atol=1e-4)
