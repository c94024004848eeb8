"""Options of a build, shared by all commands that plan or run one: flags, recipe, store."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolotrt_core.cli.task_factory import Given, OptionGroup
from yolotrt_core.console.text import nearest
from yolotrt_core.errors import UsageError, os_error_reason
from yolotrt_core.evaluation.gate_options import GateOptions
from yolotrt_core.export.parity import ParityOptions
from yolotrt_core.files.paths import user_path
from yolotrt_core.inference.image_options import ImageOptions
from yolotrt_core.pipeline.build_options import ACCURACY_GATE, BuildSettings
from yolotrt_core.plugin.options import OptionField, option, option_fields, resolve_settings, setting_fields
from yolotrt_core.plugin.registered import KINDS, Registered
from yolotrt_core.plugin.registry import Registry
from yolotrt_core.tuning.sensitivity_options import SensitivityOptions
from yolotrt_core.types import ShapeRange

_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
_MODEL_SUFFIXES = (".pt", ".pth", ".onnx", ".pb", ".tflite", ".keras", ".h5")
# Options of the core's own stages, by recipe table, with their titles in help.
CORE_OPTIONS: Mapping[str, tuple[str, type]] = {
    "parity": ("Parity check", ParityOptions),
    "gate": (ACCURACY_GATE, GateOptions),
    "sensitivity": ("Layer sensitivity", SensitivityOptions),
    "image": ("Images", ImageOptions),
}
# Also apply to an engine file.
_WITH_ENGINE = frozenset({"offline", "calib_data", "eval_data", "class_map", "allow_unlabeled"})
_COMMON_TO_RUN = frozenset({"weights", "precision", "imgsz", "builder"})  # on the first help screen of `detect` etc.


# Settings of commands have no comparison and no repr: generating them costs a millisecond per class.
@dataclass(frozen=True, eq=False, repr=False)
class StoreSettings:
    """Location of artifacts."""

    store: Path | None = option(
        None,
        in_recipe=False,
        metavar="DIR",
        default_text="YOLOTRT_STORE, else artifacts/ of the clone, else the user's cache",
        help="Artifact store",
    )


@dataclass(frozen=True, eq=False, repr=False)
class RecipeSettings(StoreSettings):
    """Source of settings and artifacts."""

    recipe: Path | None = option(
        None,
        in_recipe=False,
        default_text="none",
        help="TOML file with a table per stage, and [build] for these flags; a flag wins",
    )


def build_groups(registry: Registry, own: type[RecipeSettings], *, run: bool = False) -> list[OptionGroup]:
    """Return the options of a command that builds: its own, those of a build, of the core and of all stages.

    Args:
        own: the command's settings. run: whether it runs the engine, not only builds it.
    """
    place = {f.name for f in setting_fields(RecipeSettings)}
    own_fields = setting_fields(own)
    fields = [*setting_fields(BuildSettings), *(f for f in own_fields if f.name in place)]
    if run:
        runs = "the first that runs: tensorrt with a GPU, else onnxruntime"
        fields = [
            replace(f, common=f.name in _COMMON_TO_RUN, default_text=runs if f.name == "builder" else f.default_text)
            for f in fields
        ]
    rest = tuple(f for f in own_fields if f.name not in place)
    title = own.__name__.removesuffix("Settings").removesuffix("Output")
    groups = [OptionGroup(title, rest), OptionGroup("Build", tuple(fields))]
    if title == "Build":
        groups.reverse()
    groups += [OptionGroup(title, option_fields(options, name)) for name, (title, options) in CORE_OPTIONS.items()]
    groups += [
        OptionGroup(stage_title(found), found.options)
        for kind, named in registry.stages.items()
        if kind in KINDS
        for found in named.values()
    ]
    return groups


def stage_title(found: Registered) -> str:
    """Return the title of a stage's options in help: its attribute `title`, else name and kind."""
    title = getattr(found.stage, "title", None)
    return title if isinstance(title, str) else f"{found.name.capitalize()} {found.kind}"


def reserved_flags() -> list[str]:
    """Return the flags of every build, reserved for the core."""
    core = [f for name, (_, options) in CORE_OPTIONS.items() for f in option_fields(options, name)]
    return [f.flag for f in (*setting_fields(BuildSettings), *setting_fields(RecipeSettings), *core)]


def build_settings(registry: Registry, given: Given) -> BuildSettings:
    """Merge flags and recipe into settings: a flag wins over the recipe.

    Raises:
        UsageError: a value that cannot be read, an unknown recipe table or key.
    """
    path = resolve_settings(RecipeSettings, given).recipe
    recipe = read_recipe(path, registry) if path else {}
    table = {key.replace("-", "_"): value for key, value in recipe.get("build", {}).items()}
    settings = resolve_settings(
        BuildSettings, given, "build", table, flags=_stage_flags(registry, given), recipe=recipe
    )
    _refuse_engine(settings.weights, can_run="engine" in given)
    if settings.profiles:
        if not settings.dynamic and (given.get("dynamic") is not None or "dynamic" in table):
            raise UsageError("`--profile` needs a dynamic engine, but `--dynamic off` was given")
        by_recipe = () if given.get("profile") else table.keys()
        named = {name for name in ("batch", "imgsz") if given.get(name) is not None or name in by_recipe}
        _refuse_two_shapes(settings.profiles[0], settings, named)
        settings = replace(settings, dynamic=True)
    return settings


def _stage_flags(registry: Registry, given: Given) -> dict[str, dict[str, str | None]]:
    """Sort the values of stage flags by stage, as `GivenOptions.flags` has them."""
    fields: list[tuple[str, OptionField]] = [
        (name, f) for name, (_, options) in CORE_OPTIONS.items() for f in option_fields(options, name)
    ]
    fields += [(found.name, f) for named in registry.stages.values() for found in named.values() for f in found.options]
    flags: dict[str, dict[str, str | None]] = {}
    for stage, field in fields:
        value = given.get(field.argument)
        if value is not None:
            flags.setdefault(stage, {})[field.name] = value
    return flags


def meant_flag(word: str) -> str | None:
    """Return the flag for a model or engine file by its suffix, else None."""
    pairs = (("--engine", _ENGINE_SUFFIXES), ("--weights", _MODEL_SUFFIXES))
    return next((flag for flag, suffixes in pairs if word.lower().endswith(suffixes)), None)


def _refuse_engine(weights: str | Path | None, *, can_run: bool) -> None:
    """Refuse an engine where a model is expected."""
    if weights is not None and meant_flag(str(weights)) == "--engine" and not user_path(weights).is_dir():
        raise UsageError(
            f"`--weights` expects a model, but `{weights}` has the suffix of an engine",
            hint=f"pass `--engine {weights}`" if can_run else "pass the model it was built from",
        )


def _refuse_two_shapes(profile: ShapeRange, settings: BuildSettings, named: set[str]) -> None:
    """Refuse a batch or size that differs from the profile, which takes precedence."""
    optimum = {"batch": profile.opt[0], "imgsz": profile.opt[1:]}
    for name in sorted(named):
        asked = getattr(settings, name)
        if asked != optimum[name]:
            # The set of sides of a square has one element.
            sides = (dict.fromkeys(n) if isinstance(n, tuple) else (n,) for n in (asked, optimum[name]))
            shown, expected = (",".join(map(str, each)) for each in sides)
            raise UsageError(
                f"`--{name} {shown}` differs from the optimum of the first `--profile`, {expected}",
                hint=f"omit `--{name}`: a profile sets batch, height and width",
            )


def refuse_build_flags(given: Given) -> None:
    """Refuse build flags with an engine file: they have no effect.

    Raises:
        UsageError: names the flag.
    """
    if not given.get("engine"):
        return
    for field in setting_fields(BuildSettings):
        if field.name not in _WITH_ENGINE and given.get(field.name) not in (None, False, []):
            raise UsageError(
                f"`{field.flag}` sets how to build an engine, but `--engine` names an existing one",
                hint=f"drop `{field.flag}`, or pass `--weights` instead of `--engine`",
            )


def read_recipe(path: Path, registry: Registry) -> Mapping[str, Mapping[str, Any]]:
    """Read a recipe: a TOML file with a table per stage, `[build]` and `[detect]`.

    Raises:
        UsageError: no such file, not TOML, or a table without a stage of its name.
    """
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
        repr(recipe)  # fails for a hexadecimal number of thousands of digits, which Python cannot print
    except OSError as err:
        raise UsageError(f"cannot read the recipe `{path}`: {os_error_reason(err)}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise UsageError(f"the recipe `{path}` is not valid TOML: {err}") from err
    except ValueError as err:  # Python neither reads nor prints a number of thousands of digits
        raise UsageError(f"the recipe `{path}` has a number of too many digits") from err
    except RecursionError as err:
        raise UsageError(f"the recipe `{path}` is nested too deeply") from err
    names = {name for named in registry.stages.values() for name in named}
    known = ["build", "detect", *CORE_OPTIONS, *sorted(names)]
    for name, table in recipe.items():
        if name not in known:
            hint = "; ".join(filter(None, (nearest(name, known), registry.describe_broken(name))))
            raise UsageError(f"unknown name `{name}` in the recipe `{path}`", hint=hint)
        if not isinstance(table, dict):
            raise UsageError(f"`{name}` in the recipe `{path}` is not a table", hint=f"write [{name}] above its keys")
    return recipe
