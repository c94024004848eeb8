"""ONNX files of many makers as the source of a build: one small network, dressed differently each time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from yolotrt_core.errors import StageError, UsageError, YolotrtError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.plugin.options import option_fields
from yolotrt_core.plugin.stages import SourceInfo
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, ShapeRange
from yolotrt_onnx import yolotrt_select_exporter
from yolotrt_onnx.options import OnnxSourceOptions
from yolotrt_onnx.stages import OnnxExporter

REQUEST = BuildRequest("fp32", 1, 64, 64)
ROWS, WIDTH, CELLS = 512, 8, 16  # two anchors at stride 4
Make = Callable[..., Any]


@pytest.fixture
def toy_yolo(toy_yolo: Make) -> Make:
    """The shared network with a name for each of its three classes."""

    def make(**settings: Any) -> Any:
        model = toy_yolo(**settings)
        helper.set_model_props(model, {"names": "{0: 'a', 1: 'b', 2: 'c'}", "stride": "4"})
        return model

    return make


def export(model: Any, folder: Path, request: BuildRequest = REQUEST, **options: Any) -> ModelSpec:
    path = folder / "given.onnx"
    if isinstance(model, Path):
        path = model
    else:
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    source = ModelSource(path, sha256_of(path), path.stem)
    return OnnxExporter().export(source, request, OnnxSourceOptions(**options), folder)


def answer(model: Any, images: NDArray[Any], output: str = "output0") -> NDArray[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {session.get_inputs()[0].name: images})[0])


def sample_images(batch: int = 1, size: int = 64) -> NDArray[np.float32]:
    return np.random.default_rng(3).random((batch, 3, size, size), dtype=np.float32)


def exported(folder: Path) -> Any:
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["images", "output0"]
    return model


def refused(model: Any, folder: Path, request: BuildRequest = REQUEST, **options: Any) -> YolotrtError:
    with pytest.raises((UsageError, StageError)) as told:
        export(model, folder, request, **options)
    assert "\n" not in told.value.message
    return told.value


def test_a_file_in_our_layout_keeps_its_nodes(toy_yolo: Make, tmp_path: Path) -> None:
    toy = toy_yolo()
    spec = export(toy, tmp_path)
    model = exported(tmp_path)
    assert list(model.graph.node) == list(toy.graph.node)
    assert (spec.labels, spec.strides, spec.head) == (("a", "b", "c"), (4,), "yolov5")
    assert spec.outputs[0].shape == (1, ROWS, WIDTH)
    np.testing.assert_array_equal(answer(model, sample_images()), answer(toy, sample_images()))
    with np.load(tmp_path / "reference.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["output0"], answer(toy, stored["images"]))
    props = {p.key: p.value for p in model.metadata_props}
    assert (props["stride"], props["strides"], props["imgsz"], props["task"]) == ("4", "[4]", "[64, 64]", "detect")


def _rename(model: Any, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new if name == old else name
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name


def _channels_last(model: Any) -> Any:
    _rename(model, "images", "chw")
    model.graph.node.insert(0, helper.make_node("Transpose", ["x"], ["chw"], perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 64, 3]))
    return model


def _half(model: Any) -> Any:
    from yolotrt_onnx.precision_cast import Retyping, retype, shape_nodes

    retype(model, Retyping(TensorProto.FLOAT16, frozenset(shape_nodes(model)), low_inputs=True, low_outputs=True))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    return model


def _other_names(model: Any) -> Any:
    """Names of ours used inside for something else."""
    _rename(model, "images", "x:0")
    _rename(model, "output0", "boxes")
    _rename(model, "stem_out", "images")
    _rename(model, "deep_out", "output0")
    return model


def _more_outputs(model: Any) -> Any:
    """As YOLOv5 before v7.0 exports: the raw maps of each level too."""
    model.graph.node.append(helper.make_node("Relu", ["levels"], ["map"]))
    model.graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 2, 8, CELLS, CELLS]))
    return model


def _like_tensorflow(model: Any) -> Any:
    """Boxes by width and height, a cell's anchors side by side."""
    _rename(model, "output0", "ours")
    constants = {
        "fractions": np.array([1 / 64] * 4 + [1] * 4, np.float32),
        "by_anchor": np.array([1, 2, CELLS * CELLS, WIDTH]),
        "flat_again": np.array([1, ROWS, WIDTH]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["ours", "fractions"], ["smaller"]),
            helper.make_node("Reshape", ["smaller", "by_anchor"], ["apart"]),
            helper.make_node("Transpose", ["apart"], ["cells"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["cells", "flat_again"], ["output0"]),
        ]
    )
    model.graph.output[0].name = "output0"
    return model


@pytest.mark.parametrize(
    ("dress", "pixels"),
    [(_channels_last, 0), (_other_names, 0), (_more_outputs, 0), (_like_tensorflow, 1e-4), (_half, 1.0)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_dress_same_network(dress: Callable[[Any], Any], pixels: float, toy_yolo: Make, tmp_path: Path) -> None:
    spec = export(dress(toy_yolo()), tmp_path)
    assert spec.inputs[0].dtype == spec.outputs[0].dtype == "float32"
    assert spec.inputs[0].shape == (1, 3, 64, 64)
    want, have = answer(toy_yolo(), sample_images()), answer(exported(tmp_path), sample_images())
    assert have.dtype == np.float32
    assert np.abs(have - want).max() <= pixels


def test_what_is_declared_must_hold(toy_yolo: Make, tmp_path: Path) -> None:
    export(_like_tensorflow(toy_yolo()), tmp_path, rows="cell", units="normalised", strides="4")
    assert np.abs(answer(exported(tmp_path), sample_images()) - answer(toy_yolo(), sample_images())).max() <= 1e-4
    assert "with rows anchor" in refused(_like_tensorflow(toy_yolo()), tmp_path, rows="anchor").message
    assert "--onnx-strides" in refused(toy_yolo(), tmp_path, strides="four").message


def test_free_dimensions(toy_yolo: Make, tmp_path: Path) -> None:
    toy = toy_yolo(dynamic=True)
    spec = export(toy, tmp_path, dataclasses.replace(REQUEST, batch=2))
    assert spec.inputs[0].shape == (2, 3, 64, 64)
    assert spec.outputs[0].shape == (2, ROWS, WIDTH)
    spec = export(toy, tmp_path, dataclasses.replace(REQUEST, dynamic=True))
    assert spec.inputs[0].shape == ("batch", 3, "height", "width")
    assert spec.outputs[0].shape == ("batch", "rows", WIDTH)
    for images in (sample_images(3), sample_images(1, 96)):
        np.testing.assert_array_equal(answer(exported(tmp_path), images), answer(toy, images))
    toy.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    toy.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 64
    spec = export(toy, tmp_path, dataclasses.replace(REQUEST, dynamic=True))
    assert spec.inputs[0].shape == ("batch", 3, 64, 64)
    assert spec.outputs[0].shape == ("batch", ROWS, WIDTH)


def test_sizes_that_the_file_does_not_have(toy_yolo: Make, tmp_path: Path) -> None:
    err = refused(toy_yolo(), tmp_path, BuildRequest("fp32", 4, 96, 96))
    assert "1 x 64 x 64, but 4 x 96 x 96 was requested" in err.message
    assert err.hint == "pass `--batch 1 --imgsz 64,64`"
    err = refused(toy_yolo(), tmp_path, dataclasses.replace(REQUEST, dynamic=True))
    assert "fixes its input to 1 x 64 x 64" in err.message


def test_quantized_files_pass_through(toy_yolo: Make, tmp_path: Path) -> None:
    toy = toy_yolo()
    constants = {"q_scale": np.float32(0.02), "q_zero": np.int8(0)}
    toy.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    conv = next(n for n in toy.graph.node if n.name == "deep_conv")
    place = list(toy.graph.node).index(conv)
    for operator, before, after in (("QuantizeLinear", "down_out", "q"), ("DequantizeLinear", "q", "dq")):
        toy.graph.node.insert(place, helper.make_node(operator, [before, "q_scale", "q_zero"], [after], name=after))
        place += 1
    conv.input[0] = "dq"
    export(toy, tmp_path)
    assert list(exported(tmp_path).graph.node) == list(toy.graph.node)


def test_names(toy_yolo: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = toy_yolo()
    for text in ("['a', 'b', 'c']", '{"0": "a", "1": "b", "2": "c"}', "{2: 'c', 0: 'a', 1: 'b'}"):
        helper.set_model_props(toy, {"names": text})
        assert export(toy, tmp_path).labels == ("a", "b", "c")
    assert not caplog.records
    for text in ("__import__('os').system('true')", "", "{0: 'a', 7: 'b', 1: 'c'}"):
        helper.set_model_props(toy, {"names": text})
        assert export(toy, tmp_path).labels == ("class0", "class1", "class2")
    assert "--onnx-names" in caplog.text
    helper.set_model_props(toy, {"names": "['a', 'b']"})
    assert "has 3 classes, but the metadata of `given.onnx` has names for 2" in refused(toy, tmp_path).message
    file = tmp_path / "names.txt"
    file.write_text("x\ny\nz\n")
    assert export(toy, tmp_path, names=file).labels == ("x", "y", "z")


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], *weights: Any) -> Any:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _value(name: str, shape: list[int], dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def test_what_is_no_image_in_or_no_boxes_out(toy_yolo: Make, tmp_path: Path) -> None:
    classifier = _model(
        [helper.make_node("GlobalAveragePool", ["x"], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["y"])],
        [_value("x", [1, 3, 64, 64])],
        [_value("y", [1, 3])],
    )
    assert "expected one float output" in refused(classifier, tmp_path).message
    for shape, dtype in (([1, 3, 64], TensorProto.FLOAT), ([1, 3, 64, 64], TensorProto.INT8), ([1, 4, 64, 64], 1)):
        wrong = _model([helper.make_node("Identity", ["x"], ["y"])], [_value("x", shape, dtype)],
                       [_value("y", shape, dtype)])  # fmt: skip
        assert "expected one input, float or uint8 images" in refused(wrong, tmp_path).message
    two = toy_yolo()
    two.graph.node.append(helper.make_node("Identity", ["output0"], ["again"]))
    two.graph.output.append(_value("again", [1, ROWS, WIDTH]))
    assert refused(two, tmp_path).hint == "choose it with `--onnx-output NAME`"
    assert "no output `none`" in refused(two, tmp_path, output="none").message
    export(two, tmp_path, output="again")
    np.testing.assert_array_equal(answer(exported(tmp_path), sample_images()), answer(toy_yolo(), sample_images()))
    raw = toy_yolo()
    raw.graph.node.append(helper.make_node("Exp", ["output0"], ["undecoded"]))
    raw.graph.output[0].CopyFrom(_value("undecoded", [1, ROWS, WIDTH]))
    assert "do not match YOLOv5 boxes" in refused(raw, tmp_path).message


def _columns(toy: Any) -> Any:
    toy.graph.node.append(helper.make_node("Transpose", ["output0"], ["columns"], perm=[0, 2, 1]))
    toy.graph.output[0].CopyFrom(_value("columns", [1, WIDTH, ROWS]))
    return toy


def test_another_head_needs_its_name(toy_yolo: Make, tmp_path: Path) -> None:
    """Anchor-free heads give a column for each box; a postprocessor of someone's may decode them."""
    named = _columns(toy_yolo())
    helper.set_model_props(named, {"names": "['a', 'b', 'c', 'd']", "stride": "16"})
    err = refused(named, tmp_path)
    assert "anchor-free" in err.message
    assert "--onnx-head" in str(err.hint)
    spec = export(named, tmp_path, head="yolov8")
    assert (spec.head, spec.strides, len(spec.labels)) == ("yolov8", (16,), 4)
    assert spec.outputs[0].shape == (1, WIDTH, ROWS)
    np.testing.assert_array_equal(
        answer(exported(tmp_path), sample_images()), answer(toy_yolo(), sample_images()).transpose(0, 2, 1)
    )
    helper.set_model_props(named, {"names": ""})
    assert "has no class names" in refused(named, tmp_path, head="yolov8").message
    told = next(field.help for field in option_fields(OnnxSourceOptions, "onnx") if field.name == "names")
    assert told.endswith("else numbers for a YOLOv5 head and an error for any other")


def test_damaged_files(toy_yolo: Make, tmp_path: Path) -> None:
    whole = toy_yolo().SerializeToString()
    for data in (whole[:1000], whole[:-100], b"", b"\x08\x08 text", b"PK\x03\x04"):
        assert isinstance(refused(data, tmp_path), UsageError)
    invalid = toy_yolo()
    invalid.graph.node[3].input[0] = "nowhere"
    assert "not a valid ONNX" in refused(invalid, tmp_path).message
    unknown = toy_yolo()
    unknown.graph.node[-1].op_type = "NoSuchOperator"
    assert "NoSuchOperator" in refused(unknown, tmp_path).message
    apart = tmp_path / "apart.onnx"
    onnx.save(toy_yolo(), apart, save_as_external_data=True, size_threshold=0, location="weights.bin")
    assert "uses external data" in refused(apart, tmp_path).message


def test_sources_are_known_by_content(toy_yolo: Make, tmp_path: Path) -> None:
    def chosen(name: str, data: bytes) -> str | None:
        path = tmp_path / name
        path.write_bytes(data)
        return yolotrt_select_exporter(ModelSource(path, "", "m"))

    assert chosen("model.bin", toy_yolo().SerializeToString()) == "onnx"
    assert chosen("text.onnx", b"no model") == "onnx"  # so that the error says what it is
    assert chosen("checkpoint.onnx", b"PK\x03\x04") is None
    assert chosen("saved_model.pb", b"\x08\x01\x12\x00") is None
    assert chosen("empty.bin", b"") is None
    assert yolotrt_select_exporter(ModelSource(tmp_path, "", "m")) is None


def test_the_size_to_build_for(toy_yolo: Make, tmp_path: Path) -> None:
    def native(model: Any) -> tuple[int, int] | None:
        path = tmp_path / "m.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return OnnxExporter().inspect(ModelSource(path, "", "m")).imgsz

    assert native(toy_yolo(size=96)) == (96, 96)
    assert native(_channels_last(toy_yolo())) == (64, 64)
    free = toy_yolo(dynamic=True)
    helper.set_model_props(free, {"imgsz": "[128, 160]"})
    assert native(free) == (128, 160)
    helper.set_model_props(free, {"imgsz": "640"})
    assert native(free) is None
    assert native(b"no model") is None


def test_a_build_takes_the_file_at_its_own_size(toy_yolo: Make, tmp_path: Path) -> None:
    from yolotrt_core.api import build

    path = tmp_path / "toy.onnx"
    path.write_bytes(toy_yolo(size=96).SerializeToString())
    engine = build(path, precision="fp32", builder="onnxruntime", store=tmp_path / "store", out=tmp_path / "out")
    assert engine.spec.model.inputs[0].shape == (1, 3, 96, 96)
    assert engine.steps[0].step.identity.name == "onnx"
    again = build(path, precision="fp32", builder="onnxruntime", store=tmp_path / "store", out=tmp_path / "out")
    assert again.from_cache


@pytest.mark.slow
def test_our_own_export_is_taken_back(data: Path, tmp_path: Path) -> None:
    """What the torch exporter wrote builds from the file alone, to the same graph."""
    pytest.importorskip("torch", reason="the exporter needs torch (extra `torch`)")
    from yolotrt_torch.options import TorchOptions
    from yolotrt_torch.stages import TorchExporter

    weights = data / "weights" / "helmet_yolov5n.pt"
    first = tmp_path / "first"
    first.mkdir()
    source = ModelSource(weights, sha256_of(weights), "helmet")
    request = BuildRequest("fp32", 1, 640, 640)
    spec = TorchExporter().export(source, request, TorchOptions(), first)
    again = export(first / "model.onnx", tmp_path, request)
    assert (again.labels, again.strides, again.inputs, again.outputs) == (
        spec.labels, spec.strides, spec.inputs, spec.outputs,
    )  # fmt: skip
    assert list(exported(tmp_path).graph.node) == list(onnx.load(first / "model.onnx").graph.node)
    with np.load(first / "reference.npz") as torch, np.load(tmp_path / "reference.npz") as ours:
        found = answer(exported(tmp_path), torch["images"])
        assert np.linalg.norm(found - torch["output0"]) <= 1e-5 * np.linalg.norm(torch["output0"])
        assert ours["output0"].shape == torch["output0"].shape


def test_what_is_no_model_holds_no_precision(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for path in (tmp_path, tmp_path / "empty.onnx"):
        assert OnnxExporter().inspect(ModelSource(path, "0" * 64, "x")) == SourceInfo()


def _six_times(toy_yolo: Make) -> Any:
    """The toy with free sizes and a branch that shrinks it 64 times, upsampled and joined again, without detections."""
    model = toy_yolo(dynamic=True)
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    names = ["down_out", *(f"coarse_{i}" for i in range(4))]
    made = [helper.make_node("MaxPool", [a], [b], **pool) for a, b in itertools.pairwise(names)]
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 16, 16], np.float32), "sixteen"))
    made.append(helper.make_node("Resize", [names[-1], "", "sixteen"], ["fine"], mode="nearest"))
    made.append(helper.make_node("Add", ["fine", "down_out"], ["both"]))
    at = next(i for i, n in enumerate(model.graph.node) if "down_out" in n.output)
    for node in model.graph.node:
        if node.op_type == "Concat" and "down_out" in node.input:
            node.input[list(node.input).index("down_out")] = "both"
    for place, node in enumerate(made):
        model.graph.node.insert(at + 1 + place, node)
    return model


def test_coarser_levels_removed(toy_yolo: Make, tmp_path: Path) -> None:
    """The only head has stride 4, but a map of 64 pixels a cell is joined again: onnxruntime refuses 96 pixels."""
    model = _six_times(toy_yolo)
    assert answer(model, sample_images(1, 128)).shape == (1, 2 * 32 * 32, WIDTH)
    with pytest.raises(Exception, match="Add"):
        answer(model, sample_images(1, 96))
    profile = ShapeRange((1, 64, 64), (1, 64, 128), (2, 128, 192))
    spec = export(model, tmp_path, BuildRequest("fp32", 1, 64, 128, True, (profile,)))
    assert (spec.strides, spec.network_stride, spec.size_step) == ((4,), 64, 64)
    assert answer(exported(tmp_path), sample_images(1, 192)).shape == (1, 2 * 48 * 48, WIDTH)
    told = refused(model, tmp_path, BuildRequest("fp32", 1, 64, 96))
    assert "multiples of 64 pixels, found 64 x 96" in told.message and "`64,128`" in str(told.hint)
    assert export(toy_yolo(dynamic=True), tmp_path, dataclasses.replace(REQUEST, dynamic=True)).size_step == 32
    assert export(toy_yolo(), tmp_path).size_step == 4  # the file's own size is right


def test_weights_as_inputs(toy_yolo: Make, tmp_path: Path) -> None:
    model = toy_yolo()
    for weight in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    model.ir_version = 3  # as old exporters wrote it, where weights have to be inputs
    export(model, tmp_path)
    np.testing.assert_array_equal(answer(exported(tmp_path), sample_images()), answer(model, sample_images()))


def test_nodes_in_any_order(toy_yolo: Make, tmp_path: Path) -> None:
    """onnxruntime and TensorRT run such files; so does a subgraph that reads a tensor made later in the file."""
    model = toy_yolo()
    branch = helper.make_graph([helper.make_node("Neg", ["raw"], ["turned"])], "t", [], [_value("turned", None)])
    other = helper.make_graph([helper.make_node("Identity", ["raw"], ["same"])], "f", [], [_value("same", None)])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=other))
    for node in model.graph.node:
        if node.op_type == "Reshape" and "raw" in node.input:
            node.input[0] = "chosen"
    expected = toy_yolo()
    for node in expected.graph.node:
        if node.op_type == "Reshape" and "raw" in node.input:
            node.input[0] = "chosen"
            expected.graph.node.insert(
                list(expected.graph.node).index(node), helper.make_node("Neg", ["raw"], ["chosen"])
            )
            break
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    export(model, tmp_path)
    np.testing.assert_allclose(
        answer(exported(tmp_path), sample_images()), answer(expected, sample_images()), rtol=1e-6
    )
    model.graph.node.append(helper.make_node("Identity", ["chosen"], ["round"]))
    for node in model.graph.node:
        if "stem" in node.input:
            node.input[0] = "round"
    assert "needs its own output" in refused(model, tmp_path).message
