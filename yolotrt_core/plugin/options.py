"""Options of stages and commands: one declaration gives flags, recipe keys, parsing, defaults, help and cache keys."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from yolotrt_core.console.text import nearest
from yolotrt_core.errors import PluginError, UsageError, os_error_reason
from yolotrt_core.files.paths import user_path
from yolotrt_core.plugin.option_field import (
    MANY as MANY,
    METADATA,
    Format as Format,
    NoOptions as NoOptions,
    OptionField as OptionField,
    is_literal,
    option as option,
)
from yolotrt_core.types import Json

O = TypeVar("O")  # noqa: E741 - an options dataclass
N = TypeVar("N", int, float)

_SCALARS = (bool, int, float, str, Path)
_ON_OFF = {**dict.fromkeys(("on", "true", "yes", "1"), True), **dict.fromkeys(("off", "false", "no", "0"), False)}
# Python's int() and float() also read `6_40` and the digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MAXIMUM = 2**63 - 1  # of a whole number: what stages pass it on to holds 64 bits


def option_fields(options: type, prefix: str) -> tuple[OptionField, ...]:
    """List a stage's options; refuse an unusable declaration.

    Args:
        options: a frozen dataclass whose fields all come from `option()`.
        prefix: the stage's name, which starts every flag.

    Raises:
        PluginError: not a frozen dataclass, a field without help or default, or of another type.
    """
    where = f"options `{options.__name__}` of stage `{prefix}`"
    if not dataclasses.is_dataclass(options) or not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PluginError(f"{where} are not a frozen dataclass")
    for field in dataclasses.fields(options):
        if not field.metadata.get(METADATA, {}).get("help"):
            raise PluginError(f"field `{field.name}` of {where} is not declared with `option(default, help=...)`")
    return _declared(options, where, f"{prefix}-")


def setting_fields(settings: type) -> tuple[OptionField, ...]:
    """List the options of a command's settings: flags without a prefix; only fields declared with `option()`."""
    return _declared(settings, f"settings `{settings.__name__}`", "")


@functools.cache
def _declared(options: type, where: str, prefix: str) -> tuple[OptionField, ...]:
    hints = typing.get_type_hints(options)
    found = []
    for field in dataclasses.fields(options):
        if METADATA not in field.metadata:
            continue
        declared = dict(field.metadata[METADATA])
        format, name = declared.pop("format"), declared.pop("name") or field.name
        kind, optional = (format, True) if format else _plain_type(hints[field.name])
        are_texts = is_literal(kind) and all(isinstance(a, str) for a in typing.get_args(kind))
        if kind not in _SCALARS and not are_texts and not format:
            raise PluginError(
                f"field `{field.name}` of {where} has type `{hints[field.name]}`",
                hint="use bool, int, float, str, pathlib.Path, a Literal of strings, or one of these `| None`",
            )
        flag = f"--{prefix}{name}".replace("_", "-")
        made = OptionField(field.name, name, flag, kind, optional, field.default, **declared)
        if not _fits(made):
            raise PluginError(
                f"field `{field.name}` of {where} expects {made.expects}, its default is `{made.default}`"
            )
        found.append(made)
    return tuple(found)


def _fits(field: OptionField) -> bool:
    """Return whether an option's default is what a user may give."""
    if field.default is None or isinstance(field.type, Format):
        return field.optional
    if field.choices and field.type is not bool:
        return field.default in field.choices
    wanted = (int, float) if field.type is float else field.type
    if not isinstance(field.default, wanted) or (isinstance(field.default, bool) and field.type is not bool):
        return False
    try:
        parse(field, field.default, field.flag)
    except UsageError:
        return False
    return True


def resolve(
    options: type[O],
    prefix: str,
    flags: Mapping[str, str | None] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> O:
    """Make a stage's options: a flag wins over the recipe, the recipe over the default.

    Args:
        options: the stage's dataclass. prefix: the stage's name.
        flags: field name to the text after the flag; None where it was not given.
        recipe: the stage's table of a recipe file.

    Raises:
        UsageError: a value of another kind or out of bounds, or a recipe key that does not exist.
    """
    values = _values(option_fields(options, prefix), prefix, flags or {}, recipe or {})
    return options(**values)


def resolve_settings(
    settings: type[O],
    given: Mapping[str, Any],
    table: str = "",
    recipe: Mapping[str, Any] | None = None,
    /,
    **others: Any,
) -> O:
    """Make a command's settings: a flag wins over the recipe, the recipe over the default.

    Args:
        settings: the command's dataclass. given: option name to the text after the flag, True of a switch, a list of
            texts of a repeatable flag; None, False or an empty list where it was not given.
        table: name of its table in a recipe, recipe: that table; keys may have dashes.
        others: fields that are not options.

    Raises:
        UsageError: as for `resolve`.
    """
    keys = {key.replace("-", "_"): value for key, value in (recipe or {}).items()}
    return settings(**_values(setting_fields(settings), table, given, keys), **others)


def _values(
    fields: Sequence[OptionField], table: str, flags: Mapping[str, Any], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    refuse_unknown(recipe, [f.name for f in fields if f.in_recipe], f"in table `[{table}]` of the recipe")
    values: dict[str, Any] = {}
    for field in fields:
        if flags.get(field.name) not in (None, False, []):
            values[field.attribute] = parse(field, flags[field.name], field.flag)
        elif field.name in recipe:
            values[field.attribute] = parse(field, recipe[field.name], f"{table}.{field.name}")
    return values


def parse(field: OptionField, value: Any, where: str) -> Any:
    """Turn a flag's text or a recipe's value into the option's declared type.

    Args:
        where: how the user wrote it (`--tensorrt-workspace`, `tensorrt.workspace`), for the error.

    Raises:
        UsageError: it is not of that type, not one of the choices, or out of bounds.
    """
    if field.repeatable:
        return tuple(_parse_one(field, one, where) for one in (value if isinstance(value, list) else [value]))
    return _parse_one(field, value, where)


def _parse_one(field: OptionField, value: Any, where: str) -> Any:
    if isinstance(field.type, Format):
        try:
            return field.type.read(value)
        except ValueError:
            raise _refusal(field, value, where, field.type.hint) from None
    if field.choices:
        chosen = _ON_OFF.get(str(value).lower()) if field.type is bool else value
        if chosen is None or (field.type is not bool and value not in field.choices):
            close = nearest(str(value), field.choices)
            raise _refusal(field, value, where, close if close.startswith("did you mean") else None)
        return chosen
    if isinstance(value, bool):
        raise _refusal(field, value, where)
    if field.type in (int, float):
        return _number(field, value, where)
    if not isinstance(value, (str, Path)):
        raise _refusal(field, value, where)
    return user_path(value) if field.type is Path else str(value)


def read_number(text: str, kind: type[N]) -> N:
    """Return the number that a text is, in plain decimal notation.

    Args:
        kind: int or float.

    Raises:
        ValueError: the text is anything else.
    """
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(text)
    return kind(text)


def _number(field: OptionField, value: Any, where: str) -> int | float:
    parsed: int | float
    try:
        parsed = read_number(value, field.type) if isinstance(value, str) else field.type(value)
        is_finite = math.isfinite(parsed)
    except (TypeError, ValueError, OverflowError):  # OverflowError: an infinite int, an int that no float can hold
        raise _refusal(field, value, where) from None
    if not is_finite or (isinstance(value, float) and parsed != value):
        raise _refusal(field, value, where)
    most = field.maximum if field.maximum is not None else _MAXIMUM
    if field.type is int and abs(parsed) > most:
        hint = f"the largest whole number is {most:.0f}" if most in (MANY, _MAXIMUM) else None
        raise _refusal(field, value, where, hint)
    is_low = field.minimum is not None and parsed < field.minimum
    if is_low or (field.maximum is not None and parsed > field.maximum):
        raise _refusal(field, value, where)
    return parsed


def _refusal(field: OptionField, value: Any, where: str, hint: str | None = None) -> UsageError:
    return UsageError(f"`{where}` expects {field.expects}, found `{value}`", hint=hint)


def key_material(options: Any, prefix: str, *, every: bool = False) -> dict[str, Json]:
    """Return the options as they enter a cache key: declared types, files by digest.

    Args:
        every: also those with `in_key=False`, for answers that they change, such as a speed.

    Raises:
        UsageError: a path option names a file that cannot be read.
    """
    material: dict[str, Json] = {}
    for field in option_fields(type(options), prefix):
        if not (field.in_key or every):
            continue
        value = getattr(options, field.attribute)
        if value is not None and field.type is Path:
            try:
                value = hashlib.sha256(Path(value).read_bytes()).hexdigest()
            except OSError as err:
                reason = os_error_reason(err)
                raise UsageError(f"`{field.flag}` names a file that cannot be read: `{value}`: {reason}") from err
        elif value is not None and field.type is float:
            value = float(value)
        material[field.name] = value
    return material


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise a UsageError that names the nearest known names if `given` has an unknown key."""
    for name in given:
        if name not in known:
            raise UsageError(f"unknown name `{name}` {where}", hint=nearest(name, known))


def _plain_type(hint: Any) -> tuple[Any, bool]:
    """Split `T | None` into T and True; several Literals become one, and what may be a Path is a text."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    parts = [a for a in typing.get_args(hint) if a is not type(None)]
    optional = len(parts) < len(typing.get_args(hint))
    if len(parts) == 1:
        return parts[0], optional
    if all(map(is_literal, parts)):
        return Literal[tuple(a for p in parts for a in typing.get_args(p))], optional
    return (str, optional) if set(parts) == {str, Path} else (hint, False)


@dataclass(frozen=True, slots=True)
class GivenOptions:
    """Stage options as the user gave them: `flags[stage][field]` text, `recipe[stage][field]`."""

    flags: Mapping[str, Mapping[str, str | None]] = dataclasses.field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def resolve(self, cls: type, prefix: str) -> Any:
        return resolve(cls, prefix, self.flags.get(prefix), self.recipe.get(prefix))
