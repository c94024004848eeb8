"""From a histogram of magnitudes to the range worth keeping: percentile, least square error, least divergence.

All take `counts`, int64 (bins,), of the magnitudes in [i * width, (i + 1) * width), and return amax > 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 127  # codes of symmetric int8 on one side of zero
_KL_BINS = 2048
_KL_LEVELS = 128
# Fractions of the largest magnitude that are tried first; then as many again around the best.
_MSE_STEPS = 48


def top(counts: NDArray[np.int64], width: float) -> float:
    """Return the upper edge of the last bin in use."""
    return (int(np.flatnonzero(counts)[-1]) + 1) * width


def percentile(counts: NDArray[np.int64], width: float, percent: float) -> float:
    """Return the magnitude that `percent` of the values (0 to 100) do not exceed, interpolated in its bin."""
    cumulative = np.cumsum(counts)
    wanted = cumulative[-1] * (percent / 100)
    index = int(np.searchsorted(cumulative, wanted))
    index = min(index, len(counts) - 1)
    before = cumulative[index] - counts[index]
    inside = (wanted - before) / counts[index] if counts[index] else 1.0
    return (index + min(1.0, max(float(inside), 2.0**-10))) * width


def least_square_error(counts: NDArray[np.int64], width: float) -> float:
    """Return the range whose symmetric int8 rounding and clipping costs least, summed over squares.

    Searched among fractions of the largest magnitude, evenly spaced, then finer around the best.
    """
    used = counts[: int(np.flatnonzero(counts)[-1]) + 1].astype(np.float64)
    centres: NDArray[np.float64] = (np.arange(len(used), dtype=np.float64) + 0.5) * width
    largest = len(used) * width

    def best_of(candidates: NDArray[np.float64]) -> int:
        return int(np.argmin([_square_error(used, centres, float(c)) for c in candidates]))

    coarse = np.linspace(largest / _MSE_STEPS, largest, _MSE_STEPS)
    found = best_of(coarse)
    fine = np.linspace(coarse[max(0, found - 1)], coarse[min(_MSE_STEPS - 1, found + 1)], _MSE_STEPS)
    return float(fine[best_of(fine)])


def _square_error(counts: NDArray[np.float64], centres: NDArray[np.float64], amax: float) -> float:
    scale = amax / LEVELS
    error = np.minimum(np.rint(centres / scale), LEVELS) * scale - centres
    return float(counts @ (error * error))


def least_divergence(counts: NDArray[np.int64], width: float) -> float:
    """Return the range whose 128-level histogram tells least from the clipped one (Kullback-Leibler).

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017: 2048 bins; for each threshold from
    128 bins on, P is the histogram with what lies beyond added to its last bin, Q the histogram cut
    there, merged to 128 levels and spread evenly over the bins that are not empty; least KL(P || Q).
    Differences: levels have bounds at equal fractions of the threshold rather than a longer last one,
    and the first bin, where the rectified half of an activation piles up, is given its neighbour's count.
    """
    last = int(np.flatnonzero(counts)[-1]) + 1
    merged = -(-last // _KL_BINS)
    bins = np.add.reduceat(counts[:last], np.arange(0, last, merged)).astype(np.float64)
    if len(bins) <= _KL_LEVELS:
        return last * width
    bins[0] = bins[1]
    thresholds = np.arange(_KL_LEVELS, len(bins) + 1)
    divergence = _divergences(bins, thresholds)
    return float(min(thresholds[int(np.argmin(divergence))] * merged, last) * width)


def _divergences(bins: NDArray[np.float64], thresholds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return KL(P || Q) for each threshold.

    With P = p / total and Q constant over the bins in use of a level, the sum over bins becomes one
    over levels: sum p log p - sum over levels (p of the level) * log(q per bin of the level).
    """

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([[0.0], np.cumsum(values)])

    safe = np.where(bins > 0, bins, 1.0)
    mass, in_use, plogp = summed(bins), summed((bins > 0).astype(np.float64)), summed(bins * np.log(safe))
    total = mass[-1]
    edges = np.arange(_KL_LEVELS + 1)[None, :] * thresholds[:, None] // _KL_LEVELS
    level_mass, level_bins = np.diff(mass[edges], axis=1), np.diff(in_use[edges], axis=1)
    kept = mass[thresholds]
    outside = total - kept
    last = bins[thresholds - 1]
    clipped = last + outside
    # P's last bin holds the outliers too; where it was empty, Q has nothing there but must explain it: its
    # share is then spread over the level as if the bin were in use, which is what smoothing would do.
    p_terms = plogp[thresholds] - last * np.log(np.where(last > 0, last, 1.0))
    p_terms += np.where(clipped > 0, clipped * np.log(np.where(clipped > 0, clipped, 1.0)), 0.0)
    level_bins[:, -1] += (last == 0) & (outside > 0)
    q = np.where(level_mass > 0, level_mass, 1e-9 * kept[:, None]) / np.maximum(level_bins, 1) / kept[:, None]
    p_mass = level_mass.copy()
    p_mass[:, -1] += outside
    cross = (p_mass * np.log(q)).sum(1)
    return np.asarray(p_terms / total - np.log(total) - cross / total)
