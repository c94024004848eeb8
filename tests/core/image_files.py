"""Files as reading may meet them, and what must come of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from yolotrt_core.errors import UsageError
from yolotrt_core.media import images


def write_files(folder: Path) -> list[Path]:
    """Write 60 JPEG files of several sizes, with a broken one, one that is missing, and a PNG file among them."""
    noise = np.random.default_rng(0)
    paths = []
    for index in range(60):
        shape = (40 + index % 7, 50 + index % 5, 3)
        paths.append(folder / f"{index:02}.jpg")
        cv2.imwrite(str(paths[-1]), noise.integers(0, 255, shape, np.uint8))
    paths[13].write_bytes(paths[13].read_bytes()[:300])
    paths[21].unlink()
    paths[34] = paths[34].with_suffix(".png")
    cv2.imwrite(str(paths[34]), noise.integers(0, 255, (44, 33, 3), np.uint8))
    return paths


def assert_as_read_here(found: list[np.ndarray | UsageError], files: list[Path]) -> None:
    """Compare images and errors with what reading each file by itself gives."""
    assert len(found) == len(files)
    for one, file in zip(found, files, strict=True):
        expected = images.attempt(file)
        if isinstance(expected, UsageError):
            assert isinstance(one, UsageError)
            assert (str(one), one.hint) == (str(expected), expected.hint)
        else:
            assert isinstance(one, np.ndarray)
            np.testing.assert_array_equal(one, expected)


def memory_of(frame: np.ndarray) -> object:
    """Return what owns the memory that a frame lies in."""
    base: object = frame
    while isinstance(base, np.ndarray):
        base = base.base
    return base
