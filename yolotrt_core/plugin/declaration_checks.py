"""What a stage declares about itself, checked once when it is registered, so that nothing later trips over it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from yolotrt_core.errors import PluginError
from yolotrt_core.plugin.call_guard import shown
from yolotrt_core.plugin.registered import Kind

# What a stage of each kind must have beyond the attributes that all share.
COMMON = ("name", "stage_version", "sources", "Options", "available", "fingerprint")
MEMBERS: Mapping[Kind, tuple[str, ...]] = {
    "exporter": ("export",),
    "pass": ("order", "needs_calibration", "applies", "apply"),
    "calibrator": ("calibrate",),
    "builder": ("engine_file", "precisions", "priority", "runnable", "preflight", "build", "open"),
    "postprocessor": ("heads", "decode"),
}
# Recipe tables and flags of the commands, and the names of steps that the core itself puts into a plan.
RESERVED = frozenset(
    {
        *("artifacts", "bench", "build", "calibrate", "detect", "doctor", "evaluate", "export", "gate"),
        *("parity", "plugin", "plugins", "sensitivity"),
    }
)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _texts(*kinds: type[Collection[Any]]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and all(isinstance(each, str) for each in value)


def _file_name(value: Any) -> bool:
    return isinstance(value, str) and PurePath(value).name == value != ""


# Attributes that a stage of any kind may lack.
_OPTIONAL = ("session_sources",)
# Attribute to what it must be, in words, and the test for it; all other members are methods.
_ATTRIBUTES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a str", lambda value: isinstance(value, str)),
    "stage_version": ("an int", _whole),
    "sources": ("a tuple of module names", _texts(tuple, list)),
    "session_sources": ("a tuple of module names", _texts(tuple, list)),
    "Options": ("a class", lambda value: isinstance(value, type)),
    "order": ("a number", _number),
    "needs_calibration": ("True or False", lambda value: isinstance(value, bool)),
    "engine_file": ("a plain file name", _file_name),
    "precisions": ("a frozenset of str", _texts(frozenset, set, tuple, list)),
    "priority": ("a number", _number),
    "heads": ("a frozenset of str", _texts(frozenset, set, tuple, list)),
}


def refuse_misdeclared(kind: Kind, stage: Any) -> None:
    """Refuse a stage that lacks a member of its kind, or declares one of another type.

    Raises:
        PluginError: names the member, what was expected and what was found.
    """
    if isinstance(stage, type):
        made = stage.__name__
        raise PluginError(f"hook for kind `{kind}` returned the class `{made}`: an instance is expected, `{made}()`")
    name = getattr(stage, "name", type(stage).__name__)
    members: Sequence[str] = (*COMMON, *MEMBERS[kind])
    missing = [member for member in members if not hasattr(stage, member)]
    if missing:
        raise PluginError(f"{kind} `{name}` lacks " + ", ".join(f"`{member}`" for member in missing))
    for member in (*members, *(name for name in _OPTIONAL if hasattr(stage, name))):
        words, fits = _ATTRIBUTES.get(member, ("a method", callable))
        value = getattr(stage, member)
        if not fits(value):
            raise PluginError(f"`{member}` of {kind} `{name}` should be {words}, it is {shown(value)}")
