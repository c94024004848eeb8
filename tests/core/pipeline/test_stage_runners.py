"""What a builder asks of the stages before it: ranges instead of Q/DQ nodes, fp32 that stays whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_stages import FakeBuilder, FakePass, FakeStage, fake_plugin
from yolotrt_core.api import Engine, build_engine
from yolotrt_core.calibration.ranges import Ranges, write_ranges
from yolotrt_core.errors import UsageError
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import RANGES_FILE, Calibrator
from yolotrt_core.store.store import Store

Build = Callable[..., Engine]
LEVEL_5 = {"onnxruntime": {"level": "5"}}


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Build:
    weights = tmp_path / "model.txt"
    weights.write_text("2 3")

    def call(registry: Registry, precision: Any = "fp16", **settings: Any) -> Engine:
        wanted = BuildSettings(weights=weights, imgsz=(32, 64), precision=precision, **settings)
        return build_engine(wanted, store=store, registry=registry, out=tmp_path / "out")

    return call


def labels(engine: Engine) -> list[str]:
    return [s.step.label for s in engine.steps]


class _Ranging(FakeBuilder):
    """A builder that takes ranges itself, where asked to."""

    def takes_ranges(self, request: Any, options: Any) -> bool:
        return bool(options.level == 5)

    def build(self, model: Any, calibration: Any, *rest: Any) -> Any:
        self.calibration = calibration and calibration.method
        return super().build(model, calibration, *rest)


class _Rounding(FakeBuilder):
    """A builder whose library cuts fp32 short, whatever is asked."""

    def rounds_fp32(self, request: Any, options: Any) -> bool:
        return bool(options.level == 5)


class _Exact(FakePass):
    def applies(self, request: Any, options: Any) -> bool:
        return bool(request.exact_fp32)


def test_a_pass_hears_that_the_builders_library_cuts_fp32_short(run: Build) -> None:
    rounding = Registry.of(fake_plugin(passes=[_Exact()], builders=[_Rounding()]))
    assert not rounding.broken
    plain = run(rounding, precision="fp32")
    assert labels(plain) == ["export", "parity", "build"]
    exact = run(rounding, precision="fp32", flags=LEVEL_5)
    assert labels(exact) == ["export", "parity", "halve", "build"]
    assert [s.from_cache for s in exact.steps] == [True, True, False, False]


class _Calibrator(FakeStage, Calibrator):
    name = "steady"
    needs_images = False

    def calibrate(self, model: Any, batches: Any, request: Any, options: Any, out: Path) -> str:
        assert list(batches) == []
        assert request.precision == "fp32"
        write_ranges(out / RANGES_FILE, Ranges(model.sha256, "steady", {"x": 1.0}))
        return "steady"


class _Quantizing(FakePass):
    needs_calibration = True

    def apply(self, model: Any, calibration: Any, *rest: Any) -> Any:
        assert calibration.method == "steady"
        return super().apply(model, calibration, *rest)


def test_ranges_reach_an_engine_once(run: Build) -> None:
    """Through the pass that quantizes, or to the builder that asks for them; never both."""
    builder = _Ranging()
    plugin = fake_plugin(passes=[_Quantizing()], calibrators=[_Calibrator()], builders=[builder])
    ranging = Registry.of(plugin)
    assert not ranging.broken
    engine = run(ranging, calibrator="steady")
    assert labels(engine) == ["export", "parity", "calibrate", "halve", "build"]
    assert builder.calibration is None
    engine = run(ranging, calibrator="steady", flags=LEVEL_5)
    assert labels(engine) == ["export", "parity", "calibrate", "build"]
    assert builder.calibration == "steady"


def test_a_calibrator_without_images_says_so(run: Build) -> None:
    class Wanting(_Calibrator):
        needs_images = True

    plugin = fake_plugin(passes=[_Quantizing()], calibrators=[Wanting()])
    with pytest.raises(UsageError, match="calibrator `steady` needs images, but `--calib-data` was not given"):
        run(Registry.of(plugin), calibrator="steady")
    with pytest.raises(UsageError, match="fp16 has no default calibrator"):
        run(Registry.of(plugin))
