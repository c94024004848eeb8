"""Histograms of magnitudes, fast enough to see every value of every activation.

A value x falls into bin floor(|x| / width). One pass turns float32 into int16 bin numbers (OpenCV's
saturating scale), one counts them. The width is a power of two, so that it can double without
moving a count across a bin's edge, and the order in which images come does not matter.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

BINS = 1 << 15
# Later images may reach this much further than the first one before the width must double.
_HEADROOM = 4.0


class NotFiniteError(ValueError):
    """NaN or infinity among the values."""


@dataclass(slots=True)
class Histogram:
    """Counts of magnitudes.

    Attributes:
        width: of a bin; 0 until a value other than zero was seen.
    """

    width: float = 0.0
    _signed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, values: NDArray[np.float32]) -> None:
        """Count values; several threads may do so at once.

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
            # Codes at the ends are saturated: too large for this width, or not finite.
            if not found[BINS - 1] and not found[BINS]:
                break
            self._widen(flat, width)
        with self._lock:
            while width < (self.width or 1.0):
                found, width = _halved(found), width * 2
            self._signed += found.astype(np.int64)

    def counts(self) -> NDArray[np.int64]:
        """Return int64 (BINS,): how many magnitudes fell in each bin."""
        # Code -i - 1 holds the values of -(i + 1) to -i widths.
        return self._signed[:BINS] + self._signed[BINS:][::-1]

    def _begin(self, flat: NDArray[np.float32]) -> None:
        top = _largest(flat)
        with self._lock:
            if self.width == 0 and top > 0:
                self.width = 2.0 ** math.ceil(math.log2(top * _HEADROOM / (BINS - 1)))

    def _widen(self, flat: NDArray[np.float32], tried: float) -> None:
        _largest(flat)
        with self._lock:
            if self.width == tried:
                self.width = tried * 2
                self._signed = _halved(self._signed)


def _count(flat: NDArray[np.float32], width: float) -> NDArray[np.int64]:
    # Rounding to nearest of x / width - 0.5 is floor(x / width) but for exact multiples.
    codes = cv2.addWeighted(flat, 1 / width, flat, 0.0, -0.5, dtype=cv2.CV_16S)
    counted = cv2.calcHist([np.asarray(codes).view(np.uint16)], [0], None, [2 * BINS], [0, 2 * BINS])
    return np.asarray(counted).ravel().astype(np.int64)


def _halved(signed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the counts for bins twice as wide."""
    halved = np.zeros_like(signed)
    halved[: BINS // 2] = signed[:BINS].reshape(-1, 2).sum(1)
    halved[-BINS // 2 :] = signed[BINS:].reshape(-1, 2).sum(1)
    return halved


def _largest(flat: NDArray[np.float32]) -> float:
    top = max(float(flat.max()), -float(flat.min())) if flat.size else 0.0
    if not math.isfinite(top):
        raise NotFiniteError
    return top
