"""NumPy counterparts of the structures in `cuda/kernels/prelude.cuh`."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from yolotrt_core.inference.letterbox import geometry, placement
from yolotrt_core.types import Selection

_MOST_INT = 2**31 - 1

if TYPE_CHECKING:
    from numpy.typing import NDArray

BGR, NV12 = 0, 1

FRAME = np.dtype(
    [
        ("pixels", "u8"),
        *((name, "i4") for name in ("height", "width", "pitch", "format", "left", "top", "fit_width", "fit_height")),
        ("scale_x", "f8"),
        ("scale_y", "f8"),
        ("pad_x", "f4"),
        ("pad_y", "f4"),
        ("scale", "f4"),
        *((name, "i4") for name in ("halved", "packed", "reserved")),
    ],
    align=True,
)
REQUEST = np.dtype(
    [
        ("images", "i4"),
        ("conf", "f4"),
        ("iou", "f8"),
        ("multi_label", "i4"),
        ("agnostic", "i4"),
        ("max_det", "i4"),
        ("class_filter", "i4"),
    ],
    align=True,
)
FOUND = np.dtype(
    [
        ("x1", "f4"),
        ("y1", "f4"),
        ("x2", "f4"),
        ("y2", "f4"),
        ("score", "f4"),
        ("class_id", "i4"),
        ("row", "i4"),
        ("mask", "u4"),
    ]
)
SUMMARY = np.dtype([("candidates", "u4"), ("kept", "u4"), ("overflow", "u4"), ("mask_bytes", "u4")])
BOX_BYTES, GROUP_BYTES, KEY_BYTES = 16, 4, 8

# Above this share of an image's rows, a single transfer of all rows is faster.
_MOST_PACKED = 0.7
_FRAME = struct.Struct("<Q8i2d3f3i")
_REQUEST = struct.Struct("<ifd4i")
_ADDRESS = struct.Struct("<Q")


@functools.lru_cache(maxsize=1024)
def _pack_placement(height: int, width: int, pixel_format: int, target: tuple[int, int], packed: int) -> bytes:
    """Pack a FRAME without its address; cached, since all frames of a video share it."""
    placed = geometry((height, width), target)
    left, top, fit_width, fit_height = placement(placed)
    return _FRAME.pack(
        0,
        height,
        width,
        width * (3 if pixel_format == BGR else 1),
        pixel_format,
        left,
        top,
        fit_width,
        fit_height,
        # OpenCV's order of operations: its reciprocal of the ratio is not always source / fit.
        1.0 / (fit_width / width),
        1.0 / (fit_height / height),
        *placed.pad,
        placed.scale,
        _is_halved(height, width, fit_height, fit_width),
        packed,
        0,
    )[_ADDRESS.size :]


def _is_halved(height: int, width: int, fit_height: int, fit_width: int) -> bool:
    return width == 2 * fit_width and height == 2 * fit_height


@dataclass(frozen=True, slots=True, eq=False)
class RowSubset:
    """The rows of an image that its letterbox reads, where skipping the others pays off.

    Attributes:
        index: int (fit_height * packed,), `packed` (1 or 2) consecutive rows per resized row.
        step: distance of consecutive resized rows' first rows, 0 if it varies. first, last: of `index`.
    """

    index: NDArray[np.intp]
    packed: int
    step: int
    first: int
    last: int


@functools.lru_cache(maxsize=1024)
def rows_read(shape: tuple[int, ...], target: tuple[int, int]) -> RowSubset | None:
    """Return the rows of a BGR image that the letterbox reads; None if most of them, or for other formats."""
    if len(shape) != 3:
        return None
    height, width = shape[:2]
    _, _, fit_width, fit_height = placement(geometry((height, width), target))
    if height < 2 * fit_height or _is_halved(height, width, fit_height, fit_width):
        return None
    # Like `tap` in letterbox.cu, with the same precision.
    position = ((np.arange(fit_height) + 0.5) * (1.0 / (fit_height / height)) - 0.5).astype(np.float32)
    low = np.floor(position)
    packed = 2 if np.rint((position - low) * np.float32(2048)).any() else 1
    if packed * fit_height > _MOST_PACKED * height:
        return None
    first = low.astype(np.intp)
    index = (first[:, None] + np.arange(packed)).ravel()
    steps = np.unique(np.diff(first))
    step = int(steps[0]) if len(steps) == 1 else 0
    return RowSubset(index, packed, step, int(index[0]), int(index[-1]))


def pack_frame(shape: tuple[int, ...], address: int, target: tuple[int, int], packed: int = 0) -> bytes:
    """Pack the FRAME of an image.

    Args:
        shape: of the uint8 array: (H, W, 3) for BGR, (H * 3 / 2, W) for NV12. address: of its rows on
            the device, without gaps. target: (height, width) of the network input. packed: `RowSubset.packed` if
            only those rows were uploaded.
    """
    size = source_size(shape)
    if len(shape) == 2:
        return _ADDRESS.pack(address) + _pack_placement(*size, NV12, target, 0)
    return _ADDRESS.pack(address) + _pack_placement(*size, BGR, target, packed)


def source_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (height, width) of an image from its array's shape: (H, W, 3) for BGR, (H * 3 / 2, W) for NV12."""
    return (shape[0] * 2 // 3 if len(shape) == 2 else shape[0]), shape[1]


def pack_request(images: int, selection: Selection) -> bytes:
    """Pack the REQUEST of a batch whose first `images` items are used."""
    return _REQUEST.pack(
        images,
        selection.conf,
        selection.iou,
        selection.multi_label,
        selection.agnostic,
        min(selection.max_det, _MOST_INT),
        bool(selection.classes),
    )


@functools.lru_cache(maxsize=64)
def pack_class_mask(selection_classes: tuple[int, ...], classes: int) -> bytes:
    """Pack one bit per class, set for selected classes, in 32-bit integers."""
    masks = np.zeros((classes + 31) // 32, dtype=np.uint32)
    for class_id in selection_classes:
        masks[class_id >> 5] |= np.uint32(1 << (class_id & 31))
    return masks.tobytes()
