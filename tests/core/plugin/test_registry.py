"""Plugins: found, checked, and told apart from broken ones without harming anything else."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fake_stages import FakeBuilder, FakeExporter, FakePass, fake_plugin
from yolotrt_core.cli.recipe import CORE_OPTIONS
from yolotrt_core.errors import PluginError, UsageError
from yolotrt_core.plugin.declaration_checks import RESERVED
from yolotrt_core.plugin.hookspecs import Claim, hookimpl
from yolotrt_core.plugin.options import option
from yolotrt_core.plugin.registered import OWN_DIST, PluginSource
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.plugin.stages import Availability, Calibrator, Exporter
from yolotrt_core.types import ModelSource


def _source(module: Any, dist: str = "other-dist", name: str = "p") -> PluginSource:
    return PluginSource(name, dist, "1.0", lambda: module)


def _exporter_plugin(stage: Any) -> Any:
    class Plugin:
        YOLOTRT_API = 1

        @hookimpl
        def yolotrt_exporters(self) -> Sequence[Any]:
            return [stage]

    return Plugin()


def _broken(module: Any) -> str:
    """Load one plugin beside a good one; the good one must stay whole. Return the error."""
    registry = Registry.load([_source(fake_plugin(), OWN_DIST, "good"), _source(module, "bad-dist", "bad")])
    assert set(registry.stages["exporter"]) == {"text"}
    assert set(registry.stages["builder"]) == {"onnxruntime"}
    assert [(b.dist, b.plugin) for b in registry.broken] == [("bad-dist", "bad")]
    assert registry.get("exporter", "text").dist == OWN_DIST
    return registry.broken[0].error


def test_a_good_plugin_brings_its_stages() -> None:
    registry = Registry.of(fake_plugin())
    assert registry.broken == []
    assert {k: list(v) for k, v in registry.stages.items()} == {
        "exporter": ["text"],
        "pass": ["halve"],
        "calibrator": [],
        "builder": ["onnxruntime"],
        "postprocessor": ["fakehead"],
    }
    identity = registry.get("exporter", "text").identity
    assert (identity.name, identity.dist, identity.stage_version) == ("text", "in-process", 1)
    assert registry.postprocessor("fake").name == "fakehead"
    with pytest.raises(PluginError, match="decodes the head `yolov99`"):
        registry.postprocessor("yolov99")


def test_import_errors_are_told_with_the_distribution() -> None:
    def load() -> Any:
        raise ImportError("no module named torch")

    registry = Registry.load([PluginSource("bad", "bad-dist", "2.1", load), _source(fake_plugin(), OWN_DIST, "good")])
    assert registry.broken[0].dist == "bad-dist"
    assert registry.broken[0].error == "import failed: ImportError: no module named torch"
    with pytest.raises(PluginError) as caught:
        registry.get("exporter", "tf")
    assert caught.value.hint is not None
    assert "`bad` of `bad-dist`" in caught.value.hint


def test_a_plugin_that_exits_at_import_is_only_broken() -> None:
    def load() -> Any:
        raise SystemExit(3)

    registry = Registry.load([PluginSource("bad", "bad-dist", "2.1", load)])
    assert "SystemExit" in registry.broken[0].error


def test_an_api_version_in_quotes_is_told_apart_from_another_version() -> None:
    error = _broken(SimpleNamespace(YOLOTRT_API="1"))
    assert error == "`YOLOTRT_API` should be an int, as in `YOLOTRT_API = 1`; it is str `'1'`"


@pytest.mark.parametrize(
    ("version", "words"), [(None, "states no plugin API version"), (2, "written for plugin API 2")]
)
def test_another_api_version_is_refused(version: int | None, words: str) -> None:
    error = _broken(SimpleNamespace() if version is None else SimpleNamespace(YOLOTRT_API=version))
    assert words in error
    assert "this version supports plugin API 1" in error


def test_a_misspelt_hook_is_refused_with_the_right_name() -> None:
    class Misspelt:
        YOLOTRT_API = 1

        @hookimpl
        def yolotrt_exporter(self) -> Sequence[Any]:
            return []

    assert "`yolotrt_exporters`" in _broken(Misspelt())


def test_an_argument_that_the_hook_does_not_have_is_refused() -> None:
    class Wrong:
        YOLOTRT_API = 1

        @hookimpl
        def yolotrt_select_exporter(self, sauce: ModelSource) -> str | None:
            return None

    assert "sauce" in _broken(Wrong())


def test_a_hook_that_raises_is_told() -> None:
    class Raises:
        YOLOTRT_API = 1

        @hookimpl
        def yolotrt_exporters(self) -> Sequence[Any]:
            raise RuntimeError("no luck")

    assert _broken(Raises()) == "hook for kind `exporter` failed: RuntimeError: no luck"


def test_a_calibrator_is_swapped_in_by_name() -> None:
    class Widest(Calibrator):
        name = "widest"

        def calibrate(self, *given: Any) -> str:
            return "widest"

    class Plugin:
        YOLOTRT_API = 1

        @hookimpl
        def yolotrt_calibrators(self) -> Sequence[Any]:
            return [Widest()]

    registry = Registry.of(fake_plugin(), Plugin())
    assert registry.broken == []
    assert registry.usable("calibrator", "widest").stage.calibrate() == "widest"


def test_a_stage_that_lacks_members_is_told() -> None:
    class Nameless(Exporter):
        def export(self, *given: Any) -> Any:
            raise NotImplementedError

    assert "lacks `name`" in _broken(_exporter_plugin(Nameless()))
    told = _broken(_exporter_plugin(SimpleNamespace(name="tf")))
    assert told.startswith("exporter `tf` does not inherit from `yolotrt_core.plugin.stages.Exporter`")


@pytest.mark.parametrize("name", ["Tf", "tf exporter", "", "1tf"])
def test_names_that_would_make_bad_flags_are_refused(name: str) -> None:
    class Named(FakeExporter):
        pass

    stage = Named()
    stage.name = name
    assert "needs a name of lower-case letters" in _broken(_exporter_plugin(stage))


def test_options_without_help_are_refused() -> None:
    @dataclass(frozen=True)
    class Bad:
        a: int = 1

    class WithBad(FakeExporter):
        name = "bad"
        Options = Bad

    assert "is not declared with `option" in _broken(_exporter_plugin(WithBad()))


def test_our_own_stage_wins_over_a_namesake_and_both_are_named() -> None:
    error = _broken(_exporter_plugin(FakeExporter()))
    assert error == f"exporter `text` is brought by both `{OWN_DIST}` and `bad-dist`"


@pytest.mark.parametrize("dists", ["ab", "abc", "abcd"])
def test_strangers_of_one_name_are_all_refused(dists: str) -> None:
    class Same(FakeExporter):
        name = "same"

    registry = Registry.load(
        [
            _source(fake_plugin(), OWN_DIST, "good"),
            *(_source(_exporter_plugin(Same()), f"dist-{dist}", dist) for dist in dists),
        ]
    )
    assert set(registry.stages["exporter"]) == {"text"}
    with pytest.raises(PluginError, match="brought by both `dist-a` and `dist-b`"):
        registry.get("exporter", "same")
    assert [b.dist for b in registry.broken] == [f"dist-{dist}" for dist in dists]


def test_a_flag_that_is_taken_is_refused() -> None:
    @dataclass(frozen=True)
    class Clash:
        set: float = option(1.0, help="x")

    class TextOff(FakeExporter):
        name = "text_off"
        Options = Clash

    @dataclass(frozen=True)
    class Own:
        off_set: float = option(1.0, help="x")

    class Text(FakeExporter):
        Options = Own

    registry = Registry.load(
        [
            _source(fake_plugin(exporters=[Text()]), OWN_DIST, "good"),
            _source(_exporter_plugin(TextOff()), "bad-dist", "bad"),
        ]
    )
    (broken,) = registry.broken
    assert broken.error == f"flag `--text-off-set` is claimed by both `{OWN_DIST}` and `bad-dist`"


def test_a_flag_of_the_commands_is_reserved() -> None:
    @dataclass(frozen=True)
    class Clash:
        size: int = option(1, help="x")

    class Img(FakeExporter):
        name = "img"
        Options = Clash

    registry = Registry.load([_source(_exporter_plugin(Img()), "bad-dist")], reserved_flags=["--img-size"])
    assert "`--img-size` is claimed by both" in registry.broken[0].error


def test_a_distribution_listed_twice_is_one() -> None:
    registry = Registry.load([_source(fake_plugin()), _source(fake_plugin())])
    assert registry.broken == []


@pytest.mark.parametrize("name", ["build", "gate", "parity", "sensitivity", "detect", "calibrate", "export"])
def test_a_name_of_the_core_is_refused(name: str) -> None:
    stage = FakeExporter()
    stage.name = name
    error = _broken(_exporter_plugin(stage))
    assert error == f"`{name}` is a name of `{OWN_DIST}` itself, and exporter `{name}` of `bad-dist` cannot have it too"


def test_every_recipe_table_of_the_commands_is_reserved() -> None:
    assert {"build", "detect", *CORE_OPTIONS} <= RESERVED


def test_a_name_of_another_kind_s_stage_is_refused() -> None:
    class Text(FakePass):
        name = "text"

    error = _broken(fake_plugin(exporters=[], builders=[], postprocessors=[], passes=[Text()]))
    assert "exporter `text` of `yolotrt-core` and pass `text` of `bad-dist` cannot share a name" in error


def _choosing(answer: Any, name: str) -> Any:
    class Named(FakeExporter):
        pass

    Named.name = name

    class Plugin:
        YOLOTRT_API = 1

        @hookimpl
        def yolotrt_exporters(self) -> Sequence[Any]:
            return [Named()]

        @hookimpl
        def yolotrt_select_exporter(self, source: ModelSource) -> Any:
            return answer

    return Plugin()


@pytest.mark.parametrize("answer", [42, "nobody", True])
def test_what_names_no_exporter_is_told_with_its_distribution(
    answer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = _source(_choosing(answer, "odd"), "odd-dist", "odd")
    alone = Registry.load([odd])
    with pytest.raises(PluginError, match="plugin `odd` of `odd-dist` chose"):
        alone.select_exporter(ModelSource(tmp_path / "a.txt", "0", "a"))
    beside = Registry.load([odd, _source(fake_plugin(), OWN_DIST, "good")])
    for _ in range(2):
        assert beside.select_exporter(ModelSource(tmp_path / "a.txt", "0", "a")).name == "text"
    assert caplog.text.count("plugin `odd` of `odd-dist` chose") == 1


def test_a_built_in_exporter_wins_and_both_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ModelSource(tmp_path / "a.txt", "0", "a")
    registry = Registry.load(
        [_source(fake_plugin(), OWN_DIST, "good"), _source(_choosing("greedy", "greedy"), "greedy-dist")]
    )
    for _ in range(2):
        assert registry.select_exporter(source).name == "text"
    assert caplog.text.count("claimed by the exporters `text` of `yolotrt-core` and `greedy` of `greedy-dist`") == 1
    assert "`--exporter greedy`" in caplog.text


def test_two_strangers_who_claim_one_file_are_both_named(tmp_path: Path) -> None:
    registry = Registry.load([_source(_choosing(n, n), f"{n}-dist", n) for n in ("one", "other")])
    with pytest.raises(UsageError, match="claimed by several exporters") as told:
        registry.select_exporter(ModelSource(tmp_path / "a.txt", "0", "a"))
    assert "`one` of `one-dist`" in told.value.message
    assert "`other` of `other-dist`" in told.value.message
    assert told.value.hint == "name the right one with `--exporter NAME`"


def test_a_claim_with_a_reason_wins_over_a_built_in_exporter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ModelSource(tmp_path / "a.txt", "0", "a")
    built_in = _source(fake_plugin(), OWN_DIST, "good")
    special = _source(_choosing(Claim("special", "a text of poems"), "special"), "special-dist")
    greedy = _source(_choosing("greedy", "greedy"), "greedy-dist", "greedy")
    registry = Registry.load([built_in, special, greedy])
    for _ in range(2):
        assert registry.select_exporter(source).name == "special"
    assert caplog.text.count("`special` of `special-dist` and ") == 1
    assert "`text` of `yolotrt-core`" in caplog.text
    assert "`special` reads it as a text of poems" in caplog.text
    assert "`--exporter " in caplog.text

    other = _source(_choosing(Claim("other", "a text of rhymes"), "other"), "other-dist", "other")
    with pytest.raises(UsageError, match="claimed by several exporters"):
        Registry.load([built_in, special, other]).select_exporter(source)
    caplog.clear()
    assert Registry.load([special]).select_exporter(source).name == "special"
    assert not caplog.text
    with pytest.raises(ValueError, match="what was recognised"):
        Claim("special", " ")


def test_variables_of_two_plugins_are_those_of_the_first(caplog: pytest.LogCaptureFixture) -> None:
    def plugin(name: str, wanted: Any) -> PluginSource:
        @hookimpl
        def yolotrt_environment() -> Any:
            return wanted

        module = SimpleNamespace(YOLOTRT_API=1, yolotrt_environment=yolotrt_environment)
        return PluginSource(name, f"{name}-dist", "1", lambda: module)

    sources = [plugin("one", {"A": "1"}), plugin("three", {"A": 3}), plugin("two", {"A": "2", "B": "2"})]
    before = dict(os.environ)
    registry = Registry.load(sources)
    assert registry.environment() == {"A": "1", "B": "2"}
    assert "`three` of `three-dist` is skipped: `yolotrt_environment` returned" in caplog.text
    assert os.environ == before


def test_selection_asks_the_plugins(tmp_path: Path) -> None:
    registry = Registry.of(fake_plugin())
    assert registry.select_exporter(ModelSource(tmp_path / "a.txt", "0", "a")).name == "text"
    with pytest.raises(UsageError, match="not a model that an installed exporter can read"):
        registry.select_exporter(ModelSource(tmp_path / "a.bin", "0", "a"))


def test_the_installed_plugins_are_all_whole() -> None:
    registry = Registry.discover()
    assert [(b.plugin, b.error) for b in registry.broken if b.dist == OWN_DIST] == []


class _Elsewhere(FakeBuilder):
    """Preferred, but for another machine."""

    name = "elsewhere"
    priority = 90

    def runnable(self) -> Availability:
        return Availability(False, "no such device")


def test_who_runs_an_engine_is_said_where_it_is_not_who_builds_it(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry.of(fake_plugin(builders=[FakeBuilder(), _Elsewhere()]))
    with caplog.at_level(logging.INFO):
        assert registry.default_builder(to_run=False).name == "elsewhere"
        assert caplog.text == ""
        assert registry.default_builder(to_run=True).name == "onnxruntime"
    assert "running with `onnxruntime`, not with `elsewhere`: no such device" in caplog.text
