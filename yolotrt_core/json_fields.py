"""Says which field of a JSON file is wrong, for files that somebody may have edited or cut short."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from yolotrt_core.types import from_json


def wrong_field(cls: Any, data: Any, at: str = "") -> str | None:
    """Name the first field for which `from_json(cls, data)` fails.

    Args:
        cls: a dataclass of `yolotrt_core.types`. at: where in the file `data` is, as `model.inputs[0]`.

    Returns:
        What is wrong, as ``field `model.labels` is missing``; None if nothing is.
    """
    if not isinstance(data, dict):
        return f"{f'field `{at}`' if at else 'its content'} is no JSON object"
    start = f"{at}." if at else ""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name not in data and field.default is field.default_factory is dataclasses.MISSING:
            return f"field `{start}{field.name}` is missing"
    for name, value in data.items():
        if name not in hints:
            return f"field `{start}{name}` is unknown"
        if (wrong := _wrong_value(hints[name], value, f"{start}{name}")) is not None:
            return wrong
    return None


def _wrong_value(hint: Any, value: Any, at: str) -> str | None:
    if dataclasses.is_dataclass(hint):
        return wrong_field(hint, value, at)
    if typing.get_origin(hint) is tuple and isinstance(value, list) and typing.get_args(hint)[-1] is Ellipsis:
        each = typing.get_args(hint)[0]
        found = (_wrong_value(each, item, f"{at}[{number}]") for number, item in enumerate(value))
        return next((wrong for wrong in found if wrong is not None), None)
    try:
        from_json(hint, value)
    except ValueError as err:
        return f"field `{at}`: {err}"
    except (TypeError, LookupError, AttributeError):  # what Python says of it is about our code
        return f"field `{at}` cannot be {value!r}"
    return None
