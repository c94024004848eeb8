"""Counts against NumPy's on the same bins, whatever the order and number of threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from yolotrt_calibrators.histogram import BINS, Histogram, NotFiniteError

_values = arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32, allow_nan=False, allow_subnormal=False)
)


def _brute(values: np.ndarray, width: float) -> np.ndarray:
    return np.bincount((np.abs(values.astype(np.float64)) / width).astype(int), minlength=BINS)


@pytest.fixture
def activations() -> list[np.ndarray]:
    """SiLU-like values whose reach grows from image to image, so that bins must widen."""
    random = np.random.default_rng(0)
    made = []
    for reach in (0.01, 3.0, 1.0, 900.0):
        x = random.standard_normal((1, 8, 40, 40)).astype(np.float32) * reach
        made.append(x * np.float32(0.5) * (1 + np.tanh(x / 2)))  # x * sigmoid(x)
    return made


def test_the_counts_are_numpys(activations: list[np.ndarray]) -> None:
    histogram = Histogram()
    for values in activations:
        histogram.observe(values)
    everything = np.concatenate([a.ravel() for a in activations])
    counts = histogram.counts()
    # float32 arithmetic may put a value that lies on an edge into the bin beside it.
    moved = np.abs(np.cumsum(counts) - np.cumsum(_brute(everything, histogram.width))).max()
    assert counts.sum() == everything.size
    assert moved <= 2


def test_order_does_not_matter(activations: list[np.ndarray]) -> None:
    forward, backward = Histogram(), Histogram()
    forward.observe(activations[0])
    backward.observe(activations[0])  # the first image sets the width
    for values in activations[1:]:
        forward.observe(values)
    for values in activations[:0:-1]:
        backward.observe(values)
    assert forward.width == backward.width
    assert np.abs(forward.counts() - backward.counts()).sum() <= 4


def test_threads_lose_nothing(activations: list[np.ndarray]) -> None:
    histogram = Histogram()
    threads = [threading.Thread(target=histogram.observe, args=(v,)) for v in activations * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.counts().sum() == 4 * sum(v.size for v in activations)


@settings(max_examples=60, deadline=None)
@given(st.lists(_values, min_size=1, max_size=4))
def test_every_value_is_counted_and_within_its_bin(batches: list[np.ndarray]) -> None:
    histogram = Histogram()
    for values in batches:
        histogram.observe(values)
    everything = np.abs(np.concatenate(batches).astype(np.float64))
    counts = histogram.counts()
    assert counts.sum() == everything.size
    if histogram.width:
        edges = np.repeat(np.arange(BINS), counts) * histogram.width
        everything.sort()
        assert np.all(np.abs(edges - everything) <= histogram.width * (1 + 1e-6))


def test_zeros_alone_have_no_width() -> None:
    histogram = Histogram()
    histogram.observe(np.zeros((1, 4), np.float32))
    assert histogram.width == 0
    histogram.observe(np.ones((1, 4), np.float32))
    assert histogram.counts()[0] == 4
    assert histogram.counts().sum() == 8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_not_finite_is_refused(bad: float, first: bool) -> None:
    histogram = Histogram()
    if not first:
        histogram.observe(np.ones((1, 4), np.float32))
    with pytest.raises(NotFiniteError):
        histogram.observe(np.array([[1.0, bad, 2.0]], np.float32))
