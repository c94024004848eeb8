"""JSON serialization of dataclasses, validated against their type annotations."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from yolotrt_core.types import Json

T = TypeVar("T")


def to_json(value: Any) -> Json:
    """Return a dataclass of `types` (or nested containers of them) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((to_json(v) for v in value), key=repr)
    if isinstance(value, Path):
        return value.as_posix()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def number_from_json(data: object) -> float | None:
    """Return a JSON number as a float; None for NaN, infinity, overflow and other types."""
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        return None
    try:
        return float(data) if math.isfinite(data) else None
    except OverflowError:
        return None


def from_json(cls: type[T], data: Any) -> T:
    """Rebuild a dataclass of `types` from `to_json`'s output.

    Raises:
        ValueError: a field is missing, unknown or of another type; it is named as `model.inputs[0].shape`.
    """
    return typing.cast(T, _decode(cls, data, ""))


def invalid_field(cls: type, data: Any) -> str | None:
    """Return the error of `from_json`, which names the first invalid field; None if valid."""
    try:
        from_json(cls, data)
    except ValueError as err:
        return str(err)
    return None


def _decode(hint: Any, data: Any, at: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        choices = [a for a in args if a is not type(None)]
        exact = [a for a in choices if (typing.get_origin(a) or a) is type(data)]
        return _decode(exact[0] if exact else choices[0], data, at)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, data, at)
    if origin is tuple and isinstance(data, (list, tuple)):
        items = args[:1] * len(data) if args[-1] is Ellipsis else args
        if len(items) != len(data):
            raise ValueError(f"field `{at}`: expected {len(items)} items, found {len(data)}")
        return tuple(_decode(a, item, f"{at}[{i}]") for i, (a, item) in enumerate(zip(items, data, strict=True)))
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    if is_mapping and isinstance(data, dict):
        return {key: _decode(args[1], value, f"{at}.{key}") for key, value in data.items()}
    if origin is tuple or is_mapping:
        raise ValueError(f"field `{at}` cannot be {data!r}")
    if origin is Literal and data not in args:
        raise ValueError(f"field `{at}`: expected one of {args}, found {data!r}")
    if hint is Path and isinstance(data, str):
        return Path(data)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        if (number := number_from_json(data)) is None:
            raise ValueError(f"field `{at}`: expected a number, found an integer that is too large")
        return number
    if isinstance(hint, type) and origin is None and hint is not Any and not isinstance(data, hint):
        raise ValueError(f"field `{at}`: expected {hint.__name__}, found {data!r}")
    return data


def _decode_dataclass(cls: Any, data: Any, at: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{f'field `{at}`' if at else 'its content'} is not a JSON object")
    start = f"{at}." if at else ""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name not in data and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"field `{start}{field.name}` is missing")
    for name in data:
        if name not in hints:
            raise ValueError(f"field `{start}{name}` is unknown")
    return cls(**{name: _decode(hints[name], value, f"{start}{name}") for name, value in data.items()})
