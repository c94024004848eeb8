"""Ranges files, which may come from outside."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from yolotrt_core.calibration.ranges import SCHEMA, read_ranges
from yolotrt_core.errors import UsageError


@pytest.mark.parametrize("amax", [0, -1.0, True, "1", None, math.inf, math.nan, 10**400])
def test_a_range_that_is_none(tmp_path: Path, amax: object) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"schema": SCHEMA, "onnx_sha256": "", "method": "x", "tensors": {"t": amax}}))
    with pytest.raises(UsageError, match=r"the range of `t` is .*, expected a positive number"):
        read_ranges(path)


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text('{"tensors": {"t": ' + "9" * 5000 + "}}")
    with pytest.raises(UsageError, match="invalid JSON"):
        read_ranges(path)
