"""Parity: the figures are right, and nothing wrong passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolotrt_core.errors import StageError
from yolotrt_core.export.parity import ParityOptions, check, compare


def test_figures_against_closed_forms() -> None:
    expected = {"a": np.array([[3.0, 4.0]], np.float32), "b": np.array([1.0, 1.0], np.float32)}
    found = {"a": np.array([[3.0, 4.5]], np.float32), "b": np.array([1.0, 0.0], np.float32)}
    worst, other = compare(expected, found)
    assert (worst.output, worst.max_abs, worst.worst_index) == ("b", 1.0, (1,))
    assert worst.relative_l2 == pytest.approx(1 / np.sqrt(2))
    assert (other.output, other.expected, other.found) == ("a", 4.0, 4.5)
    assert other.relative_l2 == pytest.approx(0.5 / 5)  # ||(0, 0.5)|| / ||(3, 4)||


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_is_never_equal(bad: float) -> None:
    found = compare({"a": np.zeros(3)}, {"a": np.array([0, bad, 0])})
    assert found[0].relative_l2 == np.inf


def test_missing_and_misshapen_outputs() -> None:
    with pytest.raises(StageError, match=r"should have shape \(2, 3\), found none"):
        compare({"a": np.zeros((2, 3))}, {"b": np.zeros((2, 3))})
    with pytest.raises(StageError, match=r"found \(3, 2\)"):
        compare({"a": np.zeros((2, 3))}, {"a": np.zeros((3, 2))})


class _Session:
    def __init__(self, add: float) -> None:
        self.add = add

    def infer(self, images: Any) -> dict[str, Any]:
        return {"output0": images * 2 + self.add}


@pytest.mark.parametrize(("add", "passes"), [(0.0, True), (1e-6, True), (0.01, False), (float("nan"), False)])
def test_check_runs_the_reference_input(tmp_path: Path, add: float, passes: bool) -> None:
    images = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    np.savez(tmp_path / "reference.npz", images=images, output0=images * 2)
    session: Any = _Session(add)
    if passes:
        facts = check(session, tmp_path / "reference.npz", ParityOptions())
        assert facts["input_shape"] == [1, 3, 4, 4]
    else:
        with pytest.raises(StageError, match="error of output `output0`"):
            check(session, tmp_path / "reference.npz", ParityOptions())
