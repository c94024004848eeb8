"""The exported ONNX against upstream's own answers, and against the network that it came from."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import upstream_layout as layout

from arrays import relative_l2
from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.export.reference_input import reference_images
from yolotrt_core.inference.letterbox import preprocess
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec, ShapeRange
from yolotrt_torch import yolotrt_select_exporter
from yolotrt_torch.checkpoint import read_checkpoint
from yolotrt_torch.model_builder import network_from_checkpoint
from yolotrt_torch.options import TorchOptions
from yolotrt_torch.stages import TorchExporter

STATIC = BuildRequest("fp16", 1, 64, 96)
DYNAMIC = BuildRequest("fp16", 1, 64, 96, True, (ShapeRange((1, 32, 32), (2, 64, 96), (4, 128, 128)),))


def source_of(path: Path) -> ModelSource:
    return ModelSource(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stem)


def export(path: Path, out: Path, request: BuildRequest = STATIC, **options: Any) -> ModelSpec:
    out.mkdir(exist_ok=True)
    return TorchExporter().export(source_of(path), request, TorchOptions(**options), out)


def run(model: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["output0"], {"images": images})[0]
    return found


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout.save(tmp_path_factory.mktemp("modern") / "modern.pt")


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layout.save(tmp_path_factory.mktemp("early") / "early.pt", layout.EARLY, legacy=True)


@pytest.fixture(params=["modern", "early"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.mark.parametrize("name", ["yolov5n", "helmet_yolov5n", "waste_yolov5n"])
def test_official_and_foreign_checkpoints_against_upstream(name: str, data: Path, tmp_path: Path) -> None:
    import cv2

    spec = export(data / "weights" / f"{name}.pt", tmp_path, BuildRequest("fp32", 1, 640, 640))
    frame = cv2.imread(str(data / "coco/images/val/000000000139.jpg"))
    images, _ = preprocess([frame], (640, 640))
    with np.load(data / "reference" / f"{name.removesuffix('_yolov5n')}_raw_000000000139.npz") as arrays:
        expected = arrays["output0"]
    assert relative_l2(run(tmp_path / "model.onnx", images), expected) <= 1e-6
    assert spec.outputs[0].shape == expected.shape
    assert spec.strides == (8, 16, 32)
    assert spec.anchors[0] == pytest.approx(np.array([(10, 13), (16, 30), (33, 23)]), abs=0.01)


def test_the_static_graph_of_yolov5n_is_small(data: Path, tmp_path: Path) -> None:
    onnxsim = pytest.importorskip("onnxsim")
    export(data / "weights" / "yolov5n.pt", tmp_path, BuildRequest("fp32", 1, 640, 640))
    simplified, valid = onnxsim.simplify(str(tmp_path / "model.onnx"))
    assert valid
    assert len(simplified.graph.node) <= len(onnx.load(str(tmp_path / "model.onnx")).graph.node) <= 230


def test_the_reference_is_the_network_before_any_folding(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path, BuildRequest("fp16", 2, 64, 96))
    with np.load(tmp_path / "reference.npz") as arrays:
        images, expected = arrays["images"], arrays["output0"]
        tolerance = float(arrays["tolerance"])
    assert images.dtype == expected.dtype == np.float32 and images.shape == (2, 3, 64, 96)
    network = network_from_checkpoint(read_checkpoint(checkpoint))
    with torch.inference_mode():
        eager = network(torch.from_numpy(images[:1])).numpy()
        exact = network.double()(torch.from_numpy(images).double()).numpy()
    assert relative_l2(expected, exact) <= 6e-8  # rounded to float32
    assert tolerance == pytest.approx(2 * relative_l2(eager, exact[:1]), rel=1e-6)
    assert relative_l2(run(tmp_path / "model.onnx", images), expected) <= 1e-6


SHAPES = [(1, 32, 32), (2, 64, 96), (3, 128, 64), (1, 160, 192)]


@pytest.mark.parametrize(
    ("made", "exporter"),
    [
        ("modern", "torchscript"),
        ("early", "torchscript"),
        pytest.param("modern", "dynamo", marks=pytest.mark.slow),
    ],
)
def test_dynamic_graph_at_several_shapes(
    made: str, exporter: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint: Path = request.getfixturevalue(made)
    spec = export(checkpoint, tmp_path, DYNAMIC, exporter=exporter)
    assert spec.inputs[0].shape == ("batch", 3, "height", "width")
    assert spec.outputs[0].shape == ("batch", "rows", spec.outputs[0].shape[2])
    network = network_from_checkpoint(read_checkpoint(checkpoint))
    for batch, height, width in SHAPES:
        images = reference_images(batch, height, width)
        with torch.inference_mode():
            expected = network(torch.from_numpy(images)).numpy()
        assert relative_l2(run(tmp_path / "model.onnx", images), expected) <= 1e-6, (batch, height, width)


def test_dynamic_graph_needs_few_nodes_more(modern: Path, tmp_path: Path) -> None:
    """The shape of the input is read once per axis and level, not counted up at run time."""
    counts = []
    for name, request in (("static", STATIC), ("dynamic", DYNAMIC)):
        export(modern, tmp_path / name, request)
        counts.append(len(onnx.load(str(tmp_path / name / "model.onnx")).graph.node))
    assert counts[1] - counts[0] <= 2 * 6


@pytest.mark.slow
def test_static_graph_of_the_newer_exporter(early: Path, tmp_path: Path) -> None:
    export(early, tmp_path, STATIC, exporter="dynamo")
    with np.load(tmp_path / "reference.npz") as arrays:
        assert relative_l2(run(tmp_path / "model.onnx", arrays["images"]), arrays["output0"]) <= 1e-6
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert str(Path(torch.__file__).parent) not in str(model)  # no stack traces of this machine


@pytest.mark.parametrize("opset", [15, 17, 20])
def test_opset_option(opset: int, modern: Path, tmp_path: Path) -> None:
    for name, request in (("static", STATIC), ("dynamic", DYNAMIC)):
        export(modern, tmp_path / name, request, opset=opset)
        model = onnx.load(str(tmp_path / name / "model.onnx"))
        assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
        with np.load(tmp_path / name / "reference.npz") as arrays:
            assert relative_l2(run(tmp_path / name / "model.onnx", arrays["images"]), arrays["output0"]) <= 1e-6


def test_metadata_and_spec_say_the_same(modern: Path, tmp_path: Path) -> None:
    spec = export(modern, tmp_path)
    model = onnx.load(str(tmp_path / "model.onnx"))
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts["stride"] == "16" and ast.literal_eval(facts["strides"]) == [8, 16]
    assert ast.literal_eval(facts["names"]) == {0: "kind 0", 1: "kind 1", 2: "kind 2"}
    assert facts["task"] == "detect" and ast.literal_eval(facts["imgsz"]) == [64, 96]
    assert facts["source_sha256"] == hashlib.sha256(modern.read_bytes()).hexdigest()
    assert facts["torch"] == torch.__version__ and facts["yolotrt"]
    assert {k: facts[k] for k in spec.provenance} == dict(spec.provenance)
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {t.name: list(t.shape) for t in (*spec.inputs, *spec.outputs)}
    assert shapes == {"images": [1, 3, 64, 96], "output0": [1, 3 * (8 * 12 + 4 * 6), 8]}
    assert spec.labels == ("kind 0", "kind 1", "kind 2")
    assert (spec.strides, spec.head) == ((8, 16), "yolov5")
    assert np.allclose(spec.anchors, np.reshape(layout.MODERN["anchors"], (2, 3, 2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "reference.npz"]  # no external data


def test_the_same_checkpoint_gives_the_same_bytes_under_any_name(modern: Path, tmp_path: Path) -> None:
    other = tmp_path / "other name.pt"
    other.write_bytes(modern.read_bytes())
    for name, path in (("first", modern), ("second", other)):
        export(path, tmp_path / name)
    for file in ("model.onnx", "reference.npz"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_nothing_reaches_standard_output(modern: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(modern, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_failed_export_is_one_line(modern: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **settings: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(StageError, match=r"cannot export .* RuntimeError: first line$"):
        export(modern, tmp_path)


@pytest.mark.parametrize(
    ("request_", "message", "hint"),
    [
        (BuildRequest("fp16", 1, 60, 96), r"multiples of 32 pixels, found 60 x 96", "`64,96`"),
        (BuildRequest("fp16", 1, 64, 1), r"multiples of 32 pixels, found 64 x 1", "`64,32`"),
        (
            BuildRequest("fp16", 1, 64, 64, True, (ShapeRange((1, 24, 32), (1, 64, 64), (1, 64, 64)),)),
            "found 24 x 32",
            "`32,32`",
        ),
        (
            BuildRequest("fp16", 1, 64, 64, True, (ShapeRange((1, 32, 32), (1, 64, 64), (1, 64, 16384)),)),
            "larger than 8192 pixels",
            None,
        ),
    ],
)
def test_sizes_that_the_strides_do_not_divide(
    request_: BuildRequest, message: str, hint: str | None, modern: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        export(modern, tmp_path, request_)
    assert hint is None or (caught.value.hint and hint in caught.value.hint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_coarser_levels_removed(dynamic: bool, exporter: str, tmp_path: Path) -> None:
    """The backbone shrinks 64 times, but the only head has stride 8; upstream's exporter needs multiples of 64."""
    shrinking = [[-1, 1, "Conv", [32, 3, 2]] for _ in range(6)]
    joined = [[-1, 1, "nn.Upsample", ["None", 8, "nearest"]], [[-1, 2], 1, "Concat", [1]], [-1, 1, "Conv", [32, 1, 1]]]
    head = [*joined, [[8], 1, "Detect", ["nc", "anchors"]]]
    config = {**layout.MODERN, "anchors": layout.MODERN["anchors"][:1], "backbone": shrinking, "head": head}
    path = layout.save(tmp_path / "fine.pt", config)
    ranges = (ShapeRange((1, 64, 64), (1, 64, 128), (2, 128, 192)),) if dynamic else ()
    spec = export(path, tmp_path / "out", BuildRequest("fp32", 1, 64, 128, dynamic, ranges), exporter=exporter)
    assert (spec.strides, spec.network_stride, spec.size_step) == ((8,), 64, 64)
    network = network_from_checkpoint(read_checkpoint(path))
    for size in [(64, 128), *([(128, 192)] if dynamic else [])]:
        images = reference_images(1, *size)
        expected = network(torch.from_numpy(images)).numpy()
        assert expected.shape[1] == 3 * (size[0] // 8) * (size[1] // 8)
        assert relative_l2(run(tmp_path / "out" / "model.onnx", images), expected) < 1e-5
    with pytest.raises(UsageError, match="multiples of 64 pixels, found 64 x 96"):
        export(path, tmp_path / "refused", BuildRequest("fp32", 1, 64, 96))


def test_options_that_the_newer_exporter_cannot_do(
    modern: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="writes opset 18 and later"):
        export(modern, tmp_path, exporter="dynamo", opset=17)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs onnxscript"):
        export(modern, tmp_path, exporter="dynamo")


def test_an_output_that_is_not_yolov5s_is_refused(tmp_path: Path) -> None:
    network = layout.lively(layout.MODERN)
    with torch.no_grad():
        network.model[1].bn.weight.fill_(3e38)  # finite weights, an answer that is not
    path = layout.save(tmp_path / "m.pt", network=network)
    with pytest.raises(UsageError, match=r"output is not YOLOv5's: .*NaN or infinite"):
        export(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "index", "line", "words"),
    [
        ("backbone", 3, [-1, 1, "Conv", [64, 3, 2, -1]], "negative padding"),
        ("backbone", 3, [[-1], 1, "Conv", [64, 3, 2]], "invalid combination of arguments"),
        ("head", 0, [-1, 1, "nn.Upsample", ["None", 2, "nearest", 0]], "align_corners"),
        ("head", 0, [-1, 1, "nn.Upsample", ["None", 4, "nearest"]], "Sizes of tensors must match"),
    ],
)
def test_a_yaml_whose_network_cannot_run_is_refused(
    part: str, index: int, line: Any, words: str, tmp_path: Path
) -> None:
    config = {**layout.MODERN, part: [*layout.MODERN[part][:index], line, *layout.MODERN[part][index + 1 :]]}
    with pytest.raises(UsageError, match="that the checkpoint's yaml describes cannot run") as refused:
        export(layout.save(tmp_path / "odd.pt", config), tmp_path / "out")
    assert words in refused.value.message


def test_bad_checkpoints_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_text("no weights")
    with pytest.raises(UsageError, match="found a text file"):
        export(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "selected"),
    [
        ("a.pt", b"some text", "torch"),
        ("a.pth", b"", "torch"),
        ("a.PT", b"\x08\x08\x12\x07pytorch", "torch"),
        ("a.onnx", b"\x08\x08\x12\x07pytorch", None),
        ("a.txt", b"some text", None),
        ("a.bin", b"\x80\x02K\x01.", "torch"),
        ("a.pt", b"\x1c\x00\x00\x00TFL3", None),
        ("a.pt", b"\x89HDF\r\n\x1a\n", None),
        ("a.pt", b"PK\x03\x04 and then nothing", "torch"),
        ("a.zip", b"PK\x03\x04 and then nothing", None),
    ],
)
def test_selection_by_leading_bytes(name: str, content: bytes, selected: str | None, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert yolotrt_select_exporter(ModelSource(path, "", "a")) == selected


def test_selection_of_checkpoints_and_other_archives(modern: Path, early: Path, tmp_path: Path) -> None:
    import zipfile

    for path in (modern, early):
        renamed = tmp_path / f"{path.stem}.weights"
        renamed.write_bytes(path.read_bytes())
        assert yolotrt_select_exporter(source_of(renamed)) == "torch"
    cut = tmp_path / "cut.weights"
    cut.write_bytes(modern.read_bytes()[:5000])
    assert yolotrt_select_exporter(source_of(cut)) == "torch"
    keras = tmp_path / "model.pt"
    with zipfile.ZipFile(keras, "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", "")
    assert yolotrt_select_exporter(source_of(keras)) is None
    assert yolotrt_select_exporter(ModelSource(tmp_path, "", "folder")) is None


def test_the_plugin_itself_loads_no_framework() -> None:
    code = (
        "import sys; from yolotrt_torch.options import TorchOptions; from yolotrt_torch.stages import TorchExporter;"
        "s = TorchExporter(); s.available(); s.fingerprint(TorchOptions());"
        "sys.exit(bool({'torch', 'numpy', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_availability_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TorchExporter().available().ok
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = TorchExporter().available()
    assert not found.ok and "`torch` and `onnx`" in found.reason and "yolotrt-core[torch]" in found.install


def test_fingerprint_names_what_writes_the_graph() -> None:
    assert set(TorchExporter().fingerprint(TorchOptions())) == {"torch", "onnx"}
    assert set(TorchExporter().fingerprint(TorchOptions(exporter="dynamo"))) == {"torch", "onnx", "onnxscript"}
