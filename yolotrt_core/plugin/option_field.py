"""Declarations of options: the fields of an options dataclass, and how users see them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

METADATA = "yolotrt"
MANY = 999_999_999  # maximum of a count, larger than any sensible one: help and errors do not name it
_TYPES: Mapping[Any, tuple[str, str]] = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("TEXT", "a text"),
    Path: ("FILE", "a path"),
}
_WIDEST_CHOICES = 16  # characters of choices that help shows in place of a type


@dataclass(frozen=True, slots=True)
class Format:
    """The notation of a value that is neither of a plain type nor one of several choices.

    Attributes:
        metavar: its placeholder in help. expects: its description in errors.
        read: converts the text of a flag or the value of a recipe; raises ValueError.
        hint: what else an error says.
    """

    metavar: str
    expects: str
    read: Callable[[Any], Any]
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class OptionField:
    """One option as users meet it.

    Attributes:
        attribute: field of the dataclass. name: recipe key. flag: e.g. `--tensorrt-workspace`.
        type: one of bool, int, float, str, Path, a Literal of strings or a Format; `optional` where
            None is allowed too. default: of the field.
        others: as declared, see `option`.
    """

    attribute: str
    name: str
    flag: str
    type: Any
    optional: bool
    default: Any
    help: str
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    in_key: bool = True
    in_recipe: bool = True
    common: bool = False
    switch: bool = False
    repeatable: bool = False
    positional: bool = False
    group: str | None = None
    metavar: str | None = None
    default_text: str | None = None

    @property
    def argument(self) -> str:
        """The flag as a Python name."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values of a Literal, of a bool `on` and `off`, else empty."""
        if is_literal(self.type):
            return typing.get_args(self.type)
        return ("on", "off") if self.type is bool else ()

    @property
    def expects(self) -> str:
        """Description of a valid value, for an error."""
        if isinstance(self.type, Format):
            return self.type.expects
        if self.choices:
            *others, last = (f"`{c}`" for c in self.choices)
            return f"{', '.join(others)} or {last}" if others else last
        named = (("at least", self.minimum), ("at most", None if self.maximum == MANY else self.maximum))
        bounds = [f"{words} {bound:.12g}" for words, bound in named if bound is not None]
        unit = f" of {self.unit}" if self.unit else ""
        return _TYPES[self.type][1] + unit + (", " + " and ".join(bounds) if bounds else "")

    @property
    def usage(self) -> str:
        """The flag with the type of its value, e.g. `--tensorrt-workspace INT`."""
        if self.positional:
            return self.metavar or self.name.upper()
        if self.switch:
            return self.flag
        listed = "|".join(self.choices)
        shown = listed if listed and len(listed) <= _WIDEST_CHOICES else "NAME"
        if not self.choices:
            shown = self.type.metavar if isinstance(self.type, Format) else _TYPES[self.type][0]
        return f"{self.flag} {self.metavar or shown}"

    @property
    def shown_default(self) -> str:
        """The default as a user would write it."""
        if self.default_text is not None or self.default is None:
            return self.default_text or "automatic"
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return f"{self.default} {self.unit}" if self.unit else str(self.default)

    @property
    def description(self) -> str:
        """Help text with unit, default, and the choices that `usage` does not show."""
        if self.positional or self.switch:
            return self.help
        listed = "|".join(self.choices)
        choices = f"{listed}; " if len(listed) > _WIDEST_CHOICES else ""
        in_unit = f", in {self.unit}" if self.unit and self.default is None else ""
        if (
            self.default is None and self.default_text is None and "default" in self.help
        ):  # which depends on other things
            return f"{self.help}{in_unit}" + (f" ({listed})" if choices else "")
        return f"{self.help}{in_unit} ({choices}default: {self.shown_default})"


def option(
    default: Any,
    *,
    help: str,
    unit: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    in_key: bool = True,
    in_recipe: bool = True,
    common: bool = False,
    switch: bool = False,
    repeatable: bool = False,
    positional: bool = False,
    group: str | None = None,
    name: str | None = None,
    metavar: str | None = None,
    default_text: str | None = None,
    format: Format | None = None,
) -> Any:
    """Declare one field of an options dataclass of a stage, or of the settings of a command.

    Args:
        default: value when neither flag nor recipe gives one; its type must fit the annotation.
        help: one line for `--help`; required.
        unit: unit of a number, shown in help, e.g. "MiB".
        minimum, maximum: inclusive bounds of a number.
        in_key: False only for what cannot change a single byte of the stage's output.
        in_recipe: False for what a recipe cannot set. common: whether the first screen of help shows it.
        switch: the flag takes no value. repeatable: it may be given several times; the value is a tuple.
        positional: has no flag. group: title in help other than the one of the whole dataclass.
        name: recipe key and flag other than the field's name.
        metavar: placeholder of the value in help, e.g. "DIR", other than the one made from the type.
        default_text: the default in help, where `default` alone does not explain it.
        format: how the value is written if its type is another than those of `OptionField.type`.
    """
    declared = dict(locals())
    return dataclasses.field(default=declared.pop("default"), metadata={METADATA: declared})


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Options of a stage that has none."""


def is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal
