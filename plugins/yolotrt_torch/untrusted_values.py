"""Copying, display and refusal of values of untrusted files at bounded cost.

A pickle may reference one list a thousand times inside another, and that one again: a kilobyte that expands beyond
any memory. A number may have a million digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from yolotrt_core.console.text import first_line, printable
from yolotrt_core.errors import UsageError
from yolotrt_torch.numpy_values import as_plain, is_array
from yolotrt_torch.pickle_records import Global, Storage, Stub, TensorRef

MAX_NODES = 500_000  # of a yaml and its names; 700 in the largest official one
MAX_CHARACTERS = 4_000_000
MAX_DEPTH = 8
_MAX_INTEGER = 1 << 63  # larger integers are invalid in YAML, and slow to format
_MAPPINGS = ("types.SimpleNamespace", "argparse.Namespace", "easydict.EasyDict", "addict.addict.Dict")
_MAX_SHOWN = 600  # characters of a message


class PlainCopies:
    """Copies values to YAML types, up to a total size.

    Args:
        read: reads a tensor of the file; without, tensors are refused.
    """

    def __init__(self, read: Callable[[TensorRef], NDArray[Any]] | None = None) -> None:
        self._nodes, self._characters = MAX_NODES, MAX_CHARACTERS
        self._read = read

    def copy(self, value: Any, what: str, depth: int = 0) -> Any:
        """Return a value as dict with string keys, list, string, number, bool or None.

        Arrays become lists, namespaces and subclasses of dict become dicts, paths become strings.

        Args:
            what: name of the value for messages, e.g. `model yaml`.

        Raises:
            UsageError: it contains other types, or is too large.
        """
        if depth > MAX_DEPTH:
            raise UsageError(f"the checkpoint's {what} is nested more than {MAX_DEPTH} deep")
        self._nodes -= 1
        self._characters -= len(value) if isinstance(value, str) else 0
        if self._nodes < 0 or self._characters < 0:
            raise UsageError(f"the checkpoint's {what} is too large")
        if value is None or isinstance(value, (bool, float, str)):
            return value
        if isinstance(value, int) and -_MAX_INTEGER <= value < _MAX_INTEGER:
            return value
        if isinstance(value, (list, tuple)):
            return [self.copy(item, what, depth + 1) for item in value]
        if isinstance(value, dict):
            pairs = value.items()
            return {str(self.copy(key, what, MAX_DEPTH)): self.copy(item, what, depth + 1) for key, item in pairs}
        inner = self._inner(value, what)
        if inner is not None:
            return self.copy(inner, what, depth + 1)
        raise UsageError(f"the checkpoint's {what} holds {shown(value)}, expected strings and numbers")

    def _inner(self, value: Any, what: str) -> Any:
        """Return what an object of a harmless class holds, None for other classes."""
        if isinstance(value, TensorRef) and self._read is not None:
            if math.prod(value.shape) > MAX_NODES:
                raise UsageError(f"the checkpoint's {what} is too large")
            return self._read(value).tolist()
        if not isinstance(value, Stub):
            return None
        if is_array(value):
            try:
                return as_plain(value)
            except ValueError as err:
                raise UsageError(f"the checkpoint's {what} holds {err}, expected strings and numbers") from err
        if value.kind in _MAPPINGS:
            return value.state
        if value.kind.startswith("pathlib.") and all(isinstance(part, str) for part in value.args):
            return "/".join(value.args)
        return None


def shown(value: Any, depth: int = 2) -> str:
    """Format a value for messages: whole if small, else its beginning or its type."""
    if value is None or isinstance(value, (bool, float)):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < _MAX_INTEGER else f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return printable(value[:60]) + "..." * (len(value) > 60)
    if isinstance(value, (list, tuple)) and depth:
        parts = [f"'{shown(v)}'" if isinstance(v, str) else shown(v, depth - 1) for v in value[:8]]
        parts += ["..."] * (len(value) > 8)
        return f"[{', '.join(parts)}]" if isinstance(value, list) else f"({', '.join(parts)})"
    if isinstance(value, (Stub, Global)):
        return f"a `{printable((value.kind if isinstance(value, Stub) else value.name)[:80])}`"
    return "a tensor" if isinstance(value, (TensorRef, Storage)) else f"a `{type(value).__name__}`"


@contextmanager
def convert_value_errors() -> Iterator[None]:
    """Convert errors from a file's values to UsageErrors of one short line; other exceptions are bugs and pass."""
    try:
        yield
    except UsageError as err:
        message = printable(err.message)
        if len(message) > _MAX_SHOWN:
            message = message[:_MAX_SHOWN] + "..."
        if message == err.message:
            raise
        raise UsageError(message, hint=err.hint) from err
    except (ValueError, OverflowError, MemoryError, RecursionError) as err:
        raise UsageError(
            f"the checkpoint is corrupted: value out of range ({type(err).__name__}: {first_line(err)[:80]})",
            hint="copy or download it again",
        ) from err
