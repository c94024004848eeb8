"""Arrays as tests compare them, and detections as tests write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolotrt_core.types import Detections


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return how far an array is from another, as a share of the other's length; computed in float64."""
    exact = expected.astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    """Return what was found on an image: of each object the box (x1, y1, x2, y2), the score and the class id."""
    return Detections(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([r[2] for r in rows], np.int64),
    )
