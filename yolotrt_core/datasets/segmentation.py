"""Labelled masks in COCO's forms: polygons and run-length encodings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolotrt_core.errors import UsageError
from yolotrt_core.serialization import number_from_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MIN_COORDINATES = 6  # of a triangle; four would be read as a box by COCO's own functions


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The mask of an object as it was annotated: either polygons or a run-length encoding.

    Attributes:
        polygons: parts, each float64 (2 P,), x y x y ...; normalized or in pixels like the boxes of its image.
        rle: COCO's `size` [height, width] in pixels and `counts`, text if compressed, else a list of run lengths.
    """

    polygons: tuple[NDArray[np.float64], ...] = ()
    rle: Mapping[str, Any] | None = None

    @property
    def key_material(self) -> bytes:
        """Bytes that determine the mask."""
        if self.rle is not None:
            return json.dumps(self.rle, sort_keys=True).encode()
        return b"".join(b"%d " % len(part) + part.tobytes() for part in self.polygons)

    def scaled(self, width: float, height: float) -> Segmentation:
        """Return the mask with normalized polygons in pixels of an image of this size."""
        import numpy as np

        size = np.array([width, height], np.float64)
        return Segmentation(tuple((part.reshape(-1, 2) * size).ravel() for part in self.polygons), self.rle)


def read_segmentation(annotation: Mapping[str, Any], path: Path) -> Segmentation | None:
    """Return the mask of an annotation of a COCO file, in pixels; None if it has none.

    Raises:
        UsageError: `segmentation` is neither polygons nor a run-length encoding.
    """
    found = annotation.get("segmentation")
    if found is None or found in ([], [[]]):
        return None
    read = _polygons(found) if isinstance(found, list) else _rle(found)
    if read is None:
        raise UsageError(
            f"`{path}`, annotation {str(annotation.get('id'))[:60]}: expected `segmentation` as a list of polygons "
            f"[x, y, x, y, x, y, ...] or as `size` and `counts`, found `{str(found)[:60]}`"
        )
    return read


def _polygons(found: Sequence[Any]) -> Segmentation | None:
    import numpy as np

    parts = []
    for part in found:
        numbers = [number_from_json(value) for value in part] if isinstance(part, list) else []
        known = [number for number in numbers if number is not None]
        if len(known) < max(len(numbers), _MIN_COORDINATES) or len(known) % 2:
            return None
        parts.append(np.array(known, np.float64))
    return Segmentation(tuple(parts))


def _rle(found: Any) -> Segmentation | None:
    size, counts = (found.get("size"), found.get("counts")) if isinstance(found, dict) else (None, None)
    if not isinstance(size, list) or len(size) != 2 or not _are_counts(size):
        return None
    if isinstance(counts, list):
        is_read = _are_counts(counts) and sum(counts) == size[0] * size[1]
    else:
        is_read = isinstance(counts, str)
    return Segmentation(rle={"size": size, "counts": counts}) if is_read else None


def _are_counts(values: list[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)
