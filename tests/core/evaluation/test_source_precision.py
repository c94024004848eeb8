"""Models that are below float32 before any pass: built as what they are, and judged without a claim about float32."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fake_stages import RUNS, FakeBuilder, FakeExporter, FakePass, FakePostprocessor, FakeStage, fake_plugin
from yolotrt_core.api import Engine, build_engine
from yolotrt_core.errors import GateError, PluginError, StageError, UsageError
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import Calibrator, SourceInfo
from yolotrt_core.store.store import Store
from yolotrt_core.types import Precision

Build = Callable[..., Engine]


class _Holding(FakeExporter):
    def __init__(self, holds: Any) -> None:
        self.holds = holds

    def inspect(self, source: Any) -> SourceInfo:
        return SourceInfo(precision=self.holds)


class _Builder(FakeBuilder):
    """One of every precision whose engines run here, beside the one that runs the ONNX itself."""

    name = "other"
    priority = 90
    precisions = frozenset({"fp32", "fp16", "int8"})

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def open(self, engine: Path, spec: Any, options: Any, side_cache: Any) -> Any:
        session = super().open(engine, spec, options, side_cache)
        session.factor *= self.factor
        return session


class _Later(FakePass):
    """What is done to any engine's graph, after its precision is set."""

    name = "later"
    order = 60

    def applies(self, request: Any, options: Any) -> bool:
        return True


class _Quantizing(FakePass):
    name = "rest"
    needs_calibration = True

    def applies(self, request: Any, options: Any) -> bool:
        return bool(request.precision == "int8")

    def apply(self, model: Any, calibration: Any, *rest: Any) -> Any:
        assert calibration is None
        return super().apply(model, calibration, *rest)


class _Calibrator(FakeStage, Calibrator):
    name = "percentile"
    default_for: frozenset[Precision] = frozenset({"int8"})

    def calibrate(self, *given: Any) -> str:
        raise AssertionError("nothing to calibrate")


def _stages(holds: Any, *builders: Any) -> Registry:
    return Registry.of(
        fake_plugin(
            exporters=[_Holding(holds)],
            passes=[FakePass(), _Quantizing(), _Later()],
            calibrators=[_Calibrator()],
            builders=[*builders, FakeBuilder()],
            postprocessors=[FakePostprocessor()],
        )
    )


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Build:
    weights = tmp_path / "model.txt"
    weights.write_text("1 1")

    def call(registry: Registry, **settings: Any) -> Engine:
        wanted = BuildSettings(weights=weights, imgsz=(32, 64), **settings)
        return build_engine(wanted, store=store, registry=registry, out=tmp_path / "out")

    return call


def _labels(engine: Engine) -> list[str]:
    return [s.step.label for s in engine.steps]


def test_the_default_is_what_the_model_holds(run: Build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = run(_stages("fp16"))
    assert "`model.txt` is already fp16; building fp16" in caplog.text
    assert (engine.spec.precision, engine.path.name) == ("fp16", "model-fp16.bin")
    assert _labels(engine) == ["export", "parity", "later", "build"]
    before = RUNS["build"]
    caplog.clear()
    assert run(_stages("fp16"), precision="fp16").key == engine.key
    assert RUNS["build"] == before
    assert "; building" not in caplog.text
    plain = run(_stages(None))
    assert plain.spec.precision == "fp16"
    assert _labels(plain) == ["export", "parity", "halve", "later", "build"]


@pytest.mark.parametrize("asked", ["fp32", "int8"])
def test_another_precision_is_refused(run: Build, asked: str) -> None:
    with pytest.raises(UsageError) as told:
        run(_stages("fp16", _Builder()), precision=asked)
    assert str(told.value.message) == (f"cannot build {asked}: `model.txt` is already fp16")
    assert told.value.hint == ("use the float32 model, or build with `--precision fp16`")


def test_a_type_that_exports_cannot_be_checked_in_is_refused_in_words(run: Build) -> None:
    before = RUNS["export"]
    for asked in (None, "bf16", "fp32", "auto"):
        for registry in (_stages("bf16"), _stages("bf16", _Builder())):
            with pytest.raises(UsageError) as told:
                run(registry, precision=asked)
            assert str(told.value.message) == (
                "`model.txt` is already bf16, which onnxruntime, used for the parity check, does not support"
            )
            assert told.value.hint == "use the float32 model and build it with `--precision bf16`"
    assert RUNS["export"] == before


def test_half_rounding_is_not_judged_by_the_tolerance_of_float32(run: Build) -> None:
    """1.001 instead of 1 is off by 1e-3: two roundings of a half number, and ten times what float32 may be off."""
    off: dict[str, Any] = {"text": {"offset": "0.001"}}
    engine = run(_stages("fp16"), flags=off)
    facts = next(s.record.facts for s in engine.steps if s.step.kind == "parity")
    assert facts["tolerance"] == 2e-3
    for holds, flags in (
        (None, off),
        ("int8", off),
        ("fp16", {"text": {"offset": "0.01"}}),
        ("fp16", {**off, "parity": {"tolerance": "1e-4"}}),
        ("fp16", {**off, "parity": {"tolerance": "0"}}),
    ):
        with pytest.raises(StageError, match="parity check failed"):
            run(_stages(holds, _Builder()), flags=flags)


def test_a_quantizing_pass_sees_to_the_rest_without_ranges(run: Build) -> None:
    engine = run(_stages("int8", _Builder()))
    assert engine.spec.precision == "int8"
    assert _labels(engine) == ["export", "parity", "rest", "later", "build"]


def test_the_very_graph_that_was_given_gets_no_verdict(run: Build, caplog: pytest.LogCaptureFixture) -> None:
    engine = run(_stages("fp16"))
    assert engine.gate is None
    assert "accuracy gate skipped: the source ONNX is already fp16" in caplog.text


def test_another_library_is_judged_by_what_was_given(run: Build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = run(_stages("fp16", _Builder(0.99)))
    assert engine.gate is not None
    assert engine.gate.facts["reference"] == "fp16 source"
    assert "1 of 1 fp16 source box matched" in engine.gate.text
    assert "accuracy gate compared with the fp16 source, not with fp32" in caplog.text
    caplog.clear()
    plain = run(_stages(None, _Builder(0.99)))
    assert plain.gate is not None
    assert plain.gate.facts["reference"] == "fp32"
    assert "1 of 1 fp32 box matched" in plain.gate.text
    assert "not with fp32" not in caplog.text


def test_a_broken_engine_is_held_back_all_the_same(run: Build) -> None:
    with pytest.raises(GateError, match="the fp16 engine failed the accuracy gate") as told:
        run(_stages("fp16", _Builder(0.5)))
    assert "--calibrator" not in str(told.value.hint)


def test_no_limit_on_a_loss_that_cannot_be_measured(run: Build, tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    assert cv2.imwrite(str(tmp_path / "set" / "images" / "0.png"), np.full((32, 64, 3), 200, np.uint8))
    (tmp_path / "set" / "labels" / "0.txt").write_text("0 0.5 0.5 1 1\n")
    given: dict[str, Any] = {"eval_data": tmp_path / "set", "max_drop": 0.01}
    before = RUNS["export"]
    with pytest.raises(UsageError, match=r"`--max-drop` needs an fp32 reference, but `model\.txt` is already fp16"):
        run(_stages("fp16", _Builder()), **given)
    assert RUNS["export"] == before
    assert run(_stages("fp16", _Builder()), **given, flags={"gate": {"check": "off"}}).gate is None


def test_auto_compares_the_builders_only(run: Build) -> None:
    engine = run(_stages("int8", _Builder()), precision="auto")
    assert engine.auto is not None
    assert [(o.builder, o.precision) for o in engine.auto.options] == [("other", "int8")]
    assert engine.auto.text.endswith("the only precision of the source model")
    with pytest.raises(UsageError, match="no builder on this machine supports int8"):
        run(_stages("int8"), precision="auto")


def test_an_option_of_the_pass_that_has_nothing_to_do(run: Build, caplog: pytest.LogCaptureFixture) -> None:
    class Halving(FakePass):
        Options = type(FakeBuilder.Options())

    registry = Registry.of(fake_plugin(exporters=[_Holding("fp16")], passes=[Halving()]))
    run(registry, flags={"halve": {"level": "5"}})
    assert "`--halve-level` has no effect: no stage `halve` runs in this build" in caplog.text


def test_a_precision_that_no_model_has(run: Build) -> None:
    for wrong in ("fp32", "half", 16):
        with pytest.raises(PluginError, match=r"`inspect` of exporter `text` .*should be one of fp16, bf16"):
            run(_stages(wrong))
