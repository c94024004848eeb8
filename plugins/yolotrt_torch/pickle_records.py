"""What the reader makes of a pickle's objects: inert records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Global:
    """A name in the pickle, e.g. `torch.FloatStorage`; only a name."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Storage of a tensor: element type, key within the archive, number of elements."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorRef:
    """A tensor in the pickle, without its data."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Stub:
    """An object of a named class.

    Attributes:
        kind: its class. args: of its constructor. state: its attributes, or its items if the class is a mapping.
        built: what its class takes to restore it, if that is not a dict of attributes; NumPy's arrays have a tuple.
    """

    kind: str
    args: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)
    built: Any = None
