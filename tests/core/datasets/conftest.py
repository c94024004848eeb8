"""A data set for the tests of its readers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Two images of 40x20 in YOLO layout, one with two boxes and one with none."""
    for name in ("a", "b"):
        for kind in ("images", "labels"):
            (tmp_path / kind / "val").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "images" / "val" / f"{name}.jpg"), np.zeros((20, 40, 3), np.uint8))
    (tmp_path / "labels" / "val" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.1 0.2\n")
    return tmp_path
