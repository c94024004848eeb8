"""Every route from TensorFlow to ONNX, on a network whose answer in our layout TensorFlow itself gives."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from keras_yolo import CLASSES, ROWS, SIZE, sample_image
from numpy.typing import NDArray

from yolotrt_core.errors import StageError, UsageError, YolotrtError
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.types import BuildRequest, ModelSource, ModelSpec
from yolotrt_tf import yolotrt_select_exporter
from yolotrt_tf.options import TfOptions
from yolotrt_tf.stages import TfExporter

# Keras 3.15 on NumPy 2.4 warns of itself when the tests make and save models.
pytestmark = [pytest.mark.tf, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

REQUEST = BuildRequest("fp32", 1, SIZE, SIZE)
FILES = ("saved_model", "toy.keras", "toy.h5", "toy.pb", "fp32.tflite")
Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def export(path: Path, out: Path, request: BuildRequest = REQUEST, **options: Any) -> ModelSpec:
    out.mkdir(parents=True, exist_ok=True)
    return TfExporter().export(ModelSource(path, sha256_of(path), path.stem), request, TfOptions(**options), out)


def run(out: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images"]
    return np.asarray(session.run(["output0"], {"images": images})[0])


def sample_images(batch: int = 1, seed: int = 9) -> NDArray[np.float32]:
    return np.ascontiguousarray(sample_image(batch, seed=seed).transpose(0, 3, 1, 2))


def reference(out: Path) -> Mapping[str, NDArray[Any]]:
    with np.load(out / "reference.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("file", FILES)
def test_every_format_computes_what_tensorflow_does(file: str, models: Path, expected: Answer, tmp_path: Path) -> None:
    spec = export(models / file, tmp_path)
    images = sample_images()
    want = expected(images)
    assert np.ptp(want[..., 5:]) > 0.2  # the answers differ enough to notice a mix-up
    assert np.abs(run(tmp_path, images) - want).max() <= 1e-4
    assert spec.inputs[0].shape == (1, 3, SIZE, SIZE)
    assert spec.outputs[0].shape == (1, ROWS, 5 + CLASSES)
    assert (spec.strides, spec.head) == ((8, 16), "yolov5")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    props = {p.key: p.value for p in model.metadata_props}
    assert props["names"] == "{0: 'class0', 1: 'class1', 2: 'class2'}"
    assert (props["stride"], props["task"], props["imgsz"]) == ("16", "detect", f"[{SIZE}, {SIZE}]")
    # One Transpose for each level's rows, two for Keras' way of upsampling; none at the input.
    assert sum(n.op_type == "Transpose" for n in model.graph.node) <= 4
    assert not any(n.op_type == "Transpose" and n.input[0] == "images" for n in model.graph.node)
    stored = reference(tmp_path)
    assert np.abs(stored["output0"] - expected(stored["images"])).max() <= 1e-4


def test_half_precision_weights_compute_what_tensorflow_lite_does(
    models: Path, expected: Answer, tmp_path: Path
) -> None:
    export(models / "fp16.tflite", tmp_path)
    stored = reference(tmp_path)
    found = run(tmp_path, stored["images"])
    assert np.abs(found - stored["output0"]).max() <= 1e-4
    assert 0 < np.abs(found - expected(stored["images"])).max() < 0.2  # the rounding of the weights, in pixels


@pytest.mark.parametrize("file", ["batched_saved_model", "batched.keras", "batched.pb", *FILES])
@pytest.mark.parametrize("dynamic", [False, True])
def test_batches(file: str, dynamic: bool, models: Path, expected: Answer, tmp_path: Path) -> None:
    """Also models that were saved for one image at a time."""
    spec = export(models / file, tmp_path, dataclasses.replace(REQUEST, batch=3, dynamic=dynamic))
    assert spec.inputs[0].shape[0] == ("batch" if dynamic else 3)
    for batch in (1, 3, 5) if dynamic else (3,):
        images = sample_images(batch)
        assert np.abs(run(tmp_path, images) - expected(images)).max() <= 1e-4


@pytest.mark.parametrize("units", ["pixels", "normalised"])
@pytest.mark.parametrize("order", ["anchor", "cell"])
def test_every_layout_becomes_ours(units: str, order: str, expected: Answer, tmp_path: Path) -> None:
    import keras_yolo

    keras_yolo.make(batch=1, units=units, order=order).save(tmp_path / "m.keras")
    export(tmp_path / "m.keras", tmp_path / "found")
    export(tmp_path / "m.keras", tmp_path / "told", rows=order, units=units, strides="8,16")
    for out in ("found", "told"):
        images = sample_images()
        assert np.abs(run(tmp_path / out, images) - expected(images)).max() <= 1e-4
    assert (tmp_path / "found" / "model.onnx").read_bytes() == (tmp_path / "told" / "model.onnx").read_bytes()
    wrong = {"anchor": "cell", "cell": "anchor"}[order]
    with pytest.raises(UsageError, match=f"with rows {wrong}"):
        export(tmp_path / "m.keras", tmp_path / "wrong", rows=wrong)


@pytest.mark.parametrize("file", ["int8.tflite", "uint8io.tflite"])
@pytest.mark.parametrize("quantized", ["keep", "float"])
def test_eight_bit_models(
    file: str, quantized: str, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = export(models / file, tmp_path, quantized=quantized)
    assert spec.inputs[0].dtype == spec.outputs[0].dtype == "float32"
    operators = {n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node}
    assert ({"QuantizeLinear", "DequantizeLinear"} <= operators) == (quantized == "keep")
    assert ("DequantizeLinear" in operators) == (quantized == "keep")
    assert ("--tf-quantized float" in caplog.text) == (quantized == "keep")
    assert ("--tf-quantized float" in spec.provenance.get("zero_points", "")) == (quantized == "keep")
    stored = reference(tmp_path)
    error = np.linalg.norm(run(tmp_path, stored["images"]) - stored["output0"]) / np.linalg.norm(stored["output0"])
    assert error <= float(stored["tolerance"]) / 2
    assert error > 1e-5  # else the reference did not come from the integers


def test_the_same_model_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    """In one process, and in another with other hashes of texts: tf2onnx goes through sets."""
    code = (
        "import sys, warnings; warnings.simplefilter('ignore'); from pathlib import Path\n"
        "from yolotrt_core.export.model_source import sha256_of; from yolotrt_core.types import *\n"
        "from yolotrt_tf.options import TfOptions; from yolotrt_tf.stages import TfExporter\n"
        "for path, out in zip(sys.argv[1::2], map(Path, sys.argv[2::2]), strict=True):\n"
        "    out.mkdir(); source = ModelSource(Path(path), sha256_of(Path(path)), 'm')\n"
        "    TfExporter().export(source, BuildRequest('fp32', 1, 64, 64), TfOptions(), out)"
    )
    command = [sys.executable, "-c", code]
    files = ("saved_model", "fp32.tflite")
    for file in files:
        export(models / file, tmp_path / f"{file}_1")
        export(models / file, tmp_path / f"{file}_2")
        command += [str(models / file), str(tmp_path / f"{file}_3")]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": "7"}, timeout=120)
    for file in files:
        assert len({sha256_of(tmp_path / f"{file}_{n}" / "model.onnx") for n in (1, 2, 3)}) == 1


def test_upsampling_of_tf_image_becomes_the_resize_that_tensorrt_takes(tmp_path: Path) -> None:
    """`tf.image.resize` is what upstream's TensorFlow export uses; compared for whole factors with TensorFlow."""
    import tensorflow as tf

    from yolotrt_core.export.onnx_normalize import rename_tensors, rewrite_resizes
    from yolotrt_tf.loaders import Network, convert_variables_to_constants_v2
    from yolotrt_tf.onnx_conversion import onnx_from_network

    pixels = np.random.default_rng(0).random((1, 3, 5, 3), dtype=np.float32)
    for factor, rewritten in ((2, 1), (3, 1), (1.5, 0)):
        size = (int(3 * factor), int(5 * factor)) if factor != 1.5 else (4, 8)
        function = tf.function(lambda images, size=size: tf.image.resize(images, size, method="nearest"))
        concrete = function.get_concrete_function(tf.TensorSpec((1, 3, 5, 3), tf.float32, "images"))
        frozen = convert_variables_to_constants_v2(concrete)
        network = Network(
            lambda x: x, (1, 3, 5), frozen.inputs[0].name, frozen.outputs[0].name, frozen.graph.as_graph_def()
        )
        model = onnx_from_network(network, tmp_path, (1, 3, 5), 17, "nchw")
        rename_tensors(model, {model.graph.input[0].name: "images", model.graph.output[0].name: "output0"})
        assert rewrite_resizes(model) == rewritten
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, {"images": pixels.transpose(0, 3, 1, 2)})[0]
        np.testing.assert_array_equal(found, concrete(tf.constant(pixels)).numpy())


def test_names(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text, listed, numbered = tmp_path / "names.txt", tmp_path / "list.yaml", tmp_path / "map.yml"
    text.write_text("crack\nhole\n\nscratch \n")
    listed.write_text("nc: 3\nnames: [crack, hole, scratch]\n")
    numbered.write_text("names:\n  2: scratch\n  0: crack\n  1: hole\n")
    for file in (text, listed, numbered):
        assert export(models / "toy.pb", tmp_path, names=file).labels == ("crack", "hole", "scratch")
    assert not caplog.records
    assert export(models / "toy.pb", tmp_path).labels == ("class0", "class1", "class2")
    assert "--tf-names" in caplog.text
    text.write_text("crack\n")
    with pytest.raises(UsageError, match=r"3 classes, .* has names for 1"):
        export(models / "toy.pb", tmp_path, names=text)
    for content, words in (("nc: 3\n", "no class names"), ("a: [\n", "not YAML")):
        listed.write_text(content)
        with pytest.raises(UsageError, match=words):
            export(models / "toy.pb", tmp_path, names=listed)


def test_names_inside_the_model(models: Path, tmp_path: Path) -> None:
    """As upstream's exporters leave them."""
    import shutil
    import zipfile

    names = {0: "crack", 1: "hole", 2: "scratch"}
    lite = tmp_path / "m.tflite"
    shutil.copyfile(models / "fp32.tflite", lite)
    with zipfile.ZipFile(lite, "a") as archive:
        archive.writestr("temp_meta.txt", str({"stride": 32, "names": names}))
    assert export(lite, tmp_path / "a").labels == tuple(names.values())
    folder = tmp_path / "m_saved_model"
    shutil.copytree(models / "saved_model", folder)
    (folder / "metadata.yaml").write_text("names:\n  0: crack\n  1: hole\n  2: scratch\n")
    assert export(folder, tmp_path / "b").labels == tuple(names.values())


def _refused(path: Path, out: Path, request: BuildRequest = REQUEST, **options: Any) -> YolotrtError:
    with pytest.raises((UsageError, StageError)) as told:
        export(path, out, request, **options)
    message = told.value.message
    assert "\n" not in message
    assert len(message) < 700
    return told.value


def test_another_size_is_refused_with_the_one_to_ask_for(models: Path, tmp_path: Path) -> None:
    for file in FILES:
        err = _refused(models / file, tmp_path, dataclasses.replace(REQUEST, height=96, width=128))
        assert "expects images of 64 x 64 pixels, but 96 x 128 was requested" in err.message
        assert err.hint == "pass `--imgsz 64,64`"


def test_damaged_and_foreign_files(models: Path, tmp_path: Path) -> None:
    for file in (*FILES[1:], "int8.tflite"):
        whole = (models / file).read_bytes()
        for part in (0.5, 0.9, 0.99):
            cut = tmp_path / file
            cut.write_bytes(whole[: int(part * len(whole))])
            assert isinstance(_refused(cut, tmp_path), UsageError)
    text = tmp_path / "notes.pb"
    text.write_text("nothing")
    assert "is not a supported TensorFlow model" in _refused(text, tmp_path).message
    assert "pass its folder" in str(_refused(models / "saved_model" / "saved_model.pb", tmp_path).hint)
    empty = tmp_path / "empty_model"
    empty.mkdir()
    (empty / "saved_model.pb").write_bytes(b"")
    _refused(empty, tmp_path)


def test_what_needs_more_than_the_file_is_refused(tmp_path: Path) -> None:
    import keras
    import keras_yolo

    model = keras_yolo.make(batch=1)
    model.save_weights(tmp_path / "only.weights.h5")
    assert "only weights" in str(_refused(tmp_path / "only.weights.h5", tmp_path).hint)

    class Own(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x

    keras.Model(model.inputs, Own()(model.outputs[0])).save(tmp_path / "own.keras")
    assert "model.export" in str(_refused(tmp_path / "own.keras", tmp_path).hint)
    keras.Model(model.inputs, keras.layers.Lambda(lambda x: x)(model.outputs[0])).save(tmp_path / "lambda.keras")
    assert "Lambda" in str(_refused(tmp_path / "lambda.keras", tmp_path).hint)


def test_models_of_another_kind(tmp_path: Path) -> None:
    import keras

    images = keras.Input((64, 64, 3), batch_size=1, name="images")
    pooled = keras.layers.GlobalAveragePooling2D()(images)
    keras.Model(images, pooled).save(tmp_path / "classifier.keras")
    assert (
        "expected one output that is a float tensor of boxes"
        in _refused(tmp_path / "classifier.keras", tmp_path).message
    )
    boxes = keras.layers.Reshape((64, 192))(images)
    keras.Model(images, boxes).save(tmp_path / "other.keras")
    assert "not YOLOv5's boxes" in _refused(tmp_path / "other.keras", tmp_path).message
    keras.Model(images, [boxes, keras.layers.Identity()(boxes)]).save(tmp_path / "two.keras")
    err = _refused(tmp_path / "two.keras", tmp_path)
    assert err.hint == "choose one with `--tf-output NAME`"
    assert "no output `none`" in _refused(tmp_path / "two.keras", tmp_path, output="none").message


def test_bad_options(models: Path, tmp_path: Path) -> None:
    assert "--tf-strides" in _refused(models / "toy.pb", tmp_path, strides="8;16").message
    assert "no signature `predict`" in _refused(models / "saved_model", tmp_path, signature="predict").message
    assert "`serving_default`" in str(_refused(models / "saved_model", tmp_path, signature="predict").hint)


def test_sources_are_known_by_content(models: Path, tmp_path: Path) -> None:
    for file in (*FILES, "int8.tflite"):
        path = models / file
        if path.is_file():  # a name says nothing
            path = tmp_path / "model.bin"
            path.write_bytes((models / file).read_bytes())
        assert yolotrt_select_exporter(ModelSource(path, "", "m")) == "tf"
    (tmp_path / "a.pb").write_text("\n\n")
    (tmp_path / "b.keras").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / "c.tflite").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("a.pb", "b.keras", "c.tflite", "folder", "none"):
        assert yolotrt_select_exporter(ModelSource(tmp_path / name, "", "m")) is None


def test_silent_and_first_in_a_process(models: Path, tmp_path: Path) -> None:
    """TensorFlow writes to both streams past Python where it may."""
    code = (
        "import sys; from pathlib import Path; from yolotrt_core.types import *\n"
        "from yolotrt_tf import yolotrt_select_exporter\n"
        "from yolotrt_tf.options import TfOptions; from yolotrt_tf.stages import TfExporter\n"
        "out, names, *paths = map(Path, sys.argv[1:])\n"
        "for path in paths:\n"
        "    yolotrt_select_exporter(ModelSource(path, '0', 'm')); TfExporter().fingerprint(TfOptions())\n"
        "assert not {'tensorflow', 'keras', 'tf2onnx', 'onnx', 'numpy'} & set(sys.modules)\n"
        "for path in paths:\n"
        "    request, source = BuildRequest('fp32', 1, 64, 64), ModelSource(path, '0', 'm')\n"
        "    TfExporter().export(source, request, TfOptions(names=names), out)"
    )
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path),
        str(names),
        str(models / "saved_model"),
        str(models / "fp32.tflite"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_tensorflow_the_stage_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    monkeypatch.setattr(
        util,
        "find_spec",
        lambda name: None if name in ("tensorflow", "tf2onnx") else util.spec_from_loader(name, None, origin="x"),
    )
    can = TfExporter().available()
    assert not can.ok
    assert can.reason == "`tensorflow` and `tf2onnx` are not installed"
    assert can.install == "pip install 'yolotrt-core[tf]'"


def test_the_spec_survives_json(models: Path, tmp_path: Path) -> None:
    from yolotrt_core.serialization import from_json, to_json

    spec = export(models / "toy.pb", tmp_path)
    assert from_json(ModelSpec, json.loads(json.dumps(to_json(spec)))) == spec
