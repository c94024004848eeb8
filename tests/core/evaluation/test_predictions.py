"""What engines answer is kept only as long as all that made the answer stays: code, options, batch and place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fake_layers import RUNS, SIZE, LayeredBuilder, WideBox, layered_stages, write_images, write_model
from yolotrt_core.evaluation.evaluator import open_framework
from yolotrt_core.evaluation.predictions import predict
from yolotrt_core.pipeline.build_options import BuildSettings, resolve
from yolotrt_core.plugin.options import option
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.code_digest import code_digest
from yolotrt_core.store.store import Store
from yolotrt_core.tuning import sensitivity, validated_build
from yolotrt_core.tuning.engine_timing import times_ms
from yolotrt_core.tuning.validated_build import ValidatedBuild
from yolotrt_core.types import Selection

# What an answer is kept of: label to whether it was found in the store.
Found = Mapping[str, bool]


@pytest.fixture(autouse=True)
def _counted_from_zero() -> None:
    RUNS.clear()


@pytest.fixture
def settings(tmp_path: Path) -> BuildSettings:
    images = write_images(tmp_path / "set")
    given = {"calib_data": images / "images", "eval_data": images, "max_drop": 0.5}
    return BuildSettings(weights=write_model(tmp_path), precision="int8", imgsz=SIZE, **given)


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(module: str, text: str) -> None:
        (tmp_path / f"{module}.py").write_text(text)
        code_digest.cache_clear()

    return write


@dataclass(frozen=True)
class Running:
    threads: int = option(1, help="Threads of one inference", in_key=False)
    reach: int = option(1, help="What only a session looks at")


class Apart(LayeredBuilder):
    """A builder that runs its engines by code of their own."""

    Options = Running
    sources = ("making_of_the_test",)
    session_sources = ("running_of_the_test",)

    def build(self, model: Any, calibration: Any, request: Any, options: Any, *rest: Any) -> Any:
        return super().build(model, calibration, request, LayeredBuilder.Options(), *rest)


@dataclass(frozen=True)
class Looking:
    hurry: bool = option(False, help="Decode faster", in_key=False)


class Hasty(WideBox):
    Options = Looking


def _made(settings: BuildSettings, store: Store, registry: Registry) -> tuple[ValidatedBuild, Found]:
    """Build, judge and predict; say what was found in the store."""
    resolved = resolve(settings, registry)
    made = validated_build.build_and_validate(resolved, store=store, registry=registry)
    found = {result.step.label: result.from_cache for result in made.results}
    assert made.gate is not None
    found["gate"] = made.gate.from_cache
    found["sensitivity"] = sensitivity.measure(made.planned, store=store, registry=registry).from_cache
    return made, found


def _predicted(made: ValidatedBuild, store: Store, registry: Registry, tmp_path: Path, images: Path) -> bool:
    files = sorted((images / "images").iterdir())
    with validated_build.open_engine(made, tmp_path, store=store, registry=registry) as detector:
        return predict(detector, files, Selection(conf=0.1), store=store, registry=registry).from_cache


def test_an_edit_of_what_runs_an_engine_answers_anew_and_rebuilds_nothing(
    store: Store, tmp_path: Path, settings: BuildSettings, edit: Callable[[str, str], None]
) -> None:
    registry = layered_stages(own=Apart())
    edit("making_of_the_test", "a = 1\n")
    edit("running_of_the_test", "a = 1\n")
    for text in ("a = 1\n", "a = 2\n"):
        edit("running_of_the_test", text)
        made, found = _made(settings, store, registry)
        answers = ("parity", "gate", "sensitivity")
        if text == "a = 1\n":
            assert not any(found.values())
        else:
            assert found == {label: label not in answers for label in found}
        assert not _predicted(made, store, registry, tmp_path, tmp_path / "set")
        assert _predicted(made, store, registry, tmp_path, tmp_path / "set")
    built = RUNS["build"]
    edit("making_of_the_test", "a = 2\n")
    made, found = _made(settings, store, registry)
    assert not found["build"]
    assert RUNS["build"] == built + 1
    assert found["parity"] and found["gate"] and found["sensitivity"]  # of an engine of the same bytes
    assert _predicted(made, store, registry, tmp_path, tmp_path / "set")


def test_a_stage_that_does_not_tell_is_taken_to_run_by_its_sources(
    store: Store, settings: BuildSettings, edit: Callable[[str, str], None]
) -> None:
    class Together(LayeredBuilder):
        sources = ("making_of_the_test",)

    edit("making_of_the_test", "a = 1\n")
    _made(settings, store, layered_stages(own=Together()))
    edit("making_of_the_test", "a = 2\n")
    _, found = _made(settings, store, layered_stages(own=Together()))
    assert not any(found[label] for label in ("build", "parity", "gate", "sensitivity"))


def test_an_option_that_only_running_looks_at_is_answered_anew(
    store: Store, settings: BuildSettings, edit: Callable[[str, str], None]
) -> None:
    edit("making_of_the_test", "")
    edit("running_of_the_test", "")
    registry = layered_stages(own=Apart())
    _made(settings, store, registry)
    _, found = _made(replace(settings, flags={"onnxruntime": {"reach": "2"}}), store, registry)
    assert not found["gate"] and not found["sensitivity"]
    _, found = _made(replace(settings, flags={"onnxruntime": {"threads": "2"}}), store, registry)
    assert all(found.values())  # what cannot change a byte of the answer


def test_a_model_in_its_own_framework_tells_what_runs_it(tmp_path: Path) -> None:
    from yolotrt_core.export.model_source import default_model_path

    registry = Registry.discover()
    with open_framework(BuildSettings(weights=default_model_path(), imgsz=SIZE), registry) as detector:
        exporter = registry.get("exporter", "torch")
        code = detector.opened_by["code"]
        assert isinstance(code, dict)
        assert code["source_sha256"] == exporter.session_identity.source_sha256


@pytest.mark.parametrize(
    ("changed", "measured"),
    [
        ({}, False),
        ({"flags": {"onnxruntime": {"threads": "2"}}}, True),
        ({"flags": {"widebox": {"hurry": "on"}}}, True),
        ({"batch": 2}, True),
        ({"gpu": "another"}, True),
    ],
    ids=str,
)
def test_a_speed_is_of_every_option_the_batch_and_the_place(
    changed: dict[str, Any], measured: bool, store: Store, settings: BuildSettings, edit: Callable[[str, str], None]
) -> None:
    runs: list[Any] = []

    class Placed(Apart):
        gpu = "one"

        def place(self, options: Any) -> Mapping[str, str]:
            return {"gpu": self.gpu}

        def open(self, *given: Any) -> Any:
            runs.append(given)
            return super().open(*given)

    edit("making_of_the_test", "")
    edit("running_of_the_test", "")
    builder = Placed()
    registry = layered_stages(own=builder, head=Hasty())
    resolved = resolve(settings, registry)
    made = validated_build.build_and_validate(resolved, store=store, registry=registry)
    first = times_ms([made], store=store, registry=registry)
    builder.gpu = changed.pop("gpu", builder.gpu)
    batch = changed.pop("batch", settings.batch)
    request = replace(made.planned.request, batch=batch)
    options = replace(settings, **changed).options
    planned = replace(made.planned, request=request, resolved=replace(resolved, options=options))
    again = replace(made, planned=planned)
    before = len(runs)
    second = times_ms([again], store=store, registry=registry)
    assert (len(runs) > before) == measured
    assert second.keys() == first.keys()
    assert measured or second == first
