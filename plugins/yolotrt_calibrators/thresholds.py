"""Choose a range from a histogram of magnitudes: percentile, minimum square error, minimum divergence.

All take `counts`, int64 (bins,), of the magnitudes in [i * width, (i + 1) * width), and return amax > 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 127  # codes of symmetric int8 on one side of zero
_KL_BINS = 2048
_KL_LEVELS = 128
_KL_CLIPPED = 1e-4
# Fractions of the maximum magnitude tried first; then as many again around the best.
_MSE_STEPS = 48


def top(counts: NDArray[np.int64], width: float) -> float:
    """Return the upper edge of the last nonempty bin."""
    return (int(np.flatnonzero(counts)[-1]) + 1) * width


def percentile(counts: NDArray[np.int64], width: float, percent: float) -> float:
    """Return the magnitude that `percent` of the values (0 to 100) do not exceed, interpolated in its bin."""
    cumulative = np.cumsum(counts)
    target = cumulative[-1] * (percent / 100)
    index = int(np.searchsorted(cumulative, target))
    index = min(index, len(counts) - 1)
    before = cumulative[index] - counts[index]
    inside = (target - before) / counts[index] if counts[index] else 1.0
    return (index + min(1.0, max(float(inside), 2.0**-10))) * width


def minimize_square_error(counts: NDArray[np.int64], width: float) -> float:
    """Return the range with the minimum sum of squared errors of symmetric int8 rounding and clipping.

    Searches evenly spaced fractions of the maximum magnitude, then finer ones around the best.
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


def minimize_divergence(counts: NDArray[np.int64], width: float) -> float:
    """Return the range whose 128-level histogram has the minimum Kullback-Leibler divergence.

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017: 2048 bins; for each threshold from
    128 bins on, P is the histogram and Q its part below the threshold, merged to 128 levels and each spread
    evenly over its nonempty bins; minimum KL(P || Q). Two details matter on SiLU networks. Values beyond the
    threshold are a separate bin of P, to which Q gives 1e-4 counts, equivalent to onnxruntime 1.32's smoothing:
    adding them to the last bin would make clipping nearly free. And the first bin, which holds half of a
    SiLU's values, gets its neighbour's count, as in NVIDIA's pytorch-quantization 2.1.
    """
    last = int(np.flatnonzero(counts)[-1]) + 1
    merged = -(-last // _KL_BINS)
    bins = np.add.reduceat(counts[:last], np.arange(0, last, merged)).astype(np.float64)
    if len(bins) <= _KL_LEVELS:
        return last * width
    bins[0] = bins[1]
    thresholds = np.arange(_KL_LEVELS, len(bins) + 1)
    divergence = divergences(bins, thresholds)
    return float(min(thresholds[int(np.argmin(divergence))] * merged, last) * width)


def divergences(bins: NDArray[np.float64], thresholds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return KL(P || Q) for each threshold, a number of bins; see `minimize_divergence`.

    Q is constant over the nonempty bins of a level, so the sum over bins, p log(p / q), becomes
    sum p log p, less a sum over levels of the level's mass times log q: cumulative sums give both.
    """

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([[0.0], np.cumsum(values)])

    mass, in_use, p_log_p = summed(bins), summed((bins > 0).astype(np.float64)), summed(bins * _log(bins))
    total, kept = mass[-1], mass[thresholds]
    clipped = total - kept
    edges = np.arange(_KL_LEVELS + 1)[None, :] * thresholds[:, None] // _KL_LEVELS
    level_mass, level_bins = np.diff(mass[edges], axis=1), np.diff(in_use[edges], axis=1)
    log_q = _log(level_mass) - np.log(np.maximum(level_bins, 1)) - np.log(kept + _KL_CLIPPED)[:, None]
    p_terms = p_log_p[thresholds] + clipped * _log(clipped)
    q_terms = (level_mass * log_q).sum(1) + clipped * (np.log(_KL_CLIPPED) - np.log(kept + _KL_CLIPPED))
    return np.asarray((p_terms - q_terms) / total - np.log(total))


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm, 0 for 0, for use in x log x."""
    return np.log(np.where(values > 0, values, 1.0))
