"""Every hook is documented, and called as its specification says, by two real builds with a plugin that has all."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fake_layers import LayeredCalibrator
from fake_stages import FakeBuilder, FakeExporter, FakePass, FakePostprocessor
from yolotrt_core.api import Engine, build_engine
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin import hookspecs
from yolotrt_core.plugin.registered import KINDS
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
HOOKS = sorted(n for n in vars(hookspecs) if n.startswith("yolotrt_"))
PLURALS = {kind: "passes" if kind == "pass" else f"{kind}s" for kind in KINDS}


@pytest.mark.parametrize("name", HOOKS)
def test_the_guide_has_its_exact_signature(name: str) -> None:
    guide = (ROOT / "plugins" / "README.md").read_text()
    signature = str(inspect.signature(getattr(hookspecs, name))).replace("'", "").replace("|", "\\|")
    assert f"| `{name}` | `{signature}` |" in guide


@dataclass
class Call:
    """One call of a hook: what it was given by name, and what it returned."""

    hook: str
    given: dict[str, Any]
    returned: Any


class Everything:
    """A plugin that implements every hook and notes each call."""

    YOLOTRT_API = hookspecs.API_VERSION
    __name__ = "everything"

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def _note(self, hook: str, returned: Any, **given: Any) -> Any:
        self.calls.append(Call(hook, given, returned))
        return returned

    def calls_of(self, hook: str) -> list[Call]:
        return [call for call in self.calls if call.hook == hook]

    @hookspecs.hookimpl
    def yolotrt_exporters(self) -> Any:
        return self._note("yolotrt_exporters", [FakeExporter()])

    @hookspecs.hookimpl
    def yolotrt_passes(self) -> Any:
        return self._note("yolotrt_passes", [FakePass()])

    @hookspecs.hookimpl
    def yolotrt_calibrators(self) -> Any:
        return self._note("yolotrt_calibrators", [LayeredCalibrator()])

    @hookspecs.hookimpl
    def yolotrt_builders(self) -> Any:
        return self._note("yolotrt_builders", [FakeBuilder()])

    @hookspecs.hookimpl
    def yolotrt_postprocessors(self) -> Any:
        return self._note("yolotrt_postprocessors", [FakePostprocessor()])

    @hookspecs.hookimpl
    def yolotrt_select_exporter(self, source: Any) -> Any:
        return self._note("yolotrt_select_exporter", FakeExporter.name, source=source)

    @hookspecs.hookimpl
    def yolotrt_environment(self) -> Any:
        return self._note("yolotrt_environment", {"EVERYTHING_QUIET": "1"})

    @hookspecs.hookimpl
    def yolotrt_stage_started(self, action: Any) -> Any:
        return self._note("yolotrt_stage_started", None, action=action)

    @hookspecs.hookimpl
    def yolotrt_stage_finished(self, action: Any, record: Any, from_cache: bool, seconds: float) -> Any:
        given = {"action": action, "record": record, "from_cache": from_cache, "seconds": seconds}
        return self._note("yolotrt_stage_finished", None, **given)


@dataclass
class Built:
    """Two equal builds: what was made, the plugin, and how many calls it had after the first."""

    plugin: Everything
    registry: Registry
    weights: Path
    first: Engine
    second: Engine
    calls_of_first: int


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("hooks")
    weights = folder / "model.words"  # an ending that says nothing: the hook must
    weights.write_text("2 3")
    plugin, store = Everything(), Store(folder / "store")
    registry = Registry.of(plugin)
    assert registry.environment() == {"EVERYTHING_QUIET": "1"}
    settings = BuildSettings(weights=weights, imgsz=(32, 64), precision="fp16")
    first = build_engine(settings, store=store, registry=registry, out=folder / "first")
    assert "EVERYTHING_QUIET" not in os.environ  # the command line alone sets it
    calls = len(plugin.calls)
    second = build_engine(settings, store=store, registry=registry, out=folder / "second")
    yield Built(plugin, registry, weights, first, second, calls)
    store.close()


@pytest.mark.parametrize("name", HOOKS)
def test_it_is_called_with_all_its_arguments(built: Built, name: str) -> None:
    calls = built.plugin.calls_of(name)
    assert calls
    parameters = inspect.signature(getattr(hookspecs, name)).parameters
    assert all(call.given.keys() == parameters.keys() for call in calls)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_it_returns_is_the_one_of_the_registry(built: Built, kind: str) -> None:
    (call,) = built.plugin.calls_of(f"yolotrt_{PLURALS[kind]}")
    (stage,) = call.returned
    (found,) = built.registry.stages[kind].values()
    assert found.name == stage.name
    stage.mark = object()
    assert found.stage.mark is stage.mark  # a guard answers in its place


def test_the_exporter_it_chooses_is_used(built: Built) -> None:
    calls = built.plugin.calls_of("yolotrt_select_exporter")
    wanted = (built.weights, hashlib.sha256(b"2 3").hexdigest(), "model")
    assert {(c.given["source"].path, c.given["source"].sha256, c.given["source"].name) for c in calls} == {wanted}
    assert built.first.steps[0].step.identity.name == calls[0].returned


def test_it_is_told_before_and_after_each_stage(built: Built) -> None:
    told = [call for call in built.plugin.calls[: built.calls_of_first] if call.hook.startswith("yolotrt_stage_")]
    assert [call.hook.rpartition("_")[2] for call in told] == ["started", "finished"] * len(built.first.steps)
    for started, finished, step in zip(told[::2], told[1::2], built.first.steps, strict=True):
        assert started.given == {"action": step.action}
        assert finished.given["action"] == step.action
        assert finished.given["record"] == step.record
        assert finished.given["from_cache"] is False
        assert finished.given["seconds"] >= step.record.seconds  # and a little for the store


def test_what_was_found_is_told_once(built: Built) -> None:
    told = [call for call in built.plugin.calls[built.calls_of_first :] if call.hook.startswith("yolotrt_stage_")]
    assert {call.hook for call in told} == {"yolotrt_stage_finished"}
    assert [(c.given["record"], c.given["from_cache"]) for c in told] == [(s.record, True) for s in built.second.steps]


def test_there_is_a_hook_for_every_kind_of_stage() -> None:
    assert {f"yolotrt_{plural}" for plural in PLURALS.values()} <= set(HOOKS)
