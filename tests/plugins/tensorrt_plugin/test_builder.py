"""Real builds by TensorRT-RTX on the CPU: the installed release here, 1.6.1 in a process of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trt_build import build, described, request

from yolotrt_core.errors import StageError, UsageError
from yolotrt_core.types import OnnxModel, ShapeRange
from yolotrt_tensorrt.build import builder
from yolotrt_tensorrt.library import RTX_MAGIC, load
from yolotrt_tensorrt.options import TensorRTOptions
from yolotrt_tensorrt.stages import TensorRTBuilder

pytestmark = pytest.mark.usefixtures("installed_rtx")

SMALL = ShapeRange((1, 32, 32), (1, 32, 32), (4, 64, 64))
LARGE = ShapeRange((1, 64, 64), (8, 96, 96), (8, 128, 128))
OLD = "print(json.dumps(build_described(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))))"

Make = Callable[..., OnnxModel]
Old = Callable[..., Any]


def test_a_static_build_tells_what_the_engine_is(convolution: Make, tmp_path: Path, installed_rtx: str) -> None:
    made = build(convolution(), request(), tmp_path / "a")
    again = build(convolution(), request(), tmp_path / "b")
    spec, facts = made["spec"], made["facts"]
    assert spec["tools"] == {"module": "tensorrt_rtx", "version": installed_rtx}
    assert (spec["builder"], spec["precision"], spec["profiles"]) == ("tensorrt", "fp32", [])
    assert spec["model"]["inputs"] == [{"name": "images", "dtype": "float32", "shape": [1, 16, 32, 32]}]
    assert spec["model"]["outputs"] == [{"name": "output0", "dtype": "float32", "shape": [1, 16, 32, 32]}]
    assert spec["model"]["labels"] == ["a", "b"]
    plan = (tmp_path / "a" / "model.engine").read_bytes()
    assert plan.startswith(RTX_MAGIC)
    assert facts["bytes"] == len(plan)
    assert facts["convolutions"] == {"fp32": 1}
    assert sum(facts["layers"].values()) >= 1
    # The store finds an engine by what went in, so the same must come out.
    assert (tmp_path / "b" / "model.engine").read_bytes() == plan
    assert again["facts"] == facts


@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8", "fp8"])
def test_the_graph_sets_the_precision(kind: str, convolution: Make, tmp_path: Path) -> None:
    made = build(convolution(kind), request(kind), tmp_path)
    assert made["facts"]["convolutions"] == {kind: 1}


@pytest.mark.parametrize(
    ("kind", "counted"), [("fp32", {"fp32": 1}), ("fp16", {"fp16": 1}), ("bf16", {"bf16": 1}), ("fp8", {"fp8": 1})]
)
def test_the_same_on_rtx_1_6(kind: str, counted: Any, convolution: Make, tmp_path: Path, rtx_old: Old) -> None:
    model = convolution(kind, dynamic=True)
    made = rtx_old(OLD, described(model, request(kind, SMALL)), tmp_path / "out", "{}")
    assert made["spec"]["tools"]["version"] == "1.6.1.120"
    assert made["facts"]["convolutions"] == counted


def test_a_dynamic_build_has_every_profile(convolution: Make, tmp_path: Path) -> None:
    one = build(convolution("fp16", dynamic=True), request("fp16", SMALL), tmp_path / "one")
    two = build(convolution("fp16", dynamic=True), request("fp16", SMALL, LARGE), tmp_path / "two")
    assert one["spec"]["model"]["inputs"][0]["shape"] == ["batch", 16, "height", "width"]
    assert [p["max"] for p in two["spec"]["profiles"]] == [[4, 64, 64], [8, 128, 128]]
    # Kernels are kept for each profile: a second one shows in the size of the plan.
    assert two["facts"]["bytes"] > 1.3 * one["facts"]["bytes"]


def test_a_whole_yolo_builds_static_and_dynamic(toy_model: Callable[..., OnnxModel], tmp_path: Path) -> None:
    static = build(toy_model(), request(size=64), tmp_path / "static")
    assert static["spec"]["model"]["outputs"][0]["shape"] == [1, 512, 8]
    assert static["facts"]["convolutions"] == {"fp32": 5}
    dynamic = toy_model(name="dynamic", dynamic=True)
    free = replace(
        dynamic,
        spec=replace(
            dynamic.spec,
            inputs=(replace(dynamic.spec.inputs[0], shape=("batch", 3, "height", "width")),),
            outputs=(replace(dynamic.spec.outputs[0], shape=("batch", "rows", 8)),),
        ),
    )
    made = build(free, request("fp32", ShapeRange((1, 32, 32), (1, 64, 64), (4, 96, 96))), tmp_path / "dynamic")
    assert made["spec"]["model"]["outputs"][0]["shape"] == ["batch", "rows", 8]
    assert made["facts"]["convolutions"] == {"fp32": 5}


@pytest.mark.parametrize(
    ("asked", "dynamic", "words"),
    [
        (request(size=64), False, "fixed shape 1x16x32x32, but 1x16x64x64 was requested"),
        (request("fp32", SMALL), False, "fixed shape 1x16x32x32, but a dynamic engine was requested"),
        (request(), True, "free in batch, height, width, but no profile was given"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(
    asked: Any, dynamic: bool, words: str, convolution: Make, tmp_path: Path
) -> None:
    made = build(convolution(dynamic=dynamic), asked, tmp_path)
    assert made["kind"] == "UsageError"
    assert words in made["error"]


def test_a_profile_must_respect_fixed_axes(toy_yolo: Any, toy_model: Any, tmp_path: Path) -> None:
    model = toy_yolo(dynamic=True)
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    made = build(toy_model(model), request("fp32", ShapeRange((1, 32, 32), (1, 64, 64), (4, 64, 64))), tmp_path)
    assert made["kind"] == "UsageError"
    assert "fixed batch 1, but profile 1x32x32:1x64x64:4x64x64 has 4" in made["error"]
    assert made["hint"] == "use `--profile 1x32x32:1x64x64:1x64x64`"


def test_parser_errors_name_the_node(toy_yolo: Any, toy_model: Any, tmp_path: Path) -> None:
    from onnx import helper

    model = toy_yolo()
    model.graph.node.append(helper.make_node("NonZero", ["output0"], ["where"], name="find_all"))
    model.graph.output.append(helper.make_tensor_value_info("where", 7, [3, None]))
    made = build(toy_model(model), request(size=64), tmp_path)
    assert made["kind"] == "StageError"
    assert "cannot read the ONNX: node `find_all` (NonZero): " in made["error"]
    assert "\n" not in made["error"]
    assert not (tmp_path / "model.engine").exists()


def test_integers_of_16_bits_are_refused_with_what_helps(convolution: Make, tmp_path: Path) -> None:
    import onnx

    made = convolution("int8")
    model = onnx.load(made.path)
    model.opset_import[0].version = 21
    zero = next(weight for weight in model.graph.initializer if weight.name == "zero")
    zero.CopyFrom(onnx.helper.make_tensor("zero", onnx.TensorProto.INT16, [], [0]))
    onnx.save(model, made.path)
    refused = build(made, request("int8"), tmp_path)
    assert refused["kind"] == "StageError"
    assert "quantize to 8 bits" in refused["hint"] and "--builder onnxruntime" in refused["hint"]


@pytest.mark.parametrize("told", [None, "`--tf-quantized float` exports none"])
def test_zero_points_are_refused_with_what_helps(told: str | None, convolution: Make, tmp_path: Path) -> None:
    import onnx

    made = convolution("int8")
    model = onnx.load(made.path)
    zero = next(weight for weight in model.graph.initializer if weight.name == "zero")
    zero.CopyFrom(onnx.helper.make_tensor("zero", zero.data_type, [], [3]))
    onnx.save(model, made.path)
    if told:  # as the exporter left it, in this run or in one long before
        made = replace(made, spec=replace(made.spec, provenance={"zero_points": told}))
    refused = build(made, request("int8"), tmp_path)
    assert refused["kind"] == "StageError"
    words = "TensorRT supports no zero points of 8-bit integers, but this model has some: "
    assert refused["hint"] == words + (told or "use a model without zero points, or `--builder onnxruntime`")


def test_what_is_no_onnx_is_refused(convolution: Make, tmp_path: Path) -> None:
    model = convolution()
    model.path.write_bytes(b"not an ONNX")
    made = build(model, request(), tmp_path)
    assert made["kind"] == "StageError"
    assert "cannot read the ONNX" in made["error"]
    assert "MODEL_DESERIALIZE_FAILED" in made["error"]


@pytest.mark.parametrize("old", [False, True])
def test_too_small_a_workspace_says_so(old: bool, convolution: Make, tmp_path: Path, request_old: Any) -> None:
    made = request_old(old)(convolution(), request(), tmp_path, workspace=1)
    assert made["kind"] == "StageError"
    assert "failed to build the engine" in made["error"]
    assert made["hint"] == "1 MiB of `--tensorrt-workspace` are not enough: omit the option, or use 256 or more"
    assert "facts" in request_old(old)(convolution(), request(), tmp_path, workspace=256)


@pytest.fixture
def request_old(request: pytest.FixtureRequest) -> Callable[[bool], Callable[..., Any]]:
    """Return `choose(old)` -> a `build` that runs here, or under TensorRT-RTX 1.6.1."""

    def choose(old: bool) -> Callable[..., Any]:
        if not old:
            return build
        run = request.getfixturevalue("rtx_old")
        return lambda model, asked, out, **options: run(OLD, described(model, asked), out, json.dumps(options))

    return choose


def test_targets_make_another_engine(convolution: Make, tmp_path: Path) -> None:
    sizes = {}
    for name, targets in {"default": None, "one": "8.6", "two": "sm_86,120"}.items():
        made = build(convolution("fp16"), request("fp16"), tmp_path / name, compute_capabilities=targets)
        assert made["spec"]["tools"].keys() == {"module", "version"}
        sizes[name] = made["facts"]["bytes"]
    assert len(set(sizes.values())) > 1, sizes
    assert sizes["one"] < sizes["two"]


@pytest.mark.parametrize(
    ("precision", "targets", "words"),
    [
        ("fp16", "90", "has no kernels for compute capability `SM90`"),
        ("fp16", "8.6;8.9", "expects numbers like 86 or 8.6, or `current`, found `8.6;8.9`"),
        ("fp16", "", "expects numbers like 86 or 8.6, or `current`, found ``"),
        ("fp8", "89,86", "fp8 needs compute capability 8.9 or higher, but the engine is for 8.6"),
        ("bf16", "75", "bf16 needs compute capability 8.0 or higher, but the engine is for 7.5"),
    ],
)
def test_targets_that_cannot_be_are_refused_before_work(precision: Any, targets: str, words: str) -> None:
    with pytest.raises((StageError, UsageError)) as caught:
        TensorRTBuilder().preflight(request(precision), TensorRTOptions(compute_capabilities=targets))
    assert words in str(caught.value)


def test_int8_is_refused_where_it_cannot_be_built(convolution: Make, tmp_path: Path, rtx_old: Old) -> None:
    TensorRTBuilder().preflight(request("int8"), TensorRTOptions())
    model = convolution("int8")
    refused = rtx_old(OLD, described(model, request("int8")), tmp_path, "{}")
    assert refused["error"] == "`tensorrt_rtx` 1.6.1.120 has no INT8 convolutions"
    assert "--precision fp16" in refused["hint"]
    # The refusal is true: without it the build fails, too late and in words that help nobody.
    forced = described(model, request("fp32"))
    assert "failed to build the engine" in rtx_old(OLD, forced, tmp_path, "{}")["error"]


def test_options_that_rtx_lacks_are_told(
    convolution: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, side_cache: Any
) -> None:
    options = TensorRTOptions(timing_cache="on", optimization_level=5)
    TensorRTBuilder().build(convolution(), None, request(), options, tmp_path, side_cache)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [w for w in warnings if "has no timing cache" in w]
    assert [w for w in warnings if "ignores `--tensorrt-optimization-level`" in w]
    assert side_cache.files == {}


def test_an_engine_of_one_shape_can_be_recorded_from_outside(
    convolution: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[Any] = []
    configure = builder._configure

    def noted(library: Any, config: Any, options: Any) -> None:
        configs.append(config)
        configure(library, config, options)

    monkeypatch.setattr(builder, "_configure", noted)
    assert "error" not in build(convolution(), request(), tmp_path / "fixed")
    assert "error" not in build(convolution(dynamic=True), request("fp32", SMALL), tmp_path / "free")
    flag = load("tensorrt_rtx").trt.BuilderFlag.REQUIRE_USER_ALLOCATION
    assert [config.get_flag(flag) for config in configs] == [True, False]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX's timing cache says that it is one no more
def test_timings_are_kept_and_given_back_where_the_library_has_them(
    convolution: Make, tmp_path: Path, side_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorRT-RTX takes the calls of `tensorrt` and times nothing: the exchange of files is the same.
    loaded = load("tensorrt_rtx")
    given: list[bytes] = []
    create = loaded.trt.IBuilderConfig.create_timing_cache
    monkeypatch.setattr(loaded, "installed", replace(loaded.installed, module="tensorrt"))
    monkeypatch.setattr(
        loaded.trt.IBuilderConfig,
        "create_timing_cache",
        lambda config, content: given.append(bytes(content)) or create(config, content),
    )
    for _ in range(2):
        TensorRTBuilder().build(convolution(), None, request(), TensorRTOptions(), tmp_path, side_cache)
    (kept,) = side_cache.files.values()
    assert given == [b"", kept]
    off = TensorRTOptions(timing_cache="off")
    TensorRTBuilder().build(convolution(), None, request(), off, tmp_path, side_cache)
    assert len(given) == 2


def test_progress_rises_to_the_end(convolution: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[float] = []
    texts: list[str] = []

    class Recorder:
        def update(
            self, *, completed: float | None = None, total: float | None = None, text: str | None = None
        ) -> None:
            done.extend([] if completed is None else [completed])
            texts.extend([] if text is None else [text])

    @contextlib.contextmanager
    def recording(text: str, total: float | None = None) -> Iterator[Recorder]:
        yield Recorder()

    monkeypatch.setattr(builder, "progress", recording)
    build(convolution(), request(), tmp_path)
    assert done == sorted(done)
    assert done[0] < 0.1
    assert done[-1] == 1.0
    assert len(set(done)) > 10
    assert "TensorRT: Building engine" in texts


def test_the_librarys_log_reaches_pythons(convolution: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="yolotrt_tensorrt.library"):
        build(convolution(), request(), tmp_path)
    lines = [r.getMessage() for r in caplog.records if r.name == "yolotrt_tensorrt.library"]
    assert [line for line in lines if line.startswith("INFO Engine generation completed")]
    complete = lines[-1].splitlines()
    assert [line for line in complete if line.startswith("INFO Engine generation completed")]
    assert len([line for line in complete if line.startswith("VERBOSE ")]) > 50


def test_ctrl_c_cancels_the_build(convolution: Make, tmp_path: Path, side_cache: Any) -> None:
    class PressCtrlC(logging.Handler):
        """Sends the signal while TensorRT is at work, from one of its own messages."""

        def emit(self, record: logging.LogRecord) -> None:
            if "Compiler backend is used during engine build" in record.getMessage():
                log.removeHandler(self)
                os.kill(os.getpid(), signal.SIGINT)

    log = logging.getLogger("yolotrt_tensorrt.library")
    handler = PressCtrlC()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        with pytest.raises(KeyboardInterrupt):
            TensorRTBuilder().build(convolution(), None, request(), TensorRTOptions(), tmp_path, side_cache)
    finally:
        log.setLevel(logging.NOTSET)
    assert handler not in log.handlers
    assert list(tmp_path.glob("model.engine")) == []
    # And the process is as good as new.
    assert "facts" in build(convolution(), request(), tmp_path / "after")


def test_ctrl_c_cancels_on_rtx_1_6(convolution: Make, tmp_path: Path, rtx_old: Old) -> None:
    snippet = """
import logging, os, signal
class PressCtrlC(logging.Handler):
    def emit(self, record):
        if "Compiler backend is used during engine build" in record.getMessage():
            log.removeHandler(self)
            os.kill(os.getpid(), signal.SIGINT)
log = logging.getLogger("yolotrt_tensorrt.library")
log.addHandler(PressCtrlC())
log.setLevel(logging.DEBUG)
try:
    told = build_described(sys.argv[1], sys.argv[2])
except KeyboardInterrupt:
    told = "cancelled"
print(json.dumps(told))
"""
    assert rtx_old(snippet, described(convolution(), request()), tmp_path / "out") == "cancelled"
    assert not (tmp_path / "out" / "model.engine").exists()
