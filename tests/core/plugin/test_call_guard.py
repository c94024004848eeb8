"""An unexpected exception of a stage is reported as a fault of its distribution."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_stages import FakeBuilder, FakeExporter, FakePass, FakePostprocessor, FakeSession, fake_plugin
from yolotrt_core.api import Detector, Engine, build_engine
from yolotrt_core.cli import doctor, plugins, stdio
from yolotrt_core.errors import PluginError, StageError
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.options import option
from yolotrt_core.plugin.registered import OWN_DIST, PluginSource
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import Availability
from yolotrt_core.store.store import Store

DIST = "bad-dist"


class _Builder(FakeBuilder):
    """A builder of the lowest priority, used only where it is named."""

    name = "bad"
    priority = -1


class _Preferred(_Builder):
    priority = 1000


class _Pass(FakePass):
    name = "bad"


class _Head(FakePostprocessor):
    name = "bad"
    heads = frozenset({"badhead"})


class _Exporter(FakeExporter):
    name = "bad"


_KINDS = {_Builder: "builders", _Pass: "passes", _Head: "postprocessors", _Exporter: "exporters"}


def _raising(error: BaseException) -> Callable[..., Any]:
    def method(self: Any, *given: Any) -> Any:
        raise error

    return method


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda self, *given: answer


def _with(base: type, **members: Any) -> Registry:
    """Return a registry of the fake stages, as if built in, and of one third-party stage with these members."""
    stage = type("Bad", (base,), members)()
    kind = next(plural for known, plural in _KINDS.items() if issubclass(base, known))
    brought: dict[str, Any] = {plural: [stage] if plural == kind else [] for plural in _KINDS.values()}
    if kind != "exporters":
        brought["exporters"] = [FakeExporter()]
        brought["exporters"][0].name = "other"

    bad = fake_plugin("bad", **brought)
    type(bad).yolotrt_select_exporter = None  # type: ignore[attr-defined]
    return Registry.load(
        [
            PluginSource("good", OWN_DIST, "1.0", fake_plugin),
            PluginSource("bad", DIST, "1.0", lambda: bad),
        ]
    )


def _build(stages: Registry, store: Store, tmp_path: Path, **settings: Any) -> Engine:
    weights = tmp_path / "model.txt"
    weights.write_text("2 3")
    wanted = BuildSettings(weights=weights, imgsz=(32, 64), **settings)
    return build_engine(wanted, store=store, registry=stages, out=tmp_path / "out")


BOOM = RuntimeError("no luck")
# Kind and member of a stage that this build does not need.
UNNEEDED = [
    (_Preferred, {"available": _raising(BOOM)}, "`available`"),
    (_Preferred, {"available": _raising(SystemExit(3))}, "`available`"),
    (_Pass, {"applies": _raising(BOOM)}, "`applies`"),
]


@pytest.mark.parametrize(("base", "members", "words"), UNNEEDED)
def test_what_is_not_needed_is_skipped_with_one_warning(
    base: type, members: Mapping[str, Any], words: str, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = _with(base, **members)
    assert stages.broken == []
    for _ in range(2):
        assert _build(stages, store, tmp_path).spec.builder == "onnxruntime"
    assert caplog.text.count("is skipped") == 1
    assert f"`bad` of `{DIST}` is skipped: {words} of" in caplog.text
    told = next(s for s in plugins.document(stages)["stages"] if s["name"] == "bad")  # type: ignore[index, call-overload]
    assert not told["available"]
    assert words in told["reason"]
    assert doctor.document(stages)["broken_plugins"] == []


def test_a_builder_whose_runnable_fails_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    stages = _with(_Preferred, runnable=_raising(BOOM))
    assert stages.default_builder(to_run=True).name == "onnxruntime"
    assert "`runnable` of builder `bad` of `bad-dist`" in caplog.text
    report = next(b for b in doctor.document(stages)["builders"] if b["name"] == "bad")
    assert "`runnable` of builder `bad` of `bad-dist`" in " ".join(report["reasons"])


def test_a_pass_whose_option_was_set_is_needed(store: Store, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Options:
        x: int = option(1, help="x")

    stages = _with(_Pass, applies=_raising(BOOM), Options=Options)
    with pytest.raises(PluginError, match="`applies` of pass `bad` of `bad-dist` failed with RuntimeError: no luck"):
        _build(stages, store, tmp_path, flags={"bad": {"x": "3"}})


NEEDED = [
    ({"available": _raising(BOOM)}, "`available` of builder `bad` of `bad-dist` failed with RuntimeError: no luck"),
    ({"fingerprint": _raising(BOOM)}, "`fingerprint` of builder `bad` of `bad-dist` failed with RuntimeError"),
    ({"preflight": _raising(KeyError("x"))}, "`preflight` of builder `bad` of `bad-dist` failed with KeyError"),
    ({"takes_ranges": _raising(BOOM)}, "`takes_ranges` of builder `bad` of `bad-dist` failed"),
    ({"rounds_fp32": _raising(BOOM)}, "`rounds_fp32` of builder `bad` of `bad-dist` failed"),
    ({"check_options": _raising(BOOM)}, "`check_options` of builder `bad` of `bad-dist` failed"),
]


@pytest.mark.parametrize(("members", "words"), NEEDED)
def test_what_is_needed_is_a_plugin_error(members: Mapping[str, Any], words: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as told:
        _build(_with(_Builder, **members), store, tmp_path, builder="bad")
    assert words in told.value.message
    assert told.value.hint == "plugin bug: please report it to the authors of `bad-dist`"


def test_a_pass_that_cannot_work_says_how_to_build_without_it(store: Store, tmp_path: Path) -> None:
    stages = _with(_Pass, available=_answering(Availability(False, "its tool is missing", "pip install tool")))
    with pytest.raises(PluginError) as told:
        _build(stages, store, tmp_path)
    assert told.value.message == "pass `bad` of `bad-dist` cannot be used here: its tool is missing"
    assert told.value.hint == "pip install tool; `pip uninstall bad-dist` builds without it"


def test_an_exporter_that_fails_to_inspect(store: Store, tmp_path: Path) -> None:
    stages = _with(_Exporter, inspect=_raising(BOOM))
    weights = tmp_path / "model.txt"
    weights.write_text("2 3")
    wanted = BuildSettings(weights=weights, exporter="bad")
    with pytest.raises(PluginError, match="`inspect` of exporter `bad` of `bad-dist` failed"):
        build_engine(wanted, store=store, registry=stages, out=tmp_path / "out")


class _BadSession(FakeSession):
    def infer(self, images: Any) -> Any:
        raise BOOM


OPENED = [
    ({"open": _raising(BOOM)}, "`open` of builder `bad` of `bad-dist` failed"),
    ({"place": _raising(BOOM)}, "`place` of builder `bad` of `bad-dist` failed"),
    (
        {"open": lambda self, engine, spec, *given: _BadSession(1.0, spec)},
        "`infer` of the session of builder `bad` of `bad-dist` failed with RuntimeError: no luck",
    ),
]


@pytest.mark.parametrize(("members", "words"), OPENED)
def test_an_engine_that_cannot_be_used(members: Mapping[str, Any], words: str, store: Store, tmp_path: Path) -> None:
    stages = _with(_Builder, **members)
    weights = tmp_path / "model.txt"
    weights.write_text("1 1")
    with pytest.raises(PluginError) as told:
        settings: dict[str, Any] = {"builder": "bad", "precision": "fp32", "imgsz": (32, 64)}
        with Detector.open(weights, store=store, registry=stages, **settings) as detector:
            detector.detect([np.zeros((32, 64, 3), np.uint8)])
    assert words in told.value.message


@pytest.mark.parametrize(("member", "given"), [("decode", ([b""],)), ("page_lock", (None,)), ("close", ())])
def test_a_session_that_fails(member: str, given: tuple[Any, ...], tmp_path: Path) -> None:
    session = type("Session", (FakeSession,), {member: _raising(BOOM), "graph": "capture"})
    registry = _with(_Builder, open=lambda self, engine, spec, *_: session(1.0, spec))
    opened = registry.get("builder", "bad").stage.open(tmp_path, None, None, None)
    assert opened.graph == "capture"
    with pytest.raises(PluginError) as told:
        getattr(opened, member)(*given)
    assert f"`{member}` of the session of builder `bad` of `bad-dist` failed with RuntimeError: no luck" in str(
        told.value
    )


@pytest.mark.parametrize(
    ("decode", "words"),
    [
        (_raising(BOOM), "failed with RuntimeError: no luck"),
        (_raising(SystemExit(2)), "failed with SystemExit: 2"),
    ],
)
def test_a_postprocessor_that_cannot_decode(decode: Any, words: str, store: Store, tmp_path: Path) -> None:
    class Bad(FakePostprocessor):
        name = "bad"

    Bad.decode = decode  # type: ignore[method-assign]
    stages = Registry.of(fake_plugin(postprocessors=[Bad()]))
    weights = tmp_path / "model.txt"
    weights.write_text("1 1")
    detector = Detector.open(weights, store=store, registry=stages, precision="fp32", imgsz=(32, 64))
    with detector, pytest.raises(PluginError) as told:
        detector.detect([np.zeros((32, 64, 3), np.uint8)])
    assert f"`decode` of postprocessor `bad` of `in-process` {words}" in told.value.message
    with pytest.raises(PluginError):  # and in the gate
        _build(stages, store, tmp_path, precision="fp16")


def test_a_stage_that_exits_in_its_work_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="failed with SystemExit: 0") as told:
        _build(_with(_Builder, build=_raising(SystemExit(0))), store, tmp_path, builder="bad")
    assert told.value.stage == "build"
    assert "`bad` of `bad-dist`" in str(told.value.hint)


def test_a_guarded_stage_has_the_attributes_of_the_stage() -> None:
    stage = _with(_Builder, extra=5).get("builder", "bad").stage
    assert stage.extra == 5
    assert not stage.takes_ranges(None, None)
    assert stage.place(None) == {}
    assert stage.available() == Availability(True)
    with pytest.raises(AttributeError):
        _ = stage.no_such_member


def test_what_a_stage_prints_when_asked_spoils_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    def available(self: Any) -> Availability:
        print("looking")
        return Availability(True)

    with stdio.results_apart():
        stdio.show(json.dumps(plugins.document(_with(_Builder, available=available))))
    told = capsys.readouterr()
    assert "looking" in told.err
    assert json.loads(told.out)["schema"] == 1


@dataclass(frozen=True)
class _OutOfBounds:
    level: int = option(9, help="Effort", minimum=0, maximum=5)


@dataclass(frozen=True)
class _OtherType:
    level: int = option("3", help="Effort")


MISDECLARED = [
    (_Builder, {"priority": "high"}, "`priority` of builder `bad` should be a number, it is str `'high'`"),
    (
        _Builder,
        {"precisions": None},
        "`precisions` of builder `bad` should be a frozenset of str, it is NoneType",
    ),
    (_Builder, {"engine_file": "a/b"}, "`engine_file` of builder `bad` should be a plain file name"),
    (_Builder, {"stage_version": "1"}, "`stage_version` of builder `bad` should be an int, it is str `'1'`"),
    (_Builder, {"sources": "module"}, "`sources` of builder `bad` should be a tuple of str"),
    (_Builder, {"session_sources": "module"}, "`session_sources` of builder `bad` should be a tuple of str"),
    (_Builder, {"open": 5}, "`open` of builder `bad` should be a method, it is int `5`"),
    (_Builder, {"priority": property(_raising(BOOM))}, "builder `bad` of `bad-dist` failed with RuntimeError: no luck"),
    (_Builder, {"Options": _OutOfBounds}, "expects a whole number, at least 0 and at most 5, its default is `9`"),
    (_Builder, {"Options": _OtherType}, "expects a whole number, its default is `3`"),
    (_Builder, {"Options": 7}, "`Options` of builder `bad` should be a class"),
    (_Pass, {"order": "late"}, "`order` of pass `bad` should be a number"),
    (_Head, {"heads": "yolov5"}, "`heads` of postprocessor `bad` should be a frozenset of str"),
]


@pytest.mark.parametrize(("base", "members", "words"), MISDECLARED)
def test_what_is_misdeclared_is_refused_at_registration(base: type, members: Mapping[str, Any], words: str) -> None:
    stages = _with(base, **members)
    (broken,) = stages.broken
    assert broken.dist == DIST
    assert words in broken.error
    assert stages.default_builder(to_run=True).name == "onnxruntime"
    assert plugins.document(stages)["broken"][0]["distribution"] == DIST  # type: ignore[index, call-overload]


def test_a_class_in_place_of_an_instance_is_refused() -> None:
    stages = Registry.of(fake_plugin(builders=[FakeBuilder]))
    (broken,) = stages.broken
    assert broken.error == (
        "hook for kind `builder` returned the class `FakeBuilder`: an instance is expected, `FakeBuilder()`"
    )


def test_a_stage_of_another_base_is_refused() -> None:
    (broken,) = Registry.of(fake_plugin(builders=[FakePass()])).broken
    assert broken.error == (
        "builder `halve` does not inherit from `yolotrt_core.plugin.stages.Builder`, it is of class `FakePass`"
    )
