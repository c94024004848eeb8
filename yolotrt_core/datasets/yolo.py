"""YOLO labels: a text file per image, a line per object."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.console.text import counted
from yolotrt_core.datasets.segmentation import Segmentation
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

MAX_CLASSES = 1 << 31  # larger class ids are errors and overflow integers of other tools


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Labels of an image.

    Attributes:
        rows: float64 (M, 5): class, cx, cy, w, h, the last four normalized by the image size.
        masks: of each, the normalized polygon; None of a label that is a box.
    """

    rows: NDArray[np.float64]
    masks: tuple[Segmentation | None, ...]


def read(image: Path) -> Labels | None:
    """Read the labels of an image; None without a file.

    Raises:
        UsageError: the file cannot be read, or a line is invalid.
    """
    import numpy as np

    file = label_file(image)
    if not file.is_file():
        return None
    lines = enumerate(read_text(file, "the labels").splitlines(), 1)
    rows = [_label_row(line, f"{file}, line {number}") for number, line in lines if line.strip()]
    # Some tools write duplicates. Two polygons with one box are taken as one object too, as upstream does.
    once: dict[tuple[float, ...], Segmentation | None] = {}
    for row in rows:
        mask = Segmentation((np.array(row[1:], np.float64),)) if len(row) > 5 else None
        once.setdefault(_class_and_box(row), mask)
    if len(once) < len(rows):
        _log.warning("ignoring duplicate labels in `%s`: %s", file, counted(len(rows) - len(once), "line"))
    return Labels(np.array(list(once), np.float64).reshape(-1, 5), tuple(once.values()))


def label_file(image: Path) -> Path:
    """Return the label file of an image: `labels/.../NAME.txt` for `images/.../NAME.jpg`."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            candidate = Path(*parts[:index], "labels", *parts[index + 1 :]).with_suffix(".txt")
            if candidate.parent.is_dir():
                return candidate
    return image.with_suffix(".txt")


def _label_row(line: str, where: str) -> list[float]:
    """Parse `class cx cy w h`, or a polygon `class x y x y ...`."""
    try:
        row = [float(field) for field in line.split()]
    except ValueError:
        row = []
    is_class = bool(row) and row[0].is_integer() and 0 <= row[0] < MAX_CLASSES
    if not is_class or len(row) < 5 or (len(row) > 5 and len(row) % 2 == 0):
        hint = "remove the sixth column, a confidence" if is_class and len(row) == 6 else None
        raise UsageError(f"{where}: expected `class cx cy w h`, found `{line.strip()[:60]}`", hint=hint)
    if not all(-0.01 <= value <= 1.01 for value in row[1:]):
        raise UsageError(f"{where}: coordinates must be normalized to 0..1, found `{line.strip()[:60]}`")
    return row


def _class_and_box(row: list[float]) -> tuple[float, ...]:
    """Return class, cx, cy, w, h: of a polygon, of its bounding box."""
    if len(row) == 5:
        return tuple(row)
    xs, ys = row[1::2], row[2::2]
    return row[0], (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)
