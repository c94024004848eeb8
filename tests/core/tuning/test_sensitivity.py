"""Sensitivity and the search for a mix of precisions, on networks whose loss is known in closed form."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import fake_layers
from fake_layers import RUNS, SHARES, SIZE, LayeredBuilder, layered_stages, write_images, write_model
from yolotrt_core.api import Detector, Engine, build_engine
from yolotrt_core.errors import GateError, PluginError, StageError, UsageError
from yolotrt_core.pipeline.build_options import BuildSettings, resolve
from yolotrt_core.pipeline.plan import plan_build
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store
from yolotrt_core.tuning import mixed_precision, sensitivity

pytestmark = pytest.mark.usefixtures("short_timing")


@pytest.fixture(autouse=True)
def _counted_from_zero() -> None:
    RUNS.clear()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "set")


def _settings(tmp_path: Path, images: Path, **settings: Any) -> BuildSettings:
    given = {"precision": "int8", "imgsz": SIZE, "calib_data": images / "images", "eval_data": images} | settings
    return BuildSettings(weights=write_model(tmp_path, given.pop("shares", SHARES)), **given)


def _build(registry: Registry, store: Store, settings: BuildSettings, out: Path) -> Engine:
    return build_engine(settings, store=store, registry=registry, out=out / "out")


def _measure(store: Store, settings: BuildSettings, registry: Registry | None = None) -> sensitivity.Sensitivity:
    registry = registry or layered_stages()
    planned = plan_build(resolve(settings, registry), registry)
    return sensitivity.measure(planned, store=store, registry=registry)


def test_each_layer_is_charged_with_what_it_costs_alone(store: Store, tmp_path: Path, images: Path) -> None:
    found = _measure(store, _settings(tmp_path, images))
    assert [d.layer for d in found.layers] == sorted(SHARES, key=lambda name: -SHARES[name])
    for layer in found.layers:
        assert layer.error == pytest.approx(SHARES[layer.layer], rel=1e-3)
        assert layer.drift == pytest.approx(SHARES[layer.layer], rel=1e-3)
        assert layer.agreement == 1
    assert (found.precision, found.images, found.from_cache) == ("int8", 3, False)


def test_nothing_is_measured_twice(store: Store, tmp_path: Path, images: Path) -> None:
    settings = _settings(tmp_path, images)
    first = _measure(store, settings)
    assert RUNS["lowered"] == len(SHARES)
    again = _measure(store, settings)
    assert again.from_cache
    assert again.layers == first.layers
    assert RUNS["lowered"] == len(SHARES)
    fewer = _measure(store, _settings(tmp_path, images, flags={"sensitivity": {"images": "1"}}))
    assert fewer.images == 1
    assert RUNS["lowered"] == 2 * len(SHARES)


def test_a_pass_that_fails_on_a_layer_is_named(store: Store, tmp_path: Path, images: Path) -> None:
    registry = layered_stages()

    def fail(*given: Any) -> Any:
        raise RuntimeError("no luck")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.get("pass", "int8").stage, "apply", fail, raising=False)
        with pytest.raises(PluginError, match="`apply` of pass `int8` of `in-process` failed with RuntimeError"):
            _measure(store, _settings(tmp_path, images), registry)


def test_layers_the_user_keeps_are_not_measured(store: Store, tmp_path: Path, images: Path) -> None:
    found = _measure(store, _settings(tmp_path, images, flags={"int8": {"keep": "model.1,model.2"}}))
    assert [d.layer for d in found.layers] == ["model.3", "model.0"]


def test_there_must_be_layers(store: Store, tmp_path: Path, images: Path) -> None:
    with pytest.raises(UsageError, match="fp16 quantizes no layers"):
        _measure(store, _settings(tmp_path, images, precision="fp16"))
    with pytest.raises(UsageError, match="no layer can be quantized"):
        _measure(store, _settings(tmp_path, images, flags={"int8": {"keep": ",".join(SHARES)}}))


# IoU with the truth is 1 minus the shares quantized; AP50-95 is how many of the ten thresholds are under it.
@pytest.mark.parametrize(
    ("max_drop", "kept", "losses"),
    [
        (0.35, (), [0.3]),
        (0.15, ("model.1",), [0.3, 0.1]),
        (0.05, ("model.1", "model.3"), [0.3, 0.1, 0.0]),
        (0.0, ("model.1", "model.3"), [0.3, 0.1, 0.0]),
    ],
)
def test_the_fewest_layers_stay_in_fp16(
    store: Store, tmp_path: Path, images: Path, max_drop: float, kept: tuple[str, ...], losses: list[float]
) -> None:
    engine = _build(layered_stages(), store, _settings(tmp_path, images, max_drop=max_drop), tmp_path)
    assert engine.gate is not None
    assert engine.gate.passed
    if not kept:
        assert engine.mixed is None
        return
    assert engine.mixed is not None
    assert engine.mixed.kept == kept
    assert [t.kept for t in engine.mixed.tried] == list(range(len(losses)))
    assert [t.loss for t in engine.mixed.tried] == pytest.approx(losses, abs=1e-6)
    assert [t.passed for t in engine.mixed.tried] == [loss <= max_drop for loss in losses]
    assert all((t.low, t.high) == (None, None) for t in engine.mixed.tried)  # the images are too few to say
    assert " to " not in engine.mixed.text
    assert engine.mixed.ms is not None
    assert engine.mixed.ms_before is not None
    assert engine.mixed.ms > engine.mixed.ms_before  # each layer in fp16 takes 3 ms more
    assert engine.key == engine.mixed.tried[-1].key
    assert "model-int8-onnxruntime-refused" not in store.refs()


def test_layers_the_user_keeps_stay_kept(store: Store, tmp_path: Path, images: Path) -> None:
    settings = _settings(tmp_path, images, max_drop=0.05, flags={"int8": {"keep": "model.3"}})
    engine = _build(layered_stages(), store, settings, tmp_path)
    assert engine.mixed is not None
    assert engine.mixed.kept == ("model.1",)
    assert engine.mixed.layers == len(SHARES) - 1
    lowered = next(s for s in engine.steps if s.step.label == "int8")
    assert lowered.step.options.keep == "model.3,model.1"


def test_only_a_stated_limit_starts_a_search(store: Store, tmp_path: Path, images: Path) -> None:
    with pytest.raises(GateError, match=r"loss 0\.3000"):
        _build(layered_stages(), store, _settings(tmp_path, images), tmp_path)
    off = _settings(tmp_path, images, max_drop=0.15, flags={"sensitivity": {"search": "off"}})
    with pytest.raises(GateError, match=r"loss 0\.3000"):
        _build(layered_stages(), store, off, tmp_path)
    assert RUNS["build"] == 1


def test_when_no_mix_will_do_fp16_is_the_answer(store: Store, tmp_path: Path, images: Path) -> None:
    settings = _settings(tmp_path, images, max_drop=0.01, shares={"model.0": 0.28, "model.1": 0.28})
    with pytest.raises(GateError, match=r"no int8 configuration meets.*1 of 2 layers in fp16 lose 0\.5000"):
        _build(layered_stages(), store, settings, tmp_path)
    assert store.find(store.refs()["model-int8-onnxruntime-refused"]) is not None
    assert not (tmp_path / "out").exists()


def test_an_interrupted_search_goes_on_where_it_stopped(
    store: Store, tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _settings(tmp_path, images, max_drop=0.05)
    RUNS["interrupt at"] = 3
    with pytest.raises(KeyboardInterrupt):
        _build(layered_stages(), store, settings, tmp_path)
    lowered, built = RUNS["lowered"], RUNS["build"]
    assert (lowered, built) == (1 + len(SHARES) + 2, 3)
    with caplog.at_level(logging.INFO):
        engine = _build(layered_stages(), store, settings, tmp_path)
    assert engine.mixed is not None
    assert engine.mixed.kept == ("model.1", "model.3")
    assert (RUNS["lowered"] - lowered, RUNS["build"] - built) == (0, 1)  # only the build that was interrupted
    again = _build(layered_stages(), store, settings, tmp_path)
    assert again.mixed == engine.mixed
    assert (RUNS["lowered"] - lowered, RUNS["build"] - built) == (0, 1)
    assert "2 of 4 layers kept in fp16 (model.1, model.3)" in caplog.text


@given(st.integers(1, 200), st.integers(0, 200))
def test_the_fewest_is_found_with_few_questions(count: int, least: int) -> None:
    asked = []

    def passes(number: int) -> bool:
        assert 1 <= number < count
        asked.append(number)
        return number >= least

    expected = next((n for n in range(1, count) if n >= least), None)
    assert mixed_precision.find_fewest(passes, count) == expected
    assert len(asked) == len(set(asked))
    assert len(asked) <= 2 * count.bit_length()


@given(st.lists(st.booleans(), min_size=2, max_size=70))
def test_whatever_noise_says_the_answer_did_pass(answers: list[bool]) -> None:
    found = mixed_precision.find_fewest(lambda number: answers[number - 1], len(answers))
    if found is not None:
        assert answers[found - 1]
        assert found == 1 or not answers[found - 2]


class _Slower(LayeredBuilder):
    """The same engines, each inference three times as long."""

    name = "slower"
    priority = 40

    def open(self, *rest: Any) -> Any:
        session = super().open(*rest)
        session._ms *= 3
        return session


def test_auto_takes_the_fastest_that_passes(store: Store, tmp_path: Path, images: Path) -> None:
    registry = layered_stages(_Slower())
    settings = _settings(tmp_path, images, precision="auto", max_drop=0.35)
    engine = _build(registry, store, settings, tmp_path)
    assert engine.auto is not None
    assert (engine.spec.builder, engine.spec.precision, engine.mixed) == ("onnxruntime", "int8", None)
    assert "the fastest that passes the gate" in engine.auto.text
    tried = {(o.builder, o.precision): o for o in engine.auto.options}
    assert set(tried) == {(b, p) for b in ("onnxruntime", "slower") for p in ("fp32", "fp16", "int8")}
    assert all(o.ms is not None and o.passed for o in tried.values())
    # Both builders write the same bytes: a time is of what runs them.
    assert tried["slower", "fp32"].ms > 2 * tried["onnxruntime", "fp32"].ms
    assert engine.path.name == "model-int8.bin"
    before = RUNS["build"]
    again = _build(registry, store, settings, tmp_path)
    assert (again.auto, RUNS["build"]) == (engine.auto, before)


def test_auto_mends_what_is_fast_but_loses_too_much(store: Store, tmp_path: Path, images: Path) -> None:
    settings = _settings(tmp_path, images, precision="auto", max_drop=0.15)
    engine = _build(layered_stages(), store, settings, tmp_path)
    assert engine.auto is not None
    assert engine.mixed is not None
    assert engine.mixed.kept == ("model.1",)
    assert engine.spec.precision == "int8"
    assert [(o.precision, o.kept, o.passed) for o in engine.auto.options] == [
        ("fp32", 0, True),
        ("fp16", 0, True),
        ("int8", 0, False),
        ("int8", 1, True),
    ]


def test_auto_says_when_fp16_is_the_answer(
    store: Store, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake_layers.MS, "int8", 30.0)  # quantized, it passes, and is slower
    engine = _build(layered_stages(), store, _settings(tmp_path, images, precision="auto", max_drop=0.35), tmp_path)
    assert engine.spec.precision == "fp16"
    assert engine.auto is not None
    assert engine.auto.text.startswith("selected fp16")


def test_auto_searches_nothing_that_is_slow_already(
    store: Store, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake_layers.MS, "int8", 30.0)
    engine = _build(layered_stages(), store, _settings(tmp_path, images, precision="auto", max_drop=0.1), tmp_path)
    assert engine.spec.precision == "fp16"
    assert RUNS["build"] == 3


def test_auto_without_images_leaves_int8_out(store: Store, tmp_path: Path, images: Path) -> None:
    settings = _settings(tmp_path, images, precision="auto", calib_data=None)
    engine = _build(layered_stages(), store, settings, tmp_path)
    assert engine.spec.precision == "fp16"
    assert engine.auto is not None
    left_out = next(o for o in engine.auto.options if o.precision == "int8")
    assert (left_out.ms, left_out.passed) == (None, None)
    assert "`--calib-data`" in left_out.note


def test_a_detector_opens_what_auto_chose(store: Store, tmp_path: Path, images: Path) -> None:
    settings = _settings(tmp_path, images, precision="auto", max_drop=0.35)
    given = {f: getattr(settings, f) for f in settings.__slots__ if f != "weights"}
    with Detector.open(settings.weights, store=store, registry=layered_stages(_Slower()), **given) as detector:
        assert (detector.spec.builder, detector.spec.precision) == ("onnxruntime", "int8")
        found = detector.detect([np.full((32, 64, 3), 255, np.uint8)])
    assert found[0].scores[0] == pytest.approx(1 - sum(SHARES.values()))


def test_a_layer_that_breaks_the_network_is_named(store: Store, tmp_path: Path, images: Path) -> None:
    with pytest.raises(StageError, match=r"non-finite outputs with `model\.1` quantized"):
        _measure(store, _settings(tmp_path, images, shares={"model.0": 0.1, "model.1": float("inf")}))


def test_auto_needs_the_gate(store: Store, tmp_path: Path, images: Path) -> None:
    settings = _settings(tmp_path, images, precision="auto", flags={"gate": {"check": "off"}})
    with pytest.raises(UsageError, match="`--precision auto` requires the accuracy gate"):
        _build(layered_stages(), store, settings, tmp_path)
    with pytest.raises(UsageError, match="precision `auto` is not allowed here"):
        resolve(settings, layered_stages())
