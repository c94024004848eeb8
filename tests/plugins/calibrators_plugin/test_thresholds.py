"""Thresholds against NumPy and against the definitions written out literally."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from yolotrt_calibrators import thresholds

WIDTH = 2.0**-9


@pytest.fixture(scope="module")
def magnitudes() -> np.ndarray:
    """Heavy-tailed SiLU outputs, folded."""
    x = np.random.default_rng(1).standard_t(4, 400_000) * 1.5
    return np.abs(x / (1 + np.exp(-x)))


@pytest.fixture(scope="module")
def counts(magnitudes: np.ndarray) -> np.ndarray:
    return np.bincount((magnitudes / WIDTH).astype(int), minlength=1 << 15)


@pytest.mark.parametrize("percent", [50.0, 99.0, 99.9, 99.99, 99.999, 100.0])
def test_percentile_is_numpys_within_a_bin(magnitudes: np.ndarray, counts: np.ndarray, percent: float) -> None:
    exact = np.percentile(magnitudes, percent)
    assert thresholds.percentile(counts, WIDTH, percent) == pytest.approx(exact, abs=1.01 * WIDTH)


def test_minimize_square_error_is_that_of_a_full_search(magnitudes: np.ndarray, counts: np.ndarray) -> None:
    def error(amax: float) -> float:
        scale = amax / 127
        return float(((np.minimum(np.rint(magnitudes / scale), 127) * scale - magnitudes) ** 2).sum())

    found = thresholds.minimize_square_error(counts, WIDTH)
    best = min(error(a) for a in np.linspace(0.02, 1, 200) * magnitudes.max())
    assert found < 0.9 * magnitudes.max()
    assert error(found) <= 1.02 * best


def _literal(bins: np.ndarray, threshold: int) -> float:
    """KL(P || Q), bin by bin, as `minimize_divergence` states it."""
    levels = [threshold * g // 128 for g in range(129)]
    q = np.zeros(threshold + 1)
    for begin, end in itertools.pairwise(levels):
        used = [i for i in range(begin, end) if bins[i] > 0]
        for i in used:
            q[i] = bins[begin:end].sum() / len(used)
    q[-1] = 1e-4
    p = np.append(bins[:threshold], bins[threshold:].sum())
    p, q = p / p.sum(), q / q.sum()
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def test_divergence_is_the_definition(counts: np.ndarray) -> None:
    bins = counts.reshape(-1, 16).sum(1).astype(np.float64)
    bins = bins[: np.flatnonzero(bins)[-1] + 1]
    some = np.unique(np.linspace(128, len(bins), 23).astype(np.int64))
    assert thresholds.divergences(bins, some) == pytest.approx([_literal(bins, t) for t in some], rel=1e-9, abs=1e-12)


def test_minimize_divergence_clips_a_far_outlier_but_not_a_uniform_range() -> None:
    uniform = np.zeros(1 << 15, np.int64)
    uniform[:2048] = 1000
    assert thresholds.minimize_divergence(uniform, WIDTH) == 2048 * WIDTH
    normal = np.abs(np.random.default_rng(2).standard_normal(1_000_000))
    outlier = np.append(normal, 60.0)
    found = thresholds.minimize_divergence(np.bincount((outlier / WIDTH).astype(int), minlength=1 << 15), WIDTH)
    assert 2.5 < found < 8


def test_a_single_bin_is_its_own_range() -> None:
    counts = np.zeros(1 << 15, np.int64)
    counts[0] = 5
    assert thresholds.minimize_divergence(counts, WIDTH) == WIDTH
    assert 0 < thresholds.minimize_square_error(counts, WIDTH) <= WIDTH
    assert 0 < thresholds.percentile(counts, WIDTH, 99.9) <= WIDTH
