"""Contract tests for plugins: subclass the class of your stage's kind, give its fixtures, run pytest.

    from yolotrt_core.testing import PassContract

    class TestPolish(PassContract):
        plugin = yolotrt_polish
        name = "polish"

Every contract checks what `yolotrt_core.stages` promises of a kind; what your stage computes is for
your own tests. Needs pytest and NumPy; contracts that look into an ONNX need onnx and onnxruntime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from yolotrt_core.errors import UsageError, YolotrtError
from yolotrt_core.options import key_material
from yolotrt_core.parity import ParityOptions, check
from yolotrt_core.ranges import read_ranges
from yolotrt_core.reference import reference_images
from yolotrt_core.registry import Kind, Registered, Registry
from yolotrt_core.stages import ONNX_FILE, RANGES_FILE, REFERENCE_FILE, Availability
from yolotrt_core.types import (
    PRECISIONS,
    BuildRequest,
    Calibration,
    Detections,
    EngineSpec,
    Geometry,
    ModelSource,
    ModelSpec,
    OnnxModel,
    Selection,
    TensorSpec,
    from_json,
    to_json,
)

_FRAMEWORKS = ("torch", "tensorflow", "keras", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cv2", "numpy")
_CHECK_IMPORT = """
import importlib, sys
from yolotrt_core.registry import Registry
plugin = importlib.import_module(sys.argv[1])
registry = Registry.of(plugin)
for kind in registry.stages.values():
    for found in kind.values():
        if found.stage.available().ok:
            found.stage.fingerprint(found.stage.Options())
print(*[name for name in sys.argv[2:] if name in sys.modules])
"""


class MemorySideCache:
    """A `SideCache` in memory, for tests of builders."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def load(self, name: str, material: Mapping[str, str]) -> bytes | None:
        return self.files.get(name + json.dumps(dict(material), sort_keys=True))

    def save(self, name: str, material: Mapping[str, str], data: bytes) -> None:
        self.files[name + json.dumps(dict(material), sort_keys=True)] = data


def small_model(folder: Path, *, size: int = 64) -> OnnxModel:
    """Write the ONNX of a small YOLOv5: two convolutions with SiLU, one level of stride 8, two anchors, three classes.

    Input `images` float32 (1, 3, size, size), output `output0` (1, 2 * (size / 8)^2, 8) in pixels.
    """
    onnx = pytest.importorskip("onnx", reason="this contract looks into an ONNX")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    cells, random = size // 8, np.random.default_rng(0)
    y, x = np.mgrid[:cells, :cells].astype(np.float32)
    constants = {
        "stem": random.normal(0, 0.2, (8, 3, 4, 4)).astype(np.float32),
        "head": random.normal(0, 0.5, (16, 8, 2, 2)).astype(np.float32),
        "by_anchor": np.array([1, 2, 8, cells, cells]),
        "rows": np.array([1, 2 * cells * cells, 8]),
        "sizes": np.array([2, 2, 4]),
        "grid": np.stack([x, y], -1)[None, None] - np.float32(0.5),
        "two": np.float32(2),
        "stride": np.float32(8),
        "anchors": np.array([[40, 52], [120, 92]], np.float32).reshape(1, 2, 1, 1, 2),
    }
    nodes = [
        helper.make_node("Conv", ["images", "stem"], ["stem_raw"], name="stem", strides=[4, 4]),
        helper.make_node("Sigmoid", ["stem_raw"], ["gate"], name="gate"),
        helper.make_node("Mul", ["stem_raw", "gate"], ["features"], name="silu"),
        helper.make_node("Conv", ["features", "head"], ["maps"], name="head", strides=[2, 2]),
        helper.make_node("Reshape", ["maps", "by_anchor"], ["levels"], name="split_anchors"),
        helper.make_node("Transpose", ["levels"], ["last"], name="last", perm=[0, 1, 3, 4, 2]),
        helper.make_node("Sigmoid", ["last"], ["soft"], name="soft"),
        helper.make_node("Split", ["soft", "sizes"], ["xy", "wh", "scores"], name="columns", axis=4),
        helper.make_node("Mul", ["xy", "two"], ["xy2"], name="xy2"),
        helper.make_node("Add", ["xy2", "grid"], ["xyg"], name="xyg"),
        helper.make_node("Mul", ["xyg", "stride"], ["xy_pixels"], name="xy_pixels"),
        helper.make_node("Mul", ["wh", "wh"], ["wh2"], name="wh2"),
        helper.make_node("Mul", ["wh2", "anchors"], ["wh_pixels"], name="wh_pixels"),
        helper.make_node("Concat", ["xy_pixels", "wh_pixels", "scores"], ["boxes"], name="boxes", axis=4),
        helper.make_node("Reshape", ["boxes", "rows"], ["output0"], name="flat"),
    ]
    shape, rows = (1, 3, size, size), (1, 2 * cells * cells, 8)
    spec = ModelSpec(
        inputs=(TensorSpec("images", "float32", shape),),
        outputs=(TensorSpec("output0", "float32", rows),),
        labels=("a", "b", "c"),
        strides=(8,),
    )
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, rows)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"names": "{0: 'a', 1: 'b', 2: 'c'}", "stride": "8"})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ONNX_FILE
    path.write_bytes(model.SerializeToString())
    return OnnxModel(path, hashlib.sha256(path.read_bytes()).hexdigest(), spec)


class StageContract:
    """What holds for a stage of every kind.

    Attributes:
        plugin: the plugin module, as its entry point names it. name: the stage's.
    """

    kind: ClassVar[Kind]
    plugin: ClassVar[Any]
    name: ClassVar[str]

    @pytest.fixture
    def found(self) -> Registered:
        """The stage as yolotrt finds it; fails with yolotrt's own words if the plugin is broken."""
        registry = Registry.of(self.plugin)
        assert not registry.broken, registry.broken[0].error
        return registry.get(self.kind, self.name)

    @pytest.fixture
    def stage(self, found: Registered) -> Any:
        can = found.stage.available()
        if not can.ok:
            pytest.skip(f"{can.reason}: {can.install}")
        return found.stage

    @pytest.fixture
    def options(self, stage: Any) -> Any:
        """The options to test with; default the stage's defaults."""
        return stage.Options()

    @pytest.fixture
    def request_(self) -> BuildRequest:
        """What is asked for: as your model or `small_model` is made."""
        return BuildRequest("fp32", 1, 64, 64)

    @pytest.fixture
    def out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """The folder to write to; whatever appears in the current one instead fails the test."""
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        folder = tmp_path / "out"
        folder.mkdir()
        yield folder
        assert not list(here.iterdir()), "a stage writes only under `out`"

    def test_is_found_and_can_enter_a_key(self, found: Registered) -> None:
        assert len(found.identity.source_sha256) == 64
        assert found.identity.stage_version >= 1
        assert any(name.startswith(self.plugin.__name__) for name in found.stage.sources), (
            "`sources` names none of the plugin's own modules, so an edit there would not rebuild"
        )
        material = key_material(found.stage.Options(), found.name)
        assert json.loads(json.dumps(material)) == material

    def test_says_whether_it_can_work_here(self, found: Registered) -> None:
        can = found.stage.available()
        assert isinstance(can, Availability)
        assert can.ok or (can.reason and can.install)

    def test_fingerprint_is_short_plain_and_steady(self, stage: Any, options: Any) -> None:
        told = stage.fingerprint(options)
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in told.items())
        assert dict(stage.fingerprint(options)) == dict(told)
        assert not any("/" in value for value in told.values()), "paths never enter a key"

    def test_help_imports_no_framework(self) -> None:
        """`--help` loads every plugin, so importing one must cost nothing."""
        command = [sys.executable, "-c", _CHECK_IMPORT, self.plugin.__name__, *_FRAMEWORKS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == []


class ExporterContract(StageContract):
    """An exporter; give the fixture `source`, a small model of yours of 64 x 64 pixels (or `request_` too)."""

    kind = "exporter"

    @pytest.fixture
    def source(self, tmp_path: Path) -> ModelSource:
        raise NotImplementedError("return the ModelSource of a small model")

    def test_writes_an_onnx_of_the_project_s_form(
        self, stage: Any, source: ModelSource, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        onnx = pytest.importorskip("onnx", reason="this contract looks into an ONNX")
        spec = stage.export(source, request_, options, out)
        assert from_json(ModelSpec, json.loads(json.dumps(to_json(spec)))) == spec
        model = onnx.load(str(out / ONNX_FILE))
        onnx.checker.check_model(model, full_check=True)
        shape = (request_.batch, 3, request_.height, request_.width)
        assert spec.inputs == (TensorSpec("images", "float32", shape),)
        assert [value.name for value in model.graph.input] == ["images"]
        assert [value.name for value in model.graph.output] == [tensor.name for tensor in spec.outputs]
        assert spec.labels
        assert spec.strides == tuple(sorted(spec.strides))
        assert {"stride", "names", "task", "imgsz"} <= {each.key for each in model.metadata_props}

    def test_the_onnx_computes_what_its_framework_does(
        self, stage: Any, source: ModelSource, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        spec = stage.export(source, request_, options, out)
        with np.load(out / REFERENCE_FILE, allow_pickle=False) as stored:
            assert stored["images"].shape[1:] == (3, request_.height, request_.width)
            assert {tensor.name for tensor in spec.outputs} <= set(stored.files)
            assert float(np.ptp(stored["images"])) > 0.1, "one colour is no test"
        with _session(out / ONNX_FILE, spec) as session:
            check(session, out / REFERENCE_FILE, ParityOptions())

    def test_equal_exports_are_equal_bytes(
        self, stage: Any, source: ModelSource, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        written = []
        for name in ("first", "second"):
            (out / name).mkdir()
            stage.export(source, request_, options, out / name)
            written.append((out / name / ONNX_FILE).read_bytes())
        assert written[0] == written[1]

    def test_another_file_is_refused_in_one_line(
        self, stage: Any, request_: BuildRequest, options: Any, out: Path, tmp_path: Path
    ) -> None:
        for data in (b"no model", b""):
            wrong = tmp_path / "wrong.bin"
            wrong.write_bytes(data)
            with pytest.raises(YolotrtError) as told:
                stage.export(ModelSource(wrong, "0" * 64, "wrong"), request_, options, out)
            assert_readable(told.value)

    def test_is_chosen_for_its_own_models_only(self, source: ModelSource, tmp_path: Path) -> None:
        choose = getattr(self.plugin, "yolotrt_select_exporter", None)
        if choose is None:
            pytest.skip("the plugin chooses nothing: users must name it with `--exporter`")
        assert choose(source=source) == self.name
        for name, data in (("notes.txt", b"nothing"), ("empty.bin", b"")):
            (tmp_path / name).write_bytes(data)
            assert choose(source=ModelSource(tmp_path / name, "0" * 64, "m")) is None
        assert choose(source=ModelSource(tmp_path, "0" * 64, "folder")) is None


class PassContract(StageContract):
    """A pass; runs on `small_model` unless you give the fixture `model`.

    Attributes:
        tolerance: how much of the answer a pass may change, relative L2.
    """

    kind = "pass"
    tolerance: ClassVar[float] = 1e-4

    @pytest.fixture
    def model(self, tmp_path: Path) -> OnnxModel:
        return small_model(tmp_path / "model")

    @pytest.fixture
    def calibration(self) -> Calibration | None:
        """The ranges for a pass that needs them."""
        return None

    def test_says_when_it_applies(self, stage: Any, options: Any, request_: BuildRequest) -> None:
        for precision in PRECISIONS:
            assert stage.applies(dataclasses.replace(request_, precision=precision), options) in (True, False)
        assert isinstance(stage.order, int)
        assert isinstance(stage.needs_calibration, bool)

    def test_gives_the_same_network_back(
        self, stage: Any, model: OnnxModel, calibration: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        onnx = pytest.importorskip("onnx", reason="this contract looks into an ONNX")
        before = model.path.read_bytes()
        spec, facts = stage.apply(model, calibration, request_, options, out)
        assert model.path.read_bytes() == before, "the input belongs to someone else"
        assert json.loads(json.dumps(to_json(dict(facts)))) == to_json(dict(facts))
        changed, original = onnx.load(str(out / ONNX_FILE)), onnx.load_from_string(before)
        onnx.checker.check_model(changed, full_check=True)
        for part in ("input", "output"):
            names = [[value.name for value in getattr(each.graph, part)] for each in (original, changed)]
            assert names[0] == names[1]
        kept = {each.key: each.value for each in changed.metadata_props}
        assert {each.key: each.value for each in original.metadata_props}.items() <= kept.items()
        assert (spec.labels, spec.strides, spec.head) == (model.spec.labels, model.spec.strides, model.spec.head)
        images = reference_images(request_.batch, request_.height, request_.width)
        with _session(model.path, model.spec) as one, _session(out / ONNX_FILE, spec) as other:
            want, have = one.infer(images), other.infer(images)
        for name, values in want.items():
            assert np.linalg.norm(have[name] - values) <= self.tolerance * np.linalg.norm(values)

    def test_equal_models_give_equal_bytes(
        self, stage: Any, model: OnnxModel, calibration: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        written = []
        for name in ("first", "second"):
            (out / name).mkdir()
            stage.apply(model, calibration, request_, options, out / name)
            written.append((out / name / ONNX_FILE).read_bytes())
        assert written[0] == written[1]


class CalibratorContract(StageContract):
    """A calibrator; runs on `small_model` and 12 pictures unless you give other fixtures."""

    kind = "calibrator"

    @pytest.fixture
    def model(self, tmp_path: Path) -> OnnxModel:
        return small_model(tmp_path / "model")

    @pytest.fixture
    def pictures(self) -> NDArray[np.float32]:
        """The pictures to calibrate on, float32 (n, 3, H, W) in 0..1."""
        return reference_images(12, 64, 64)

    def test_writes_ranges_of_tensors_that_are_there(
        self, stage: Any, model: OnnxModel, pictures: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        onnx = pytest.importorskip("onnx", reason="this contract looks into an ONNX")
        method = stage.calibrate(model, _batches(pictures), request_, options, out)
        ranges = read_ranges(out / RANGES_FILE).for_model(model.sha256)
        assert ranges.method == method
        graph = onnx.load(str(model.path)).graph
        known = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
        assert ranges.tensors
        assert set(ranges.tensors) <= known
        read = {node.input[0] for node in graph.node if node.op_type == "Conv"}
        assert read <= set(ranges.tensors), "what a convolution reads has no range, so it cannot be quantized"

    def test_takes_each_picture_once_and_one_batch_at_a_time(
        self, stage: Any, model: OnnxModel, pictures: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        taken = []

        def counted() -> Iterator[NDArray[np.float32]]:
            for batch in _batches(pictures):
                taken.append(len(batch))
                yield batch

        stage.calibrate(model, counted(), request_, options, out)
        assert sum(taken) in (0, len(pictures))

    def test_equal_pictures_give_equal_ranges(
        self, stage: Any, model: OnnxModel, pictures: Any, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        written = []
        for name in ("first", "second"):
            (out / name).mkdir()
            stage.calibrate(model, _batches(pictures), request_, options, out / name)
            written.append((out / name / RANGES_FILE).read_bytes())
        assert written[0] == written[1]


class BuilderContract(StageContract):
    """A builder; builds `small_model` in fp32 unless you give other fixtures.

    Attributes:
        tolerance: how far its engine's answer may be from onnxruntime's, relative L2.
    """

    kind = "builder"
    tolerance: ClassVar[float] = 1e-3

    @pytest.fixture
    def model(self, tmp_path: Path) -> OnnxModel:
        return small_model(tmp_path / "model")

    def test_builds_what_it_says(
        self, stage: Any, model: OnnxModel, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        assert stage.precisions <= set(PRECISIONS)
        stage.preflight(request_, options)
        spec = stage.build(model, None, request_, options, out, MemorySideCache())
        assert (out / stage.engine_file).stat().st_size > 0
        assert (spec.builder, spec.precision) == (self.name, request_.precision)
        assert from_json(EngineSpec, json.loads(json.dumps(to_json(spec)))) == spec
        assert [tensor.name for tensor in spec.model.inputs] == ["images"]

    def test_its_engine_answers_as_the_onnx_does(
        self, stage: Any, model: OnnxModel, request_: BuildRequest, options: Any, out: Path
    ) -> None:
        can = stage.runnable()
        if not can.ok:
            pytest.skip(f"engines do not run here: {can.reason}")
        cache = MemorySideCache()
        spec = stage.build(model, None, request_, options, out, cache)
        images = reference_images(request_.batch, request_.height, request_.width)
        with _session(model.path, model.spec) as session:
            want = session.infer(images)
        with stage.open(out / stage.engine_file, spec, options, cache) as session:
            have = session.infer(images)
            assert session.spec == spec
            for wrong in (images[:, :2], images.astype(np.float64), np.concatenate([images, images])):
                with pytest.raises(UsageError) as told:
                    session.infer(wrong)
                assert_readable(told.value)
        assert have.keys() == want.keys()
        for name, values in want.items():
            assert have[name].dtype == np.float32
            assert np.linalg.norm(have[name] - values) <= self.tolerance * np.linalg.norm(values)


class PostprocessorContract(StageContract):
    """A postprocessor; give the fixtures `spec` and `raw`, an answer of two pictures with some boxes in each."""

    kind = "postprocessor"

    @pytest.fixture
    def spec(self) -> ModelSpec:
        raise NotImplementedError("return the ModelSpec of a network with your head")

    @pytest.fixture
    def raw(self) -> Mapping[str, NDArray[Any]]:
        raise NotImplementedError("return that network's answer to two pictures, by output name")

    @pytest.fixture
    def geometry(self, spec: ModelSpec) -> list[Geometry]:
        """Two pictures of other sizes, placed in the network's input by the letterbox."""
        from yolotrt_core.letterbox import geometry

        height, width = (int(side) for side in spec.inputs[0].shape[2:])
        return [geometry((height * 2, width), (height, width)), geometry((height // 2, width), (height, width))]

    def test_decodes_the_head_it_names(self, stage: Any, spec: ModelSpec) -> None:
        assert spec.head in stage.heads

    def test_gives_sound_detections(self, stage: Any, raw: Any, spec: ModelSpec, geometry: Any, options: Any) -> None:
        given = {name: values.copy() for name, values in raw.items()}
        found = stage.decode(raw, spec, geometry, Selection(), options)
        assert all(np.array_equal(raw[name], given[name]) for name in given), "decoding may not change its input"
        assert len(found) == len(geometry)
        assert all(len(each) for each in found), "`raw` should hold boxes, or nothing is tested"
        for each, placed in zip(found, geometry, strict=True):
            self.assert_sound(each, placed, spec)
        again = stage.decode(raw, spec, geometry, Selection(), options)
        for one, other in zip(found, again, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)

    def test_obeys_the_selection(self, stage: Any, raw: Any, spec: ModelSpec, geometry: Any, options: Any) -> None:
        every = stage.decode(raw, spec, geometry, Selection(), options)
        assert not any(len(each) for each in stage.decode(raw, spec, geometry, Selection(conf=1.0), options))
        for each, all_of in zip(stage.decode(raw, spec, geometry, Selection(max_det=1), options), every, strict=True):
            assert len(each) == 1
            assert each.truncated == len(all_of) - 1
            np.testing.assert_array_equal(each.boxes, all_of.boxes[:1])
        wanted = int(every[0].class_ids[0])
        for each in stage.decode(raw, spec, geometry, Selection(classes=(wanted,)), options):
            assert set(each.class_ids.tolist()) <= {wanted}

    def test_refuses_another_head(self, stage: Any, raw: Any, spec: ModelSpec, geometry: Any, options: Any) -> None:
        name, values = next(iter(raw.items()))
        for wrong in ({"other": values}, {name: values[..., :-1]}, {name: values[0]}, {name: values.astype(np.int32)}):
            with pytest.raises(UsageError) as told:
                stage.decode(wrong, spec, geometry, Selection(), options)
            assert_readable(told.value)

    def assert_sound(self, found: Detections, placed: Geometry, spec: ModelSpec) -> None:
        """Check dtypes, order and bounds of one picture's detections."""
        dtypes = [str(each.dtype) for each in (found.boxes, found.scores, found.class_ids)]
        assert dtypes == ["float32", "float32", "int64"]
        assert found.boxes.shape == (len(found), 4)
        assert (np.diff(found.scores) <= 0).all()
        assert ((found.class_ids >= 0) & (found.class_ids < len(spec.labels))).all()
        height, width = placed.source
        assert (found.boxes >= 0).all()
        assert (found.boxes <= np.array([width, height, width, height])).all()
        assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()


def assert_readable(err: YolotrtError) -> None:
    """Check that an error is one that users can read: one line, lower case, no final stop."""
    assert "\n" not in err.message
    assert err.message
    assert not err.message[0].isupper()
    assert not err.message.endswith(".")
    assert len(err.message) < 600


def _session(path: Path, spec: ModelSpec) -> Any:
    """Open an ONNX as the pipeline's own parity check does."""
    pytest.importorskip("onnxruntime", reason="this contract runs an ONNX")
    builder = Registry.discover().get("builder", "onnxruntime").stage
    engine = EngineSpec(model=spec, precision="fp32", builder="onnxruntime", tools={})
    return builder.open(path, engine, builder.Options(), MemorySideCache())


def _batches(pictures: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(pictures), 4):
        yield pictures[first : first + 4]
