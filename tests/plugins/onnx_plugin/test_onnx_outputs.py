"""Outputs of ONNX files by other exporters: further columns, heads without decoding, other axes, NMS at the end.

Expected values are the decoding of the shared toy network's own graph, or YOLOv5's formula in nested loops.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
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
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_onnx.options import OnnxSourceOptions
from yolotrt_onnx.stages import OnnxExporter

SIZE = 64
ROWS, WIDTH, CELLS = 512, 8, 16  # of the toy network: two anchors at stride 4, three classes
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
ANCHORS_TEXT = "/".join(",".join(map(str, level)) for level in ANCHORS)
Make = Callable[..., Any]


@pytest.fixture
def toy_yolo(toy_yolo: Make) -> Make:
    """The shared network without metadata."""

    def make() -> Any:
        model = toy_yolo()
        del model.metadata_props[:]
        return model

    return make


def export(model: Any, folder: Path, request: BuildRequest | None = None, **options: Any) -> ModelSpec:
    path = model if isinstance(model, Path) else folder / "given.onnx"
    if not isinstance(model, Path):
        path.write_bytes(model.SerializeToString())
    source = ModelSource(path, sha256_of(path), path.stem)
    spec = OnnxExporter().export(
        source, request or BuildRequest("fp32", 1, SIZE, SIZE), OnnxSourceOptions(**options), folder
    )
    onnx.checker.check_model(onnx.load(folder / "model.onnx"), full_check=True)
    return spec


def refused(model: Any, folder: Path, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as found:
        export(model, folder, **options)
    assert "\n" not in found.value.message
    assert "NMS" not in f"{found.value.message} {found.value.hint}"
    return found.value


def run(model: Any, size: int = SIZE, batch: int = 1) -> list[NDArray[Any]]:
    data = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(3).random((batch, 3, size, size), dtype=np.float32)
    return [np.asarray(each) for each in session.run(None, {session.get_inputs()[0].name: images})]


def exported(folder: Path, size: int = SIZE, batch: int = 1) -> NDArray[Any]:
    return run(folder / "model.onnx", size, batch)[0]


def _value(name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def _add(model: Any, operator: str, inputs: list[Any], output: str, **attributes: Any) -> str:
    names = []
    for index, given in enumerate(inputs):
        names.append(given if isinstance(given, str) else f"{output}_{index}")
        if not isinstance(given, str):
            model.graph.initializer.append(numpy_helper.from_array(given, names[-1]))
    model.graph.node.append(helper.make_node(operator, names, [output], **attributes))
    return output


def _further(toy: Any, count: int, scale: float, is_before_classes: bool = False, classes: int = 3) -> Any:
    """Add columns: objectness times `scale`, alternating in sign if that is not 1."""
    sign = (1 if scale == 1 else -1) ** np.arange(count)
    _add(toy, "Gather", ["output0", np.full(count, 4, np.int64)], "copies", axis=2)
    _add(toy, "Mul", ["copies", (sign * scale).astype(np.float32)], "further")
    _add(toy, "Gather", ["output0", np.arange(5, dtype=np.int64)], "first", axis=2)
    _add(toy, "Gather", ["output0", np.arange(5, 5 + classes, dtype=np.int64)], "classes", axis=2)
    order = ["first", "further", "classes"] if is_before_classes else ["first", "classes", "further"]
    _add(toy, "Concat", order, "wide", axis=2)
    toy.graph.output[0].CopyFrom(_value("wide", [1, ROWS, 5 + classes + count]))
    return toy


def _prototypes(toy: Any) -> Any:
    _add(toy, "Concat", ["down_out"] * 4, "prototypes", axis=1)
    toy.graph.output.append(_value("prototypes", [1, 32, CELLS, CELLS]))
    return toy


@pytest.mark.parametrize(
    ("make", "properties", "found", "columns"),
    [
        (lambda t: _prototypes(_further(t, 32, 3)), {"nc": "2"}, "mask prototypes", "classes=2"),
        (lambda t: _prototypes(_further(t, 32, 3)), {"task": "pose"}, "task pose", "classes=3"),
        (lambda t: _further(t, 32, 3), {}, r"columns 8 to 39 are not class scores", "classes=3"),
        (lambda t: _further(t, 32, 1), {"names": "['a', 'b', 'c']"}, "mask coefficients", "classes=3"),
        (lambda t: _further(t, 32, 3), {"names": str(list(range(35)))}, "not class scores", "classes=3"),
        (lambda t: _further(t, 4, 1), {"task": "segment", "names": "['a', 'b', 'c']"}, "segmentation", "classes=3"),
        (lambda t: _further(t, 10, 99, True, 1), {}, "columns 5 to 14 are not", "skip=10,classes=1"),
        (lambda t: _further(t, 10, 1, True, 1), {"names": "['face']"}, "face landmarks", "skip=10,classes=1"),
        (lambda t: _further(t, 51, 99, False, 1), {"nc": "1"}, "key points", "classes=1"),
        (lambda t: _further(t, 180, 1), {}, "3 classes and 180 of an angle", "classes=3"),
        (lambda t: _further(t, 180, 1), {"names": "['a', 'b', 'c']"}, "angles of rotated boxes", "classes=3"),
    ],
)
def test_further_columns_are_not_classes(
    make: Make, properties: dict[str, str], found: str, columns: str, toy_yolo: Make, tmp_path: Path
) -> None:
    model = make(toy_yolo())
    helper.set_model_props(model, properties)
    error = refused(model, tmp_path)
    assert found in error.message
    assert f"`{columns}`" in str(error.hint)
    if len(properties.get("names", "")) > 30:  # names for all columns contradict the columns
        helper.set_model_props(model, {})
    spec = export(model, tmp_path, columns=columns)
    kept = 5 + len(spec.labels)
    np.testing.assert_array_equal(exported(tmp_path), run(toy_yolo())[0][..., :kept])
    assert spec.outputs[0].shape == (1, ROWS, kept)


@pytest.mark.parametrize("properties", [{}, {"names": "['a', 'b', 'c']"}, {"nc": "3"}, {"task": "segment"}])
@pytest.mark.parametrize("scale", [1, 3])
def test_segmentation_models_keep_both_outputs(
    properties: dict[str, str], scale: float, toy_yolo: Make, tmp_path: Path
) -> None:
    """Coefficients may be within 0..1 as classes are: the prototypes decide."""
    model = _prototypes(_further(toy_yolo(), 32, scale))
    helper.set_model_props(model, properties)
    spec = export(model, tmp_path)
    assert (spec.task, spec.head, len(spec.labels)) == ("segment", "yolov5_seg", 3)
    assert [(t.name, t.shape) for t in spec.outputs] == [
        ("output0", (1, ROWS, WIDTH + 32)),
        ("output1", (1, 32, CELLS, CELLS)),
    ]
    for found, given in zip(run(tmp_path / "model.onnx"), run(model), strict=True):
        np.testing.assert_array_equal(found, given)
    with np.load(tmp_path / "reference.npz") as reference:
        assert reference["output1"].shape == (1, 32, CELLS, CELLS)
    boxes = export(model, tmp_path, columns="classes=3")
    assert (boxes.task, len(boxes.outputs)) == ("detect", 1)


def test_columns_are_declared_or_plausible(toy_yolo: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for text in ("classes", "classes=0", "skip=3", "box=3,objectness=1,classes=1", "class=3", "classes=1,classes=1"):
        assert "--onnx-columns" in refused(toy_yolo(), tmp_path, columns=text).message
    assert "the output has 8" in refused(toy_yolo(), tmp_path, columns="classes=80").message
    assert "are not class scores" in refused(_further(toy_yolo(), 9, 9), tmp_path, columns="classes=12").message
    assert len(export(_further(toy_yolo(), 180, 1), tmp_path, columns="classes=183").labels) == 183
    assert not [r for r in caplog.records if "NMS" in r.message]
    named = _prototypes(toy_yolo())  # a map besides is no reason where names and columns agree
    helper.set_model_props(named, {"names": "['a', 'b', 'c']"})
    assert export(named, tmp_path).labels == ("a", "b", "c")


def test_columns_in_0_to_1_that_are_not_classes(toy_yolo: Make, tmp_path: Path) -> None:
    """Landmarks relative to the image, limited to it; the index of the best class."""
    face = toy_yolo()
    _add(face, "Split", ["output0", np.array([2, 3, 3])], "centre", axis=2)
    face.graph.node[-1].output.extend(["middle", "rest"])
    _add(face, "Mul", ["centre", np.float32(1 / SIZE)], "relative")
    _add(face, "Clip", ["relative", np.float32(0), np.float32(1)], "landmark")
    _add(face, "Concat", ["centre", "middle", *["landmark"] * 5, "rest"], "face", axis=2)
    face.graph.output[0].CopyFrom(_value("face", [1, ROWS, 18]))
    error = refused(face, tmp_path)
    assert "10 of columns 5 to 14 follow the centre of the box" in error.message
    assert "`skip=10,classes=3`" in str(error.hint)
    assert len(export(face, tmp_path, columns="skip=10,classes=3").labels) == 3
    best = toy_yolo()
    _add(best, "Split", ["output0", np.array([5, 3])], "boxes", axis=2)
    best.graph.node[-1].output.append("classes")
    _add(best, "ArgMax", ["classes"], "index", axis=2)
    _add(best, "Cast", ["index"], "number", to=TensorProto.FLOAT)
    _add(best, "Concat", ["boxes", "number"], "best", axis=2)
    best.graph.output[0].CopyFrom(_value("best", [1, ROWS, 6]))
    error = refused(best, tmp_path)
    assert "as the index of a class" in error.message and "Detect layer" in str(error.hint)


def _maps(form: str = "(ac)yx", sigmoid: bool = False, levels: tuple[int, ...] = (8, 16, 32), batch: Any = 1) -> Any:
    """A head of three anchors and three classes whose maps are the outputs, in one of the layouts in use."""
    random = np.random.default_rng(0)
    graph = helper.make_graph([], "maps", [_value("images", [batch, 3, SIZE, SIZE])], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for stride in levels:
        kernel = random.normal(0, 3 / stride, (24, 3, stride, stride)).astype(np.float32)
        name = _add(model, "Conv", ["images", kernel], f"conv{stride}", strides=[stride, stride])
        n = SIZE // stride
        if form == "yx(ac)":
            name = _add(model, "Transpose", [name], f"last{stride}", perm=[0, 2, 3, 1])
        elif form != "(ac)yx":
            name = _add(model, "Reshape", [name, np.array([0, 3, 8, n, n])], f"split{stride}")
        if form in ("ayxc", "a(yx)c"):
            name = _add(model, "Transpose", [name], f"moved{stride}", perm=[0, 1, 3, 4, 2])
        if form == "a(yx)c":
            name = _add(model, "Reshape", [name, np.array([0, 3, n * n, 8])], f"flat{stride}")
        if sigmoid:
            name = _add(model, "Sigmoid", [name], f"soft{stride}")
        model.graph.output.append(_value(name, [None] * (5 if form in ("ayxc", "acyx") else 4)))
    return model


def _decoded(maps: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Decode maps (B, 24, ny, nx) before the sigmoid: ultralytics/yolov5 v7.0, Detect.forward, cell by cell."""
    batches = []
    for image in range(len(maps[0])):
        rows = []
        for level, sizes in zip(maps, ANCHORS, strict=True):
            ny, nx = level.shape[2:]
            for a, y, x in itertools.product(range(3), range(ny), range(nx)):
                t = 1 / (1 + np.exp(-level[image, a * 8 : a * 8 + 8, y, x].astype(np.float64)))
                centre = (t[:2] * 2 - 0.5 + [x, y]) * SIZE / nx
                rows.append([*centre, *(t[2:4] * 2) ** 2 * sizes[2 * a : 2 * a + 2], *t[4:]])
        batches.append(rows)
    return np.array(batches)


@pytest.mark.parametrize("form", ["(ac)yx", "yx(ac)", "ayxc", "acyx", "a(yx)c"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_heads_are_decoded(form: str, sigmoid: bool, tmp_path: Path) -> None:
    model = _maps(form, sigmoid)
    error = refused(model, tmp_path)
    assert "maps of a head before its decoding" in error.message
    assert "`--onnx-anchors 10,13," in str(error.hint)
    spec = export(model, tmp_path, anchors=ANCHORS_TEXT)
    assert (spec.strides, len(spec.labels)) == ((8, 16, 32), 3)
    np.testing.assert_allclose(exported(tmp_path), _decoded(run(_maps())), rtol=1e-5, atol=1e-4)


def test_anchors_in_metadata_and_maps_in_any_order(tmp_path: Path) -> None:
    model = _maps(levels=(32, 16, 8), batch="batch")
    pairs = [[level[i : i + 2] for i in (0, 2, 4)] for level in ANCHORS]
    helper.set_model_props(model, {"anchors": str(pairs), "names": "['a', 'b', 'c']"})
    spec = export(model, tmp_path, BuildRequest("fp32", 1, SIZE, SIZE, dynamic=True))
    assert spec.labels == ("a", "b", "c")
    assert spec.outputs[0].shape == ("batch", 252, 8)
    expected = _decoded(run(model, batch=2)[::-1])
    np.testing.assert_allclose(exported(tmp_path, batch=2), expected, rtol=1e-5, atol=1e-4)
    reordered = "/".join(reversed(ANCHORS_TEXT.split("/")))
    export(model, tmp_path, anchors=reordered)
    np.testing.assert_allclose(exported(tmp_path), _decoded(run(model)[::-1]), rtol=1e-5, atol=1e-4)


def test_free_batch_of_reshaped_maps(tmp_path: Path) -> None:
    """PyTorch's exporter then computes the shape, and may give different sizes of the outputs one name."""
    model = _maps("ayxc", batch="batch")
    for each in [each for each in model.graph.node if each.op_type == "Reshape"]:
        stride = int(each.output[0].removeprefix("split"))
        rest = numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == each.input[1]))[1:]
        _add(model, "Shape", [each.input[0]], f"shape{stride}")
        _add(model, "Slice", [f"shape{stride}", np.array([0]), np.array([1])], f"batch{stride}")
        each.input[1] = _add(model, "Concat", [f"batch{stride}", rest], f"sizes{stride}", axis=0)
    for value in model.graph.output:
        value.CopyFrom(_value(value.name, ["batch", 3, "rows", "columns", 8]))
    export(model, tmp_path, anchors=ANCHORS_TEXT)
    np.testing.assert_allclose(exported(tmp_path), _decoded(run(_maps())), rtol=1e-5, atol=1e-4)


def test_anchors_in_cells_are_not_taken_for_pixels(tmp_path: Path) -> None:
    """As in the buffer `anchors` of YOLOv5's Detect, which its `check_anchor_order` and training divide."""
    model = _maps()
    cells = [[size / stride for size in level] for level, stride in zip(ANCHORS, (8, 16, 32), strict=True)]
    helper.set_model_props(model, {"anchors": str(cells)})
    error = refused(model, tmp_path)
    assert "they may be in cells" in error.message and "--onnx-anchors" in str(error.hint)
    export(model, tmp_path, anchors=ANCHORS_TEXT)
    np.testing.assert_allclose(exported(tmp_path), _decoded(run(_maps())), rtol=1e-5, atol=1e-4)


def test_parts_of_one_output_are_not_offered_as_the_output(toy_yolo: Make, tmp_path: Path) -> None:
    parts = toy_yolo()
    _add(parts, "Split", ["output0", np.array([384, 128])], "first", axis=1)
    parts.graph.node[-1].output.append("second")
    del parts.graph.output[:]
    parts.graph.output.extend([_value("first", [1, 384, WIDTH]), _value("second", [1, 128, WIDTH])])
    error = refused(parts, tmp_path)
    assert "`first` (1, 384, 8), `second` (1, 128, 8)" in error.message
    assert "parts" in str(error.hint) and "--onnx-output" not in str(error.hint)
    decoded = _maps("ayxc", sigmoid=True)
    for stride in (8, 16, 32):
        _add(decoded, "Pow", [f"soft{stride}", np.float32(2)], f"decoded{stride}")
    del decoded.graph.output[:]
    decoded.graph.output.extend(_value(f"decoded{stride}", [None] * 5) for stride in (8, 16, 32))
    assert "(Pow) computes it" in refused(decoded, tmp_path).message  # before it asks for anchors


def test_heads_that_cannot_be_decoded(tmp_path: Path) -> None:
    for text in ("10,13", "10,13/30", "a,b/c,d", "10,-13/1,1/1,1", "__import__('os')"):
        assert "nchors" in refused(_maps(), tmp_path, anchors=text).message
    half = _maps()
    half.graph.node[0].output[0] = "linear"
    _add(half, "Exp", ["linear"], "conv8")
    assert (
        "(Exp) computes it, expected a convolution or a Sigmoid"
        in refused(half, tmp_path, anchors=ANCHORS_TEXT).message
    )
    scaled = _maps(sigmoid=True)
    scaled.graph.node[1].output[0] = "unscaled"
    _add(scaled, "Mul", ["unscaled", np.float32(2)], "soft8")
    assert "(Sigmoid) computes it" in refused(scaled, tmp_path, anchors=ANCHORS_TEXT).message
    wide = _maps()
    helper.set_model_props(wide, {"names": "['a']"})
    assert "has names for 1" in refused(wide, tmp_path, anchors=ANCHORS_TEXT).message
    nothing = helper.make_model(
        helper.make_graph(
            [helper.make_node("GlobalAveragePool", ["x"], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["y"])],
            "g", [_value("x", [1, 3, SIZE, SIZE])], [_value("y", [1, 3])],
        ), opset_imports=[helper.make_opsetid("", 13)], ir_version=8,
    )  # fmt: skip
    error = refused(nothing, tmp_path)
    assert "`y` (1, 3)" in error.message
    assert "Detect layer" in str(error.hint)


def test_undecoded_rows_and_products_say_what_they_are(toy_yolo: Make, tmp_path: Path) -> None:
    raw = toy_yolo()
    _add(raw, "Sub", ["output0", np.float32(9)], "raw_rows")
    raw.graph.output[0].CopyFrom(_value("raw_rows", [1, ROWS, WIDTH]))
    assert "not decoded" in str(refused(raw, tmp_path).hint)
    products = toy_yolo()
    for name, first, last in (("boxes", 0, 4), ("objectness", 4, 5), ("classes", 5, 8)):
        _add(products, "Gather", ["output0", np.arange(first, last)], name, axis=2)
    _add(products, "Mul", ["objectness", "classes"], "multiplied")
    _add(products, "Concat", ["boxes", "multiplied"], "no_objectness", axis=2)
    products.graph.output[0].CopyFrom(_value("no_objectness", [1, ROWS, 7]))
    assert "already multiplied by objectness" in refused(products, tmp_path).message


@pytest.mark.parametrize("perm", [[0, 2, 1], [1, 0], [0, 1]])
def test_squeezed_and_transposed_outputs(perm: list[int], toy_yolo: Make, tmp_path: Path) -> None:
    toy = toy_yolo()
    last = "output0"
    if len(perm) == 2:
        last = _add(toy, "Reshape", [last, np.array([ROWS, WIDTH])], "squeezed")
    _add(toy, "Transpose", [last], "moved", perm=perm)
    shape = np.transpose(np.empty((1, ROWS, WIDTH)[-len(perm) :]), perm).shape
    toy.graph.output[0].CopyFrom(_value("moved", [*shape]))
    export(toy, tmp_path)
    np.testing.assert_array_equal(exported(tmp_path), run(toy_yolo())[0])


def test_anchor_free_rows_are_not_taken_for_yolov5(tmp_path: Path) -> None:
    """YOLOv8 has as many rows as cells: with objectness or without cannot be seen."""
    rows = np.zeros((7, 84), np.float32)
    at = 0
    for stride in (8, 16, 32):
        y, x = np.mgrid[: SIZE // stride, : SIZE // stride].reshape(2, -1)
        rows[:2, at : at + len(x)] = np.stack((x + 0.5, y + 0.5)) * stride
        rows[2:4, at : at + len(x)], at = stride, at + len(x)
    model = helper.make_model(
        helper.make_graph([], "g", [_value("images", [1, 3, SIZE, SIZE])], [_value("output0", [1, 7, 84])]),
        opset_imports=[helper.make_opsetid("", 13)], ir_version=8,
    )  # fmt: skip
    _add(model, "ReduceMean", ["images"], "mean", axes=[1, 2, 3], keepdims=0)
    _add(model, "Mul", ["mean", np.zeros(1, np.float32)], "zero")
    _add(model, "Add", [rows[None], "zero"], "output0")
    assert "is ambiguous" in refused(model, tmp_path).message
    assert len(export(model, tmp_path, columns="classes=2").labels) == 2
    helper.set_model_props(model, {"names": "['a', 'b', 'c']"})
    assert "anchor-free" in refused(model, tmp_path).message


def _ends(toy: Any, operator: str, inputs: list[Any], domain: str = "", **attributes: Any) -> Any:
    outputs = ["count", "boxes_out", "scores_out", "classes_out"] if "TRT" in operator else ["selected"]
    for index, given in enumerate(inputs):
        if not isinstance(given, str):
            toy.graph.initializer.append(numpy_helper.from_array(given, f"nms_{index}"))
    names = [given if isinstance(given, str) else f"nms_{index}" for index, given in enumerate(inputs)]
    toy.graph.node.append(helper.make_node(operator, names, outputs, "end", domain=domain, **attributes))
    del toy.graph.output[:]
    dtype = TensorProto.INT64 if operator == "NonMaxSuppression" else TensorProto.FLOAT
    toy.graph.output.extend(_value(name, [None, None], dtype) for name in outputs)
    return toy


def _parts(toy: Any, corners: str | None = None) -> Any:
    """Boxes and scores of the toy network without any tensor that holds both."""
    for name, width in (("xy_pixels", 2), ("wh_pixels", 2), ("scores", 4)):
        _add(toy, "Reshape", [name, np.array([0, -1, width])], f"{name}_rows")
    _add(toy, "Split", ["scores_rows", np.array([1, 3])], "objectness", axis=2)
    toy.graph.node[-1].output.append("class_rows")
    _add(toy, "Mul", ["objectness", "class_rows"], "products")
    if corners is None:
        _add(toy, "Concat", ["xy_pixels_rows", "wh_pixels_rows"], "nms_boxes", axis=2)
    else:
        _add(toy, "Mul", ["wh_pixels_rows", np.float32(0.5)], "half")
        for operator in ("Sub", "Add"):
            _add(toy, operator, ["xy_pixels_rows", "half"], operator.lower())
            if corners == "yx":
                _add(toy, "Gather", [operator.lower(), np.array([1, 0])], f"{operator.lower()}_yx", axis=2)
        suffix = "_yx" if corners == "yx" else ""
        _add(toy, "Concat", [f"sub{suffix}", f"add{suffix}"], "nms_boxes", axis=2)
    del toy.graph.node[next(i for i, n in enumerate(toy.graph.node) if n.output[0] == "output0")]
    return toy


def _transposed(toy: Any) -> Any:
    _add(toy, "Transpose", ["products"], "nms_scores", perm=[0, 2, 1])
    return toy


def _batched(toy: Any) -> Any:
    _add(toy, "Unsqueeze", ["nms_boxes", np.array([2])], "nms_boxes4")
    return toy


def _separate(toy: Any) -> Any:
    del toy.graph.output[:]
    toy.graph.output.extend([_value("nms_boxes", [1, ROWS, 4]), _value("products", [1, ROWS, 3])])
    return toy


THRESHOLDS = [np.array([100]), np.array([0.45], np.float32), np.array([0.25], np.float32)]


@pytest.mark.parametrize(
    "make",
    [
        lambda t: _ends(_parts(t), "EfficientNMS_TRT", ["nms_boxes", "products"], "TRT", box_coding=1),
        lambda t: _ends(_parts(t, "xy"), "EfficientNMS_TRT", ["nms_boxes", "products"], box_coding=0),
        lambda t: _ends(_batched(_parts(t, "xy")), "BatchedNMS_TRT", ["nms_boxes4", "products"], shareLocation=1),
        lambda t: _separate(_parts(t)),
        lambda t: _separate(_parts(t, "xy")),
        lambda t: _ends(_transposed(_parts(t, "yx")), "NonMaxSuppression", ["nms_boxes", "nms_scores", *THRESHOLDS]),
    ],
)
def test_boxes_and_scores_before_nms_become_rows(
    make: Make, toy_yolo: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        spec = export(make(toy_yolo()), tmp_path)
    assert "replaced by rows of boxes and scores" in caplog.text
    assert len(spec.labels) == 3
    rows, expected = exported(tmp_path), run(toy_yolo())[0]
    np.testing.assert_allclose(rows[..., :4], expected[..., :4], rtol=1e-5, atol=1e-4)
    assert (rows[..., 4] == 1).all()
    np.testing.assert_allclose(rows[..., 5:], expected[..., 4:5] * expected[..., 5:], rtol=1e-6)


def test_nms_behind_computed_shapes(toy_yolo: Make, tmp_path: Path) -> None:
    """As of a free batch: up to opset 13, ONNX infers no rank of what is reshaped to a computed shape."""
    toy = _parts(toy_yolo(), "xy")
    toy.opset_import[0].version = 13
    for name in ("nms_boxes", "products"):
        _add(toy, "Shape", [name], f"{name}_shape")
        _add(toy, "Abs", [f"{name}_shape"], f"{name}_sizes")
        _add(toy, "Reshape", [name, f"{name}_sizes"], f"{name}_again")
    export(_ends(toy, "EfficientNMS_TRT", ["nms_boxes_again", "products_again"], "TRT", box_coding=0), tmp_path)
    rows, expected = exported(tmp_path), run(toy_yolo())[0]
    np.testing.assert_allclose(rows[..., :4], expected[..., :4], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(rows[..., 5:], expected[..., 4:5] * expected[..., 5:], rtol=1e-6)


def test_rows_before_nms_are_kept(toy_yolo: Make, tmp_path: Path) -> None:
    beside = _ends(toy_yolo(), "INMS", ["output0"], "mmdeploy")
    beside.graph.output.append(_value("output0", [1, ROWS, WIDTH]))
    for model in (_ends(toy_yolo(), "INMS", ["output0"], "mmdeploy"), beside):
        export(model, tmp_path)
        np.testing.assert_array_equal(exported(tmp_path), run(toy_yolo())[0])
    maps = _ends(_maps(), "YoloLayer_TRT", ["conv8", "conv16", "conv32"])
    assert "maps of a head before its decoding" in refused(maps, tmp_path).message
    export(maps, tmp_path, anchors=ANCHORS_TEXT)
    np.testing.assert_allclose(exported(tmp_path), _decoded(run(_maps())), rtol=1e-5, atol=1e-4)


def test_plug_ins_are_named(toy_yolo: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends with the node `end` \(EfficientNMS_TRT, domain `TRT`\)") as found:
        export(_ends(_parts(toy_yolo()), "EfficientNMS_TRT", ["nms_boxes", "products", "grid"], "TRT"), tmp_path)
    assert "`--end2end`" in str(found.value.hint)
    toy = toy_yolo()
    _add(toy, "DCNv2", ["output0"], "deformed", domain="mine")
    toy.graph.output[0].CopyFrom(_value("deformed", [1, ROWS, WIDTH]))
    error = refused(toy, tmp_path)
    assert "(DCNv2, domain `mine`) is not an ONNX operator" in error.message


@pytest.fixture
def field(data: Path) -> Path:
    """The folder of files from public threads, beside the data."""
    folder = data.parent / "field" / "models"
    if not folder.is_dir():
        pytest.skip("no files from public threads: expected field/models beside the test data")
    return folder


@pytest.mark.parametrize("name", ["g2_raw5", "g2_raw4", "g2_raw4_sigmoid", "g2_squeezed", "g2_transposed",
                                  "g3_declared", "g3_nodomain"])  # fmt: skip
def test_files_from_public_threads(name: str, field: Path, tmp_path: Path) -> None:
    """All are the network of g2_squeezed, whose rows the exporter of the file decoded."""
    options = {"anchors": ANCHORS_TEXT} if "raw" in name else {}
    export(field / f"{name}.onnx", tmp_path, BuildRequest("fp32", 1, 128, 128), **options)
    expected = run(field / "g2_squeezed.onnx", 128)[0]
    np.testing.assert_allclose(exported(tmp_path, 128)[0], expected, rtol=1e-5, atol=2e-4)
