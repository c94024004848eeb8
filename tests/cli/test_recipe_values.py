"""Recipes whose values are of another type than a setting takes; read in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolotrt_core.cli import detect
from yolotrt_core.cli.recipe import build_settings
from yolotrt_core.errors import UsageError
from yolotrt_core.pipeline.build_options import BuildSettings
from yolotrt_core.plugin.options import setting_fields
from yolotrt_core.plugin.registry import Registry

NAMES = [field.name for field in setting_fields(BuildSettings)]
FLAGS = dict.fromkeys((*NAMES, *(f.name for f in setting_fields(detect.DetectSettings))))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def _settings(registry: Registry, folder: Path, recipe: str, **given: Any) -> BuildSettings:
    path = folder / "recipe.toml"
    path.write_text(recipe)
    return build_settings(registry, {**FLAGS, "recipe": str(path), **given})


@pytest.mark.parametrize("value", ["5", "true", "0.5", "[]", "['fp16']", "{}", "1979-05-27"])
@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_is_refused_or_taken(registry: Registry, tmp_path: Path, name: str, value: str) -> None:
    """No value of a recipe ends in a traceback, and none is passed over in silence."""
    try:
        settings = _settings(registry, tmp_path, f"[build]\n{name} = {value}")
    except UsageError as err:
        assert name.replace("_", "-") in err.message.replace("_", "-")
        assert "expects" in err.message
        return
    taken = {("batch", "5"), ("calib_images", "5"), ("calib_seed", "5"), ("imgsz", "5"), ("max_drop", "0.5")}
    taken |= {("allow_unlabeled", "true"), ("dynamic", "true"), ("offline", "true"), ("profile", "[]")}
    assert (name, value) in taken
    assert value == "[]" or getattr(settings, name) not in (None, getattr(BuildSettings(), name))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("weights = 5", "`build.weights` expects a text, found `5`"),
        ("calib-data = 3", "`build.calib_data` expects a text, found `3`"),
        ("offline = 'never'", "`build.offline` expects `on` or `off`, found `never`"),
        ("max_drop = true", "`build.max_drop` expects a number, at least 0 and at most 1"),
        (f"max_drop = {'9' * 400}", "`build.max_drop` expects a number, at least 0 and at most 1"),
        (f"batch = {'9' * 400}", "`build.batch` expects a whole number"),
        (f"batch = {'9' * 5000}", "has a number of too many digits"),
        (f"batch = 0x{'f' * 5000}", "has a number of too many digits"),
        (f"imgsz = {'[' * 3000}", "is nested too deeply"),
    ],
)
def test_what_is_refused(registry: Registry, tmp_path: Path, recipe: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        _settings(registry, tmp_path, f"[build]\n{recipe}")
    assert words in raised.value.message


def test_switches_may_be_words(registry: Registry, tmp_path: Path) -> None:
    settings = _settings(registry, tmp_path, "[build]\noffline = 'off'\ndynamic = 'on'")
    assert (settings.offline, settings.dynamic) == (False, True)


@pytest.mark.parametrize(
    "line",
    ["conf = []", "conf = true", "iou = 'x'", "multi-label = []", "agnostic = 5", "max_det = []", "max_frames = 0",
     "classes = []", "format = ['json']", "annotate = 1.5", "show-timing = true"],
)  # fmt: skip
def test_a_bad_value_of_detect(registry: Registry, tmp_path: Path, line: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"[detect]\n{line}")
    with pytest.raises(UsageError, match=line.split()[0].replace("-", "_") + "`"):
        detect._detect(registry, {**FLAGS, "recipe": str(path), "path": "sample"})
