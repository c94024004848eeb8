"""Classification models as ONNX: the file itself, fed as upstream feeds it, gives the expected values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from yolotrt_core.errors import UsageError
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, ShapeRange
from yolotrt_onnx.options import OnnxSourceOptions
from yolotrt_onnx.stages import OnnxExporter

SIDE, CLASSES = 64, 6
NAMES = {number: f"kind {number}" for number in range(CLASSES)}
MEAN = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
DEVIATION = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
REQUEST = BuildRequest("fp32", 1, SIDE, SIDE)
DYNAMIC = BuildRequest("fp32", 1, SIDE, SIDE, True, (ShapeRange((1, 32, 32), (1, SIDE, SIDE), (4, 128, 128)),))


def classifier(
    *, free: bool = False, end: str = "", before: str = "", half: bool = False, **metadata: Any
) -> onnx.ModelProto:
    """Build a small classification model: two convolutions, the average of the map, a linear layer.

    Args:
        end: operator after it. before: `mean` subtracts a mean and divides in the graph.
    """
    random = np.random.default_rng(7)
    kind, element = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    constants = {
        "w1": random.normal(0, 0.3, (8, 3, 4, 4)),
        "w2": random.normal(0, 0.3, (16, 8, 2, 2)),
        "linear": random.normal(0, 2, (CLASSES, 16)),
        "bias": random.normal(0, 1, CLASSES),
        "mean": MEAN,
        "deviation": DEVIATION,
    }
    first = "centred" if before else "images"
    last = "logits" if end else "output0"
    nodes = [
        helper.make_node("Conv", [first, "w1"], ["a"], strides=[4, 4], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="two"),
        helper.make_node("Conv", ["b", "w2"], ["c"], strides=[2, 2], name="three"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="four"),
        helper.make_node("Flatten", ["d"], ["e"], name="five"),
        helper.make_node("Gemm", ["e", "linear", "bias"], [last], transB=1, name="six"),
    ]
    if before:
        nodes = [
            helper.make_node("Sub", ["images", "mean"], ["shifted"], name="sub"),
            helper.make_node("Div", ["shifted", "deviation"], [first], name="div"),
            *nodes,
        ]
    if end:
        nodes.append(helper.make_node(end, [last], ["output0"], name="end"))
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(v.astype(kind), k) for k, v in constants.items() if k in used]
    shape = ["batch", 3, "height", "width"] if free else [1, 3, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", element, shape)],
        [helper.make_tensor_value_info("output0", element, [shape[0], CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    return model


def export(model: onnx.ModelProto, folder: Path, request: BuildRequest = REQUEST, **options: Any) -> ModelSpec:
    path = folder / "given.onnx"
    path.write_bytes(model.SerializeToString())
    source = ModelSource(path, sha256_of(path), path.stem)
    return OnnxExporter().export(source, request, OnnxSourceOptions(**options), folder)


def run(model: bytes, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (answer,) = session.run(["output0"], {"images": images})
    return answer


def normalized(images: np.ndarray) -> np.ndarray:
    return ((images.astype(np.float64) - MEAN) / DEVIATION).astype(np.float32)


@pytest.mark.parametrize("metadata", [{"names": NAMES, "stride": 32}, {"names": NAMES, "task": "classify"}])
def test_upstreams_export_gets_its_normalization(metadata: dict[str, Any], tmp_path: Path) -> None:
    model = classifier(**metadata)
    spec = export(model, tmp_path)
    assert (spec.task, spec.head, spec.labels) == ("classify", "yolov5_cls", tuple(NAMES.values()))
    assert spec.outputs[0].shape == (1, CLASSES)
    images = reference_images(1, SIDE, SIDE)
    expected = run(model.SerializeToString(), normalized(images))
    np.testing.assert_allclose(run((tmp_path / "model.onnx").read_bytes(), images), expected, rtol=1e-4, atol=1e-5)
    with np.load(tmp_path / "reference.npz") as arrays:
        np.testing.assert_allclose(arrays["output0"], expected, rtol=1e-4, atol=1e-5)
        assert np.array_equal(arrays["images"], images)


def test_free_sizes_and_half_precision(tmp_path: Path) -> None:
    model = classifier(free=True, half=True, names=NAMES)
    spec = export(model, tmp_path, DYNAMIC)
    assert (spec.inputs[0].shape, spec.outputs[0].shape) == (("batch", 3, "height", "width"), ("batch", CLASSES))
    images = reference_images(3, 128, 128)
    expected = run(model.SerializeToString(), normalized(images).astype(np.float16))
    found = run((tmp_path / "model.onnx").read_bytes(), images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize(("before", "normalize"), [("mean", "auto"), ("", "off")])
def test_a_file_that_needs_no_normalization(before: str, normalize: str, tmp_path: Path) -> None:
    model = classifier(before=before, names=NAMES)
    export(model, tmp_path, normalize=normalize)
    images = reference_images(1, SIDE, SIDE)
    expected = run(model.SerializeToString(), images)
    np.testing.assert_allclose(run((tmp_path / "model.onnx").read_bytes(), images), expected, rtol=1e-4, atol=1e-5)


def test_default_size(tmp_path: Path) -> None:
    for name, free, expected in (("free", True, (224, 224)), ("fixed", False, (SIDE, SIDE))):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(classifier(free=free, names=NAMES).SerializeToString())
        assert OnnxExporter().inspect(ModelSource(path, "0" * 64, name)).imgsz == expected


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"names": NAMES, "end": "Softmax"}, {}, "probabilities, expected the values before the softmax"),
        ({"names": {0: "a"}, "task": "classify"}, {}, "has 6 classes, but .* has names for 1"),
        ({"names": NAMES}, {"columns": "classes=2"}, "are for boxes"),
        ({"task": "classify", "names": NAMES}, {"anchors": "1,2/3,4"}, "are for boxes"),
        ({}, {}, "expected one float output .batch, rows.*"),
    ],
)
def test_what_is_refused(model: dict[str, Any], options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as told:
        export(classifier(**model), tmp_path, **options)
    assert told.value.hint or "boxes" in message
    assert bool(model or "--onnx-head yolov5_cls" in str(told.value.hint))


def test_without_names_the_head_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = export(classifier(), tmp_path, head="yolov5_cls")
    assert spec.labels == tuple(f"class{number}" for number in range(CLASSES))
    assert "has no names for its 6 classes" in caplog.text


def test_a_size_that_is_not_a_square_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="central square"):
        export(classifier(free=True, names=NAMES), tmp_path, BuildRequest("fp32", 1, 64, 96, True))
