"""Masks of kept boxes on the GPU: launches, and the page-locked memory that the kernels write bits to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yolotrt_core.types import Masks
from yolotrt_tensorrt.cuda.device import PinnedPool
from yolotrt_tensorrt.cuda.kernels_loader import Kernel
from yolotrt_tensorrt.runtime.loaded_engine import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Bytes of masks per image at first: twice what a typical 1080p frame takes. One that needs more is drawn again.
_FIRST_AREA = 256 << 10
_BLOCKS_PER_MASK, _MASKS_AT_ONCE = 8, 64


@dataclass(frozen=True, slots=True)
class Boxes:
    """Device addresses that the mask kernels read: request, frames, raw rows with their shape, summaries, boxes."""

    request: int
    frames: int
    raw: int
    rows: int
    columns: int
    summaries: int
    found: int
    room: int


class MaskDrawing:
    """Draws the masks of one slot. Bits go straight to the host: no download of unknown size.

    Attributes:
        version: changes with any address or size that a captured graph contains.
    """

    def __init__(self, pool: PinnedPool, kernels: dict[str, Kernel], prototypes: Tensor) -> None:
        """Args: prototypes: with the actual shape, (B, K, h, w)."""
        self._pool, self._kernels = pool, kernels
        self._batch, _, self._rows, self._columns = prototypes.shape
        self.version = 0
        self._set_area(_FIRST_AREA)

    def _set_area(self, area: int) -> None:
        self._area = area
        self._bits: NDArray[np.uint8] = self._pool.array((self._batch, area))
        self.version += 1

    def enqueue(self, stream: Any, boxes: Boxes, prototypes: int) -> None:
        """Enqueue the masks of all kept boxes; `prototypes` is the device address of the output."""
        self._kernels["place_masks"](
            (self._batch, 1, 1), stream, boxes.request, boxes.frames, boxes.summaries, boxes.found, boxes.room
        )
        self._kernels["draw_masks"](
            (_BLOCKS_PER_MASK, _MASKS_AT_ONCE, self._batch),
            stream,
            *(boxes.request, boxes.frames, boxes.raw, boxes.rows, boxes.columns),
            *(prototypes, self._rows, self._columns),
            *(boxes.summaries, boxes.found, boxes.room, self._bits.ctypes.data, self._area),
        )

    def grow(self, needed: int) -> bool:
        """Make room for images whose masks take this many bytes; return whether they must be drawn again."""
        if needed <= self._area:
            return False
        self._set_area(1 << (needed - 1).bit_length())
        return True

    def read(self, image: int, size: tuple[int, int], boxes: NDArray[np.float32], offsets: NDArray[np.uint32]) -> Masks:
        """Return a copy of the masks of an image.

        Args:
            size: (height, width) of the source image. boxes: float32 (M, 4) in its pixels.
            offsets: of each mask's bits, in bytes.
        """
        height, width = size
        windows = np.clip(boxes.round(), 0, (width, height, width, height)).astype(np.int32)
        windows[:, 2:] = np.maximum(windows[:, 2:], windows[:, :2])
        packed = []
        bits = self._bits[image]
        for (x1, y1, x2, y2), begin in zip(windows.tolist(), offsets.tolist(), strict=True):
            tall, row = y2 - y1, (x2 - x1 + 7) // 8
            packed.append(bits[begin : begin + tall * row].reshape(tall, row).copy())
        return Masks(size, windows, tuple(packed))
