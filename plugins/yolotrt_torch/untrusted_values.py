"""Values that a stranger's file holds: copied, shown and refused at a cost that the file cannot choose.

A pickle may name one list a thousand times inside another, and that one again: a kilobyte that no memory could hold
once it is written out. A number may have a million digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yolotrt_core.console.text import first_line, printable
from yolotrt_core.errors import UsageError

MOST_NODES = 500_000  # of a yaml and its names; the largest official one has 700
MOST_CHARACTERS = 4_000_000
MOST_DEPTH = 8
_LARGEST = 1 << 63  # integers beyond are no part of a YAML, and slow to write as digits
_MOST_SHOWN = 600  # characters of a message


class PlainCopies:
    """Copies values into what YAML can hold, together no more than a model needs."""

    def __init__(self) -> None:
        self._nodes, self._characters = MOST_NODES, MOST_CHARACTERS

    def copy(self, value: Any, what: str, depth: int = 0) -> Any:
        """Return a value as dict with text keys, list, text, number, bool or None.

        Args:
            what: what the value is of the file, for messages, as `model yaml`.

        Raises:
            UsageError: it holds anything else, or too much.
        """
        if depth > MOST_DEPTH:
            raise UsageError(f"the checkpoint's {what} is nested more than {MOST_DEPTH} deep")
        self._nodes -= 1
        self._characters -= len(value) if isinstance(value, str) else 0
        if self._nodes < 0 or self._characters < 0:
            raise UsageError(f"the checkpoint's {what} is larger than that of any model")
        if value is None or isinstance(value, (bool, float, str)):
            return value
        if isinstance(value, int) and -_LARGEST <= value < _LARGEST:
            return value
        if isinstance(value, (list, tuple)):
            return [self.copy(item, what, depth + 1) for item in value]
        if isinstance(value, dict):
            pairs = value.items()
            return {str(self.copy(key, what, MOST_DEPTH)): self.copy(item, what, depth + 1) for key, item in pairs}
        raise UsageError(f"the checkpoint's {what} holds {shown(value)}, expected texts and numbers")


def shown(value: Any, depth: int = 2) -> str:
    """Return a value as a message names it: whole where it is small, else its beginning or its type."""
    if value is None or isinstance(value, (bool, float)):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < _LARGEST else f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return printable(value[:60]) + "..." * (len(value) > 60)
    if isinstance(value, (list, tuple)) and depth:
        parts = [f"'{shown(v)}'" if isinstance(v, str) else shown(v, depth - 1) for v in value[:8]]
        parts += ["..."] * (len(value) > 8)
        return f"[{', '.join(parts)}]" if isinstance(value, list) else f"({', '.join(parts)})"
    return f"a `{type(value).__name__}`"


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Turn what only a value of the file can lead to into a UsageError, and keep each of these on one short line.

    Other kinds of exceptions are faults of ours and pass.
    """
    try:
        yield
    except UsageError as err:
        message = printable(err.message)
        if len(message) > _MOST_SHOWN:
            message = message[:_MOST_SHOWN] + "..."
        if message == err.message:
            raise
        raise UsageError(message, hint=err.hint) from err
    except (ValueError, OverflowError, MemoryError, RecursionError) as err:
        raise UsageError(
            f"the checkpoint is damaged: a value in it is out of range ({type(err).__name__}: {first_line(err)[:80]})",
            hint="copy or download it again",
        ) from err
