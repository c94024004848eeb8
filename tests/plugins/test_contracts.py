"""The public contracts, held by our own plugins, and broken on purpose."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import yolotrt_calibrators
import yolotrt_onnx
import yolotrt_onnxruntime
import yolotrt_tf
import yolotrt_torch
import yolotrt_yolov5
from yolotrt_core import testing
from yolotrt_core.export.model_source import default_model_path
from yolotrt_core.files.digest import sha256_of
from yolotrt_core.plugin.stages import DeviceProgram, Pass
from yolotrt_core.types import BuildRequest, Calibration, ModelSource, ModelSpec, TensorSpec
from yolotrt_yolov5.stages import Yolov5Postprocessor

pytest_plugins = ["pytester"]


def source_of(path: Path) -> ModelSource:
    return ModelSource(path, sha256_of(path), path.stem)


class TestTorch(testing.ExporterContract):
    plugin, name = yolotrt_torch, "torch"

    @pytest.fixture
    def source(self) -> ModelSource:
        return source_of(default_model_path())


class TestOnnx(testing.ExporterContract):
    plugin, name = yolotrt_onnx, "onnx"

    @pytest.fixture
    def source(self, tmp_path: Path) -> ModelSource:
        return source_of(testing.small_model(tmp_path / "given").path)


@pytest.mark.tf
class TestTf(testing.ExporterContract):
    plugin, name = yolotrt_tf, "tf"

    @pytest.fixture
    def source(self, tmp_path: Path) -> ModelSource:
        """A frozen graph of one pooling, one convolution and the decoding, written out in TensorFlow's own terms."""
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tf = pytest.importorskip("tensorflow", reason="needs TensorFlow (extra `tf`)")
        random = np.random.default_rng(0)
        kernel = random.normal(0, 1, (8, 8, 3, 16)).astype(np.float32)
        y, x = np.mgrid[:8, :8].reshape(2, -1)
        grid = np.stack([x, y], -1)[None, :, None].astype(np.float32) - 0.5
        with tf.Graph().as_default() as graph:
            images = tf.compat.v1.placeholder(tf.float32, (1, 64, 64, 3), "images")
            levels = tf.sigmoid(tf.reshape(tf.nn.conv2d(images, kernel, 8, "VALID"), (1, 64, 2, 8)))
            xy = (levels[..., :2] * 2 + grid) / 8
            rows = tf.concat([xy, levels[..., 2:4] ** 2, levels[..., 4:]], -1)
            tf.reshape(rows, (1, 128, 8), name="boxes")
            path = tmp_path / "small.pb"
            path.write_bytes(graph.as_graph_def().SerializeToString())
        return source_of(path)


class TestSimplify(testing.PassContract):
    plugin, name = yolotrt_onnx, "simplify"


class TestFp16(testing.PassContract):
    plugin, name, tolerance = yolotrt_onnx, "fp16", 0.01

    @pytest.fixture
    def request_(self) -> BuildRequest:
        return BuildRequest("fp16", 1, 64, 64)


class TestInt8(testing.PassContract):
    plugin, name, tolerance = yolotrt_onnx, "int8", 0.1

    @pytest.fixture
    def request_(self) -> BuildRequest:
        return BuildRequest("int8", 1, 64, 64)

    @pytest.fixture
    def calibration(self, tmp_path: Path) -> Calibration:
        model = testing.small_model(tmp_path / "model")
        stage = next(c for c in yolotrt_calibrators.yolotrt_calibrators() if c.name == "minmax")
        batches = iter([testing.reference_images(4, 64, 64)])
        folder = tmp_path / "ranges"
        folder.mkdir()
        method = stage.calibrate(model, batches, BuildRequest("fp32", 1, 64, 64), stage.Options(), folder)
        path = folder / "ranges.json"
        return Calibration(path, hashlib.sha256(path.read_bytes()).hexdigest(), method)


class TestEntropy(testing.CalibratorContract):
    plugin, name = yolotrt_calibrators, "entropy"


class TestOnnxRuntime(testing.BuilderContract):
    plugin, name = yolotrt_onnxruntime, "onnxruntime"


class _OtherBoxes(Yolov5Postprocessor):
    """A device program whose boxes are half as wide as those of `decode`."""

    def device_program(self, spec: ModelSpec) -> DeviceProgram:
        program = super().device_program(spec)
        assert "widen(at[2]) / 2" in program.source
        return dataclasses.replace(program, source=program.source.replace("widen(at[2]) / 2", "widen(at[2]) / 4"))


class TestYolov5(testing.PostprocessorContract):
    plugin, name = yolotrt_yolov5, "yolov5"

    @pytest.fixture
    def spec(self) -> ModelSpec:
        images, output = TensorSpec("images", "float32", (2, 3, 64, 64)), TensorSpec("output0", "float32", (2, 40, 8))
        return ModelSpec((images,), (output,), ("a", "b", "c"), (8,))

    @pytest.fixture
    def raw(self) -> Mapping[str, NDArray[Any]]:
        random = np.random.default_rng(0)
        rows = random.uniform(0, 1, (2, 40, 8)).astype(np.float32)
        rows[..., :2] = random.uniform(8, 56, (2, 40, 2))
        rows[..., 2:4] = random.uniform(4, 20, (2, 40, 2))
        return {"output0": rows}

    def test_a_device_program_of_other_boxes_is_found(
        self, raw: Any, spec: ModelSpec, geometry: Any, tmp_path: Path
    ) -> None:
        other = _OtherBoxes()
        with pytest.raises(AssertionError, match="boxes"):
            self.test_a_device_program_reads_what_is_decoded(
                other, raw, spec, geometry, other.Options(), False, tmp_path
            )


class _Bad(Pass):
    """A pass that breaks one promise, named by `fault`."""

    name, order = "bad", 20

    def __init__(self, fault: str) -> None:
        self.fault, self.runs = fault, 0

    def fingerprint(self, options: Any) -> Mapping[str, str]:
        return {"tool": "/usr/lib" if self.fault == "path" else "1"}

    def applies(self, request: BuildRequest, options: Any) -> bool:
        return True

    def apply(self, model: Any, calibration: Any, request: Any, options: Any, out: Path) -> Any:
        import onnx

        from yolotrt_core.export import reference_input

        assert reference_input.reference_images(1, 8, 8).shape == (1, 3, 8, 8)
        graph = onnx.load(str(model.path))
        self.runs += 1
        if self.fault == "answer":
            weight = next(w for w in graph.graph.initializer if w.name == "stem")
            weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.1, "stem"))
        if self.fault == "metadata":
            del graph.metadata_props[:]
        if self.fault == "bytes":
            graph.doc_string = str(self.runs)
        if self.fault == "input":
            model.path.write_bytes(b"")
        if self.fault == "outside":
            Path("notes.txt").write_text("here")
        (out / "model.onnx").write_bytes(graph.SerializeToString())
        spec = dataclasses.replace(model.spec, labels=("x",)) if self.fault == "labels" else model.spec
        return spec, {"nodes": {1}.pop() if self.fault != "facts" else object()}


@pytest.mark.parametrize(
    "fault",
    ["", "answer", "metadata", "bytes", "input", "outside", "labels", "facts", "path"],
    ids=lambda f: f or "none",
)
def test_a_broken_promise_fails_its_contract(fault: str, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})")
    pytester.makepyfile(
        f"""
        import test_contracts as own
        from yolotrt_core.plugin.hookspecs import hookimpl
        from yolotrt_core import testing

        class Plugin:
            YOLOTRT_API = 1
            __name__ = "test_contracts"

            @hookimpl
            def yolotrt_passes(self):
                return [own._Bad({fault!r})]

        class TestBad(testing.PassContract):
            plugin, name = Plugin(), "bad"
            def test_help_imports_no_framework(self):
                pass
        """
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider")
    outcome = result.parseoutcomes()
    assert (outcome.get("failed", 0) + outcome.get("errors", 0) > 0) == bool(fault), result.stdout.str()
