"""Labels as YOLO keeps them: a text file for each image, a line for each object."""

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

MOST_CLASSES = 1 << 31  # a class id beyond is a mistake, and fits no integer of the tools


def read(image: Path) -> NDArray[np.float64]:
    """Read the labels of an image; one without the file has nothing on it.

    Returns:
        float64 (M, 5): class, cx, cy, w, h, the last four as shares of the image.

    Raises:
        UsageError: the file cannot be read, or a line is no label.
    """
    import numpy as np

    file = label_file(image)
    rows = []
    if file.is_file():
        for number, line in enumerate(read_text(file, "the labels").splitlines(), 1):
            if line.strip():
                rows.append(_label_row(line, f"{file}, line {number}"))
    once = list(dict.fromkeys(map(tuple, rows)))  # some tools write an object twice, and it is there once
    if len(once) < len(rows):
        _log.warning("`%s` has %s twice: each counts once", file, counted(len(rows) - len(once), "line"))
    return np.array(once, np.float64).reshape(-1, 5)


def label_file(image: Path) -> Path:
    """Return where the labels of an image are, or would be: `labels/.../NAME.txt` for `images/.../NAME.jpg`."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            beside = Path(*parts[:index], "labels", *parts[index + 1 :]).with_suffix(".txt")
            if beside.parent.is_dir():
                return beside
    return image.with_suffix(".txt")


def _label_row(line: str, where: str) -> list[float]:
    """Read `class cx cy w h`, or `class x y x y ...`, the outline of a region, as the box around it."""
    try:
        row = [float(word) for word in line.split()]
    except ValueError:
        row = []
    is_class = bool(row) and row[0].is_integer() and 0 <= row[0] < MOST_CLASSES
    if not is_class or len(row) < 5 or (len(row) > 5 and len(row) % 2 == 0):
        raise UsageError(f"{where}: expected `class cx cy w h`, found `{line.strip()[:60]}`")
    if not all(-0.01 <= value <= 1.01 for value in row[1:]):
        raise UsageError(f"{where}: coordinates must be shares of the image, 0 to 1, found `{line.strip()[:60]}`")
    if len(row) > 5:
        xs, ys = row[1::2], row[2::2]
        row = [row[0], (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
    return row
