"""Plan and run: what runs, what is found, what the keys hold, how failures look."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import descriptors_taken_over
from fake_stages import RUNS, FakeBuilder, fake_plugin
from yolotrt_core.api import Engine, build_engine
from yolotrt_core.errors import ArtifactError, PluginError, StageError, UsageError
from yolotrt_core.inference.engine_file import read_engine_spec
from yolotrt_core.pipeline import executor
from yolotrt_core.pipeline.build_options import BuildSettings, resolve
from yolotrt_core.pipeline.plan import plan_build
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.store.store import Store
from yolotrt_core.types import ShapeRange


@pytest.fixture
def registry() -> Registry:
    RUNS.clear()
    return Registry.of(fake_plugin())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.txt"
    path.write_text("2 3")
    return path


def _build(weights: Path, store: Store, registry: Registry, tmp_path: Path, **settings: Any) -> Engine:
    settings = {"imgsz": (32, 64), "precision": "fp16", **settings}
    force = settings.pop("force", False)
    wanted = BuildSettings(weights=weights, **settings)
    return build_engine(wanted, store=store, registry=registry, out=tmp_path / "out", force=force)


def test_a_second_build_runs_no_stage(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    first = _build(weights, store, registry, tmp_path)
    assert RUNS == {"export": 1, "halve": 1, "build": 1}
    assert not first.from_cache
    assert [s.step.label for s in first.steps] == ["export", "parity", "halve", "build"]
    second = _build(weights, store, registry, tmp_path)
    assert second.from_cache
    assert second.key == first.key
    assert RUNS == {"export": 1, "halve": 1, "build": 1}
    assert json.loads(first.path.read_text()) == 6.0
    spec = read_engine_spec(first.path)
    assert spec.precision == "fp16"
    assert spec.onnx_sha256 == first.steps[-1].action.inputs["onnx"]


def test_precisions_share_the_export(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    _build(weights, store, registry, tmp_path, precision="fp16")
    _build(weights, store, registry, tmp_path, precision="fp32")
    assert RUNS == {"export": 1, "halve": 1, "build": 2}


def test_force_runs_all_again(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    _build(weights, store, registry, tmp_path)
    again = _build(weights, store, registry, tmp_path, force=True)
    assert not any(s.from_cache for s in again.steps)
    assert RUNS["export"] == 2


def test_a_moved_model_is_the_same_model(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    first = _build(weights, store, registry, tmp_path)
    moved = weights.rename(tmp_path / "other.txt")
    assert _build(moved, store, registry, tmp_path).key == first.key
    moved.write_text("2 4")
    assert _build(moved, store, registry, tmp_path).key != first.key


def test_only_options_of_a_stage_change_its_key(
    weights: Path, store: Store, registry: Registry, tmp_path: Path
) -> None:
    _build(weights, store, registry, tmp_path)
    _build(weights, store, registry, tmp_path, flags={"onnxruntime": {"level": "5"}})
    assert RUNS == {"export": 1, "halve": 1, "build": 2}
    _build(weights, store, registry, tmp_path, imgsz=(64, 64))
    assert RUNS["export"] == 2


def test_one_number_is_a_square(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    engine = _build(weights, store, registry, tmp_path, imgsz=64)
    assert engine.spec.model.inputs[0].shape == (1, 3, 64, 64)
    for wrong, words in {
        100: "multiples of 32, found 100",
        0: "multiples of 32, found 0",
        "640": r"`imgsz` must be \(height, width\) in pixels, or one number for a square, found '640'",
        (64,): r"found \(64,\)",
        64.0: "found 64.0",
        True: "found True",
    }.items():
        with pytest.raises(UsageError, match=words):
            _build(weights, store, registry, tmp_path, imgsz=wrong)
    for batch in ("2", 0, 1.5):
        with pytest.raises(UsageError, match="`--batch` expects a whole number of at least 1"):
            _build(weights, store, registry, tmp_path, batch=batch)


def test_an_engine_is_shown_in_a_line(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    engine = _build(weights, store, registry, tmp_path)
    expected = f"builder='onnxruntime', precision='fp16', key='{engine.key}')"
    assert repr(engine) == f"Engine(path='{engine.path}', {expected}"


def test_a_wrong_export_stops_at_parity(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the relative L2 error of output `output0`") as caught:
        _build(weights, store, registry, tmp_path, flags={"text": {"offset": "0.5"}})
    assert caught.value.stage == "parity"
    assert RUNS["build"] == 0
    # 6.5 instead of 6 is a relative error of exactly 1/12.
    assert "0.0833" in caught.value.message
    loose = {"text": {"offset": "0.5"}, "parity": {"tolerance": "0.1"}}
    passed = _build(weights, store, registry, tmp_path, flags=loose)
    facts = next(s.record.facts for s in passed.steps if s.step.label == "parity")
    assert facts["outputs"][0]["relative_l2"] == pytest.approx(1 / 12, rel=1e-5)


def test_a_failed_stage_names_itself_and_its_log(
    weights: Path, store: Store, registry: Registry, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageError, match="the tool said no") as caught, descriptors_taken_over():
        _build(weights, store, registry, tmp_path, flags={"onnxruntime": {"fail": "on"}})
    err = caught.value
    assert err.stage == "build"
    assert err.key is not None
    assert store.find(err.key) is None
    assert err.log is not None
    assert "a tool that prints" in err.log.read_text()
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "out").exists()
    _build(weights, store, registry, tmp_path)
    assert RUNS["export"] == 1


def test_a_bad_model_leaves_nothing(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    weights.write_text("two")
    with pytest.raises(UsageError, match="not a list of numbers"):
        _build(weights, store, registry, tmp_path)
    assert list(store.records()) == []
    assert not list(store.work_folder.iterdir())


def test_a_model_that_changes_while_it_is_read(
    weights: Path, store: Store, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = registry.get("exporter", "text").stage
    original = exporter.export

    def export(*args: Any) -> Any:
        done = original(*args)
        weights.write_text("9 9")
        return done

    monkeypatch.setattr(exporter, "export", export, raising=False)
    with pytest.raises(StageError, match="changed while"):
        _build(weights, store, registry, tmp_path)


def test_walk_says_what_would_run(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    _build(weights, store, registry, tmp_path, precision="fp32")
    planned = plan_build(resolve(BuildSettings(weights=weights, imgsz=(32, 64)), registry), registry)
    seen = [
        (step.label, action is not None, record is not None) for step, action, record in executor.walk(planned, store)
    ]
    assert seen == [
        ("export", True, True),
        ("parity", True, True),
        ("halve", True, False),
        ("build", False, False),
    ]


def test_a_corrupted_intermediate_is_rebuilt(
    weights: Path, store: Store, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _build(weights, store, registry, tmp_path, precision="fp32")
    onnx = first.steps[0].record.outputs["model.onnx"].sha256
    for file in store.cache_folder.rglob("*"):
        if file.is_file() and file.read_bytes() == b"6.0" and file.suffix != ".db":
            file.chmod(0o644)
            file.write_bytes(b"7.0")
    with caplog.at_level(logging.WARNING):
        second = _build(weights, store, registry, tmp_path, precision="fp16")
    assert json.loads(second.path.read_text()) == 6.0
    assert second.steps[0].record.outputs["model.onnx"].sha256 == onnx
    assert "corrupted" in caplog.text or "rebuilding it" in caplog.text


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"precision": "int8"}, UsageError, "does not support int8"),
        ({"precision": "fp12"}, UsageError, "unknown precision `fp12`"),
        ({"builder": "onnxruntim"}, PluginError, "no builder named"),
        ({"exporter": "tf"}, PluginError, "no exporter named"),
        ({"imgsz": (33, 64)}, UsageError, "multiples of 32, found 33"),
        ({"batch": 0}, UsageError, "at least 1"),
        ({"batch": 65}, StageError, "up to 64"),
        ({"profiles": (ShapeRange((2, 32, 32), (1, 64, 64), (4, 64, 64)),)}, UsageError, "MIN:OPT:MAX"),
        ({"flags": {"onnxruntime": {"level": "6"}}}, UsageError, "at most 5"),
    ],
)
def test_refusals_come_before_any_work(
    weights: Path,
    store: Store,
    registry: Registry,
    tmp_path: Path,
    settings: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        _build(weights, store, registry, tmp_path, **settings)
    assert not RUNS
    assert not (tmp_path / "store").exists()


def test_dynamic_gets_a_profile_and_exports_at_its_optimum(
    weights: Path, store: Store, registry: Registry, tmp_path: Path
) -> None:
    built = _build(weights, store, registry, tmp_path, imgsz=(64, 96), dynamic=True, precision="fp32")
    assert built.spec.profiles == (ShapeRange((1, 32, 32), (1, 64, 96), (8, 64, 96)),)
    _build(
        weights,
        store,
        registry,
        tmp_path,
        precision="fp32",
        profiles=(ShapeRange((1, 32, 32), (1, 64, 96), (4, 128, 128)),),
    )
    assert RUNS == {"export": 1, "build": 2}


def test_an_unavailable_builder_is_skipped_or_refused(weights: Path, store: Store, tmp_path: Path) -> None:
    from yolotrt_core.plugin.stages import Availability

    class Elsewhere(FakeBuilder):
        name = "elsewhere"
        priority = 99

        def available(self) -> Availability:
            return Availability(False, "its library is missing", "pip install it")

    registry = Registry.of(fake_plugin(builders=[FakeBuilder(), Elsewhere()]))
    assert _build(weights, store, registry, tmp_path).spec.builder == "onnxruntime"
    with pytest.raises(PluginError, match="its library is missing") as caught:
        _build(weights, store, registry, tmp_path, builder="elsewhere")
    assert caught.value.hint == "pip install it"


def test_threads_that_want_one_engine_build_it_once(
    weights: Path, store: Store, registry: Registry, tmp_path: Path
) -> None:
    threads = [threading.Thread(target=_build, args=(weights, store, registry, tmp_path)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert RUNS == {"export": 1, "halve": 1, "build": 1}


def test_an_output_folder_that_is_a_file(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        _build(weights, store, registry, tmp_path)


def test_an_engine_is_only_read_with_its_own_spec(
    weights: Path, store: Store, registry: Registry, tmp_path: Path
) -> None:
    built = _build(weights, store, registry, tmp_path)
    sidecar = built.path.with_name(built.path.name + ".json")
    text = sidecar.read_text()
    built.path.write_text("7.0")
    with pytest.raises(UsageError, match="does not match its sidecar"):
        read_engine_spec(built.path)
    for bad in ("{", "[]", "{}", text.replace('"fp16"', '"fp99"')):
        sidecar.write_text(bad)
        with pytest.raises(UsageError, match="is not an engine spec"):
            read_engine_spec(built.path)
    for change, words in (
        (lambda spec: spec.pop("tools"), "field `tools` is missing"),
        (lambda spec: spec["model"].pop("labels"), "field `model.labels` is missing"),
        (lambda spec: spec["model"]["inputs"][0].update(kind=1), "field `model.inputs[0].kind` is unknown"),
        (lambda spec: spec["model"].update(strides=8), "field `model.strides` cannot be 8"),
        (lambda spec: spec.update(precision="fp99"), "field `precision`: expected one of"),
        (lambda spec: spec.update(model=[]), "field `model` is not a JSON object"),
    ):
        spec = json.loads(text)
        change(spec)
        sidecar.write_text(json.dumps(spec))
        with pytest.raises(UsageError) as raised:
            read_engine_spec(built.path)
        assert raised.value.message.startswith(f"`{sidecar}` is not an engine spec: {words}")
        assert "rebuild the engine" in str(raised.value.hint)
    sidecar.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="nested too deeply"):
        read_engine_spec(built.path)
    sidecar.unlink()
    with pytest.raises(UsageError, match="missing sidecar"):
        read_engine_spec(built.path)
    with pytest.raises(UsageError, match="no such engine file"):
        read_engine_spec(tmp_path / "none")


def test_detector_runs_what_was_built(weights: Path, store: Store, registry: Registry, tmp_path: Path) -> None:
    from yolotrt_core.api import Detector

    frame = np.full((32, 64, 3), 34, dtype=np.uint8)
    with Detector.open(weights, store=store, registry=registry, imgsz=(32, 64), batch=2) as detector:
        found = detector.detect([frame, frame, frame])
    # 34/255 everywhere, times the model's 2 * 3.
    assert [float(d.scores[0]) for d in found] == pytest.approx([0.8, 0.8, 0.8], rel=1e-6)
    assert found[0].boxes.tolist() == [[0, 0, 64, 32]]
    assert detector.frames == 3
    assert set(detector.seconds) == {"preprocess", "infer", "postprocess"}
    built = _build(weights, store, registry, tmp_path)
    with Detector.open(engine=built.path, store=store, registry=registry) as detector:
        assert float(detector.detect([frame])[0].scores[0]) == pytest.approx(0.8, rel=1e-6)
        with pytest.raises(UsageError, match="uint8"):
            detector.detect([frame.astype(np.float32)])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="mutually exclusive"):
        Detector.open(weights, engine=built.path, store=store, registry=registry)


def test_a_stage_with_a_bug_is_a_stage_error_with_the_trace_in_its_log(
    weights: Path, store: Store, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*args: Any) -> Any:
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.setattr(registry.get("exporter", "text").stage, "export", export, raising=False)
    with pytest.raises(StageError, match="failed with ZeroDivisionError: nobody expected this") as caught:
        _build(weights, store, registry, tmp_path)
    assert caught.value.log is not None
    assert "Traceback" in caught.value.log.read_text()
    assert caught.value.hint is not None
    assert "`text` of `in-process`" in caught.value.hint
