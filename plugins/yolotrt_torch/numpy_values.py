"""NumPy values of a pickle, as plain values at bounded cost.

NumPy pickles an array as `_reconstruct(ndarray, (0,), b"b")` with the state (version, shape, dtype, is Fortran order,
data), a scalar as `scalar(dtype, data)` and a dtype as `dtype("i8", False, True)` with the state (version, byte order,
...). Source: numpy 2.4, numpy/_core/src/multiarray/methods.c and descriptor.c.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from yolotrt_torch.pickle_records import Stub

MAX_ITEMS = 1_000_000
MAX_AXES = 8
MAX_SIDE = 1 << 31
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]", re.ASCII)
_TEXTS = re.compile(r"[US]\d{1,5}", re.ASCII)
_ARRAYS = re.compile(r"numpy\.(core|_core)\.(multiarray\._reconstruct|numeric\._frombuffer)")


def is_array(value: Any) -> bool:
    """Check whether a value of the pickle is a NumPy array."""
    return isinstance(value, Stub) and _ARRAYS.fullmatch(value.kind) is not None


def encoded(args: tuple[Any, ...]) -> bytes:
    """Return the bytes that older pickle protocols write as a Latin-1 text, or as nothing.

    Raises:
        TypeError: it is anything else. ValueError: not Latin-1.
    """
    if not args:
        return b""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in ("latin1", "latin-1"):
        raise TypeError("expected a text in Latin-1")
    return args[0].encode("latin-1")


def scalar(args: tuple[Any, ...]) -> Any:
    """Return a NumPy scalar as a number, bool or string; other types only as a record.

    Raises:
        ValueError: its data has another size than its type.
    """
    dtype = _dtype(args[0]) if args else None
    if dtype is None or len(args) != 2 or not isinstance(args[1], (bytes, bytearray)):
        return Stub("numpy.scalar")
    if len(args[1]) != dtype.itemsize:
        raise ValueError("a NumPy scalar whose size differs from its type")
    return _native(np.frombuffer(args[1], dtype)[0].item())


def as_plain(array: Stub) -> Any:
    """Return a NumPy array of numbers or texts as nested lists; one without axes as its value.

    An array of objects has its values in the pickle; they are returned as they were read.

    Raises:
        ValueError: another type, a size that differs from its data, or too large.
    """
    is_buffer = array.kind.endswith("_frombuffer")
    if is_buffer:  # (data, dtype, shape, order)
        parts = array.args
        data, kind, shape, is_fortran = (*parts[:3], parts[3] == "F") if len(parts) == 4 else (None,) * 4
    else:
        parts = array.built if isinstance(array.built, tuple) else ()
        _, shape, kind, is_fortran, data = parts if len(parts) == 5 else (None,) * 5
    if not isinstance(shape, tuple) or len(shape) > MAX_AXES:
        raise ValueError("a NumPy array of an unknown form")
    if not all(type(side) is int and 0 <= side < MAX_SIDE for side in shape) or math.prod(shape) > MAX_ITEMS:
        raise ValueError("a NumPy array that is too large")
    count = math.prod(shape)
    if isinstance(data, list) and _code(kind).startswith("O"):
        if len(data) != count or len(shape) > 1:
            raise ValueError("a NumPy array of objects of an unknown form")
        return list(data) if shape else data[0]
    dtype = _dtype(kind)
    if dtype is None or not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"a NumPy array of the type `{_code(kind)[:20]}`")
    if len(data) != count * dtype.itemsize:
        raise ValueError("a NumPy array whose size differs from its data")
    values = np.frombuffer(data, dtype) if count else np.zeros(0, dtype)
    return _native(values.reshape(shape, order="F" if is_fortran else "C").tolist() if count else [])


def _code(kind: Any) -> str:
    is_type = isinstance(kind, Stub) and kind.kind == "numpy.dtype" and kind.args and isinstance(kind.args[0], str)
    return str(kind.args[0]) if is_type else "?"


def _dtype(kind: Any) -> np.dtype[Any] | None:
    """Return a plain type of numbers or texts, None for any other."""
    code = _code(kind)
    if not (_NUMBERS.fullmatch(code) or _TEXTS.fullmatch(code)):
        return None
    order = kind.built[1] if isinstance(kind.built, tuple) and len(kind.built) > 1 else "<"
    dtype = np.dtype(code).newbyteorder(">" if order == ">" else "<")
    return dtype if dtype.itemsize else None


def _native(value: Any) -> Any:
    """Decode NumPy's byte strings, within lists, too."""
    if isinstance(value, list):
        return [_native(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
