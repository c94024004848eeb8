"""Where the channels of a network's input lie: before its sides (NCHW, torch's way) or behind (NHWC, TensorFlow's).

The shape itself tells: exactly one of the two axes can have three entries, for height and width are multiples of
the strides. So no further field has to be kept, or could contradict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

Layout = Literal["nchw", "nhwc"]
CHANNELS = 3
T = TypeVar("T")


def layout_of(shape: Sequence[object]) -> Layout:
    """Return the layout of an input shape; a dynamic dimension may be anything but 3."""
    return "nhwc" if len(shape) == 4 and shape[3] == CHANNELS and shape[1] != CHANNELS else "nchw"


def with_channels(batch: T, height: T, width: T, layout: Layout) -> tuple[T | int, ...]:
    """Return the input shape, (B, 3, H, W) or (B, H, W, 3); dimensions are numbers or names."""
    return (batch, height, width, CHANNELS) if layout == "nhwc" else (batch, CHANNELS, height, width)


def without_channels(shape: Sequence[T], layout: Layout) -> tuple[T, T, T]:
    """Return (batch, height, width) of an input shape of four dimensions."""
    first = 1 if layout == "nhwc" else 2
    return shape[0], shape[first], shape[first + 1]
