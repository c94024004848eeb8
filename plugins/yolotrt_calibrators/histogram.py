"""Histograms of magnitudes, fast enough to count every value of every activation.

A value x falls into bin floor(|x| / width). One pass converts float32 to int16 bin numbers (OpenCV's
saturating scale), one counts them. The width is a power of two: it can double without moving a count
across a bin's edge, so the order of the images does not matter.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

BINS = 1 << 15
# How much later values may exceed the first image's maximum before the width doubles.
_HEADROOM = 4.0


class NotFiniteError(ValueError):
    """NaN or infinity among the values."""


@dataclass(slots=True)
class Histogram:
    """Counts of magnitudes.

    Attributes:
        width: of a bin; 0 until the first nonzero value.
    """

    width: float = 0.0
    _signed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, values: NDArray[np.float32]) -> None:
        """Count values; thread-safe.

        Args:
            values: float32 of any shape, contiguous.

        Raises:
            NotFiniteError: NaN or infinity among them.
        """
        flat = values.reshape(1, -1)
        if self.width == 0:
            self._begin(flat)
        while True:
            width = self.width or 1.0
            found = _count(flat, width)
            # Extreme codes are saturated: too large for this width, or not finite.
            if not found[BINS - 1] and not found[BINS]:
                break
            self._widen(flat, width)
        with self._lock:
            while width < (self.width or 1.0):
                found, width = _merge_pairs(found), width * 2
            self._signed += found.astype(np.int64)

    def counts(self) -> NDArray[np.int64]:
        """Return int64 (BINS,): the number of magnitudes in each bin."""
        # Code -i - 1 holds the values of -(i + 1) to -i widths.
        return self._signed[:BINS] + self._signed[BINS:][::-1]

    def _begin(self, flat: NDArray[np.float32]) -> None:
        top = _max_magnitude(flat)
        with self._lock:
            if self.width == 0 and top > 0:
                self.width = 2.0 ** math.ceil(math.log2(top * _HEADROOM / (BINS - 1)))

    def _widen(self, flat: NDArray[np.float32], tried: float) -> None:
        _max_magnitude(flat)
        with self._lock:
            if self.width == tried:
                self.width = tried * 2
                self._signed = _merge_pairs(self._signed)


def _count(flat: NDArray[np.float32], width: float) -> NDArray[np.int64]:
    # Rounding to nearest of x / width - 0.5 is floor(x / width) except for exact multiples.
    codes = cv2.addWeighted(flat, 1 / width, flat, 0.0, -0.5, dtype=cv2.CV_16S)
    counted = cv2.calcHist([np.asarray(codes).view(np.uint16)], [0], None, [2 * BINS], [0, 2 * BINS])
    return np.asarray(counted).ravel().astype(np.int64)


def _merge_pairs(signed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the counts of bins twice as wide."""
    halved = np.zeros_like(signed)
    halved[: BINS // 2] = signed[:BINS].reshape(-1, 2).sum(1)
    halved[-BINS // 2 :] = signed[BINS:].reshape(-1, 2).sum(1)
    return halved


def _max_magnitude(flat: NDArray[np.float32]) -> float:
    top = max(float(flat.max()), -float(flat.min())) if flat.size else 0.0
    if not math.isfinite(top):
        raise NotFiniteError
    return top
