"""Stage options: declared once as a dataclass, given as flags or recipe keys, hashed into keys."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from yolotrt_core.console.text import nearest
from yolotrt_core.errors import PluginError, UsageError, os_error_reason
from yolotrt_core.files.paths import user_path
from yolotrt_core.types import Json

O = TypeVar("O")  # noqa: E741 - an options dataclass

_METADATA = "yolotrt"
_SCALARS = (bool, int, float, str, Path)
# Words that users may switch with.
ON_OFF = {**dict.fromkeys(("on", "true", "yes", "1"), True), **dict.fromkeys(("off", "false", "no", "0"), False)}
_MOST = 2**63 - 1  # in a whole number: what stages pass it on to holds 64 bits


@dataclass(frozen=True, slots=True)
class OptionField:
    """One option as users meet it.

    Attributes:
        name: field and recipe key. flag: e.g. `--tensorrt-workspace`. type: one of bool, int,
            float, str, Path, or a Literal of strings; `optional` where None is allowed too.
        default, help, unit: as declared. minimum, maximum: inclusive bounds of a number, or None.
        in_key: whether a change of it is a different artifact.
    """

    name: str
    flag: str
    type: Any
    optional: bool
    default: Any
    help: str
    unit: str | None
    minimum: float | None
    maximum: float | None
    in_key: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words of a Literal, of a bool `on` and `off`, else empty."""
        if typing.get_origin(self.type) is Literal:
            return typing.get_args(self.type)
        return ("on", "off") if self.type is bool else ()

    @property
    def expects(self) -> str:
        """What a value must look like, in words for an error or a help text."""
        if self.choices:
            return " or ".join(f"`{c}`" for c in self.choices)
        kind = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}[self.type]
        named = (("at least", self.minimum), ("at most", self.maximum))
        bounds = [f"{words} {bound:.12g}" for words, bound in named if bound is not None]
        unit = f" of {self.unit}" if self.unit else ""
        return kind + unit + (", " + " and ".join(bounds) if bounds else "")


def option(
    default: Any,
    *,
    help: str,
    unit: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    in_key: bool = True,
) -> Any:
    """Declare one field of a stage's options dataclass.

    Args:
        default: value when neither flag nor recipe gives one; its type must fit the annotation.
        help: one line for `--help`; required.
        unit: unit of a number, shown in help, e.g. "MiB".
        minimum, maximum: inclusive bounds of a number.
        in_key: False only for what cannot change a single byte of the stage's output.
    """
    return dataclasses.field(
        default=default,
        metadata={
            _METADATA: {
                "help": help,
                "unit": unit,
                "minimum": minimum,
                "maximum": maximum,
                "in_key": in_key,
            }
        },
    )


@dataclass(frozen=True, slots=True)
class NoOptions:
    """For a stage that has nothing to set."""


def option_fields(options: type, prefix: str) -> tuple[OptionField, ...]:
    """List a stage's options, refusing a declaration that users could not be served with.

    Args:
        options: a frozen dataclass whose fields all come from `option()`.
        prefix: the stage's name, which starts every flag.

    Raises:
        PluginError: not a frozen dataclass, a field without help or default, or of another type.
    """
    where = f"options `{options.__name__}` of stage `{prefix}`"
    if not dataclasses.is_dataclass(options) or not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PluginError(f"{where} are not a frozen dataclass")
    hints = typing.get_type_hints(options)
    found = []
    for field in dataclasses.fields(options):
        declared = field.metadata.get(_METADATA)
        if declared is None or not declared["help"]:
            raise PluginError(f"field `{field.name}` of {where} is not declared with `option(default, help=...)`")
        kind, optional = _plain_type(hints[field.name])
        is_words = typing.get_origin(kind) is Literal and all(isinstance(a, str) for a in typing.get_args(kind))
        if kind not in _SCALARS and not is_words:
            raise PluginError(
                f"field `{field.name}` of {where} has type `{hints[field.name]}`",
                hint="use bool, int, float, str, pathlib.Path, a Literal of strings, or one of these `| None`",
            )
        made = OptionField(
            name=field.name,
            flag=f"--{prefix}-{field.name}".replace("_", "-"),
            type=kind,
            optional=optional,
            default=field.default,
            **declared,
        )
        if not _fits(made):
            raise PluginError(
                f"field `{field.name}` of {where} expects {made.expects}, its default is `{made.default}`"
            )
        found.append(made)
    return tuple(found)


def _fits(field: OptionField) -> bool:
    """Say whether an option's default is what a user may give."""
    if field.default is None:
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
    fields = {f.name: f for f in option_fields(options, prefix)}
    refuse_unknown(recipe or {}, list(fields), f"in table `[{prefix}]` of the recipe")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if flags and flags.get(name) is not None:
            values[name] = parse(field, flags[name], field.flag)
        elif recipe and name in recipe:
            values[name] = parse(field, recipe[name], f"{prefix}.{name}")
    return options(**values)


def parse(field: OptionField, value: Any, where: str) -> Any:
    """Turn a flag's text or a recipe's value into the option's declared type.

    Args:
        where: how the user wrote it (`--tensorrt-workspace`, `tensorrt.workspace`), for the error.

    Raises:
        UsageError: it is not of that type, not one of the words, or out of bounds.
    """
    refusal = UsageError(f"`{where}` expects {field.expects}, found `{value}`")
    parsed: Any
    if field.choices and field.type is not bool:
        if value not in field.choices:
            raise refusal
        return value
    if field.type is bool:
        word = ON_OFF.get(str(value).lower())
        if word is None:
            raise refusal
        return word
    if isinstance(value, bool):
        raise refusal
    if field.type in (int, float):
        try:
            parsed = field.type(value)
            is_finite = math.isfinite(parsed)
        except (TypeError, ValueError, OverflowError):  # OverflowError: an infinite int, an int that no float can hold
            raise refusal from None
        if not is_finite or (isinstance(value, float) and parsed != value):
            raise refusal
        if field.type is int and abs(parsed) > _MOST:
            refusal.hint = f"the largest whole number is {_MOST}"
            raise refusal
        if field.minimum is not None and parsed < field.minimum:
            raise refusal
        if field.maximum is not None and parsed > field.maximum:
            raise refusal
        return parsed
    if not isinstance(value, (str, Path)):
        raise refusal
    return user_path(value) if field.type is Path else str(value)


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
        value = getattr(options, field.name)
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
    """Raise a UsageError that names the nearest known words if `given` has an unknown key."""
    for name in given:
        if name not in known:
            raise UsageError(f"unknown name `{name}` {where}", hint=nearest(name, known))


def _plain_type(hint: Any) -> tuple[Any, bool]:
    """Split `T | None` into T and True."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(rest) == 1:
            return rest[0], True
    return hint, False
