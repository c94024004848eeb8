"""Checks of what a stage declares, done once when it is registered."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from yolotrt_core.errors import PluginError
from yolotrt_core.plugin.registered import Kind, shown
from yolotrt_core.plugin.stages import Builder, Calibrator, Exporter, Pass, Postprocessor, Stage

BASES: Mapping[Kind, type[Stage]] = {
    "exporter": Exporter,
    "pass": Pass,
    "calibrator": Calibrator,
    "builder": Builder,
    "postprocessor": Postprocessor,
}
# Recipe tables and flags of the commands, and the names of steps that the core itself puts into a plan.
RESERVED = frozenset(
    {
        *("artifacts", "bench", "build", "calibrate", "detect", "doctor", "evaluate", "export", "gate", "image"),
        *("parity", "plugin", "plugins", "sensitivity"),
    }
)
# Type of an attribute to its description, and to what values are checked with.
_TYPES: Mapping[Any, tuple[str, type | tuple[type, ...]]] = {
    str: ("a str", str),
    int: ("an int", int),
    float: ("a number", (int, float)),
    bool: ("True or False", bool),
    type: ("a class", type),
    tuple: ("a tuple of str", (tuple, list)),
    frozenset: ("a frozenset of str", (frozenset, set, tuple, list)),
}


def refuse_misdeclared(kind: Kind, stage: Any) -> None:
    """Refuse a stage that does not inherit from the class of its kind, lacks an attribute or has one of another type.

    Raises:
        PluginError: names the member, what was expected and what was found.
    """
    base = BASES[kind]
    if isinstance(stage, type):
        found = stage.__name__
        raise PluginError(f"hook for kind `{kind}` returned the class `{found}`: an instance is expected, `{found}()`")
    name = getattr(stage, "name", type(stage).__name__)
    if not isinstance(stage, base):
        raise PluginError(
            f"{kind} `{name}` does not inherit from `yolotrt_core.plugin.stages.{base.__name__}`, "
            f"it is of class `{type(stage).__name__}`"
        )
    attributes = _attributes(base)
    missing = [attribute for attribute in attributes if not hasattr(stage, attribute)]
    if missing:
        raise PluginError(f"{kind} `{name}` lacks " + ", ".join(f"`{attribute}`" for attribute in missing))
    for attribute, (hint, optional) in attributes.items():
        value, (expected, classes) = getattr(stage, attribute), _TYPES[hint]
        fits = isinstance(value, classes) and (hint is bool or not isinstance(value, bool))
        if hint in (tuple, frozenset):
            fits = fits and all(isinstance(each, str) for each in value)
        if attribute == "engine_file" and fits and PurePath(value).name != value:
            expected, fits = "a plain file name", False
        if not fits and not (optional and value is None):
            raise PluginError(f"`{attribute}` of {kind} `{name}` should be {expected}, it is {shown(value)}")
    for method in (name for name in dir(base) if isinstance(getattr(base, name), types.FunctionType)):
        if not callable(value := getattr(stage, method)):
            raise PluginError(f"`{method}` of {kind} `{name}` should be a method, it is {shown(value)}")


@functools.cache
def _attributes(base: type[Stage]) -> Mapping[str, tuple[Any, bool]]:
    """Return the attributes of a kind with their type and whether None is allowed."""
    hints = {**typing.get_type_hints(base), "sources": tuple[str, ...]}
    found = {}
    for attribute, hint in hints.items():
        parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
        optional = isinstance(hint, types.UnionType)
        kind = parts[0] if optional else hint
        found[attribute] = (typing.get_origin(kind) or kind, optional)
    return found
