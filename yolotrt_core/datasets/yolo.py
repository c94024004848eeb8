"""YOLO labels: a text file per image, a line per object."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from yolotrt_core.console.text import counted
from yolotrt_core.errors import UsageError
from yolotrt_core.files.paths import read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

MAX_CLASSES = 1 << 31  # larger class ids are errors and overflow integers of other tools


def read(image: Path) -> NDArray[np.float64] | None:
    """Read the labels of an image.

    Returns:
        float64 (M, 5): class, cx, cy, w, h, the last four normalized by the image size; None without a file.

    Raises:
        UsageError: the file cannot be read, or a line is invalid.
    """
    import numpy as np

    file = label_file(image)
    if not file.is_file():
        return None
    lines = enumerate(read_text(file, "the labels").splitlines(), 1)
    rows = [_label_row(line, f"{file}, line {number}") for number, line in lines if line.strip()]
    once = list(dict.fromkeys(map(tuple, rows)))  # some tools write duplicates
    if len(once) < len(rows):
        _log.warning("ignoring duplicate labels in `%s`: %s", file, counted(len(rows) - len(once), "line"))
    return np.array(once, np.float64).reshape(-1, 5)


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
    """Parse `class cx cy w h`, or the bounding box of a polygon `class x y x y ...`."""
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
    if len(row) > 5:
        xs, ys = row[1::2], row[2::2]
        row = [row[0], (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
    return row
